//go:build !unix

package stream

const canTryRead = false

func (r *chunkReader) tryRead(uintptr) bool       { return true }
func (r *chunkReader) tryReadRecord(uintptr) bool { return true }
