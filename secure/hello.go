package secure

import "errors"

// ErrShort says that what there is may be the beginning of a greeting.
var ErrShort = errors.New("the client's greeting is not whole yet")

// ServerName returns the server name (SNI, RFC 6066 section 3) of the TLS client's greeting
// that b begins with, in lower case; "" if it names none. The error is
// ErrShort if more must come, another if it is none.
func ServerName(b []byte) (string, error) { return "", errors.ErrUnsupported }
