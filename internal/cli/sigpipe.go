package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// outliveReaders makes a reader of the output that goes away an error of writing,
// not the end of this process. The signal is caught, not ignored: commands that are
// started would go on ignoring it, and in a shell's pipelines nothing would end.
func outliveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
