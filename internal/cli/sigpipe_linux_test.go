package cli

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestCommandsDoNotIgnoreSIGPIPEThoughWeOutliveReaders(t *testing.T) {
	outliveReaders()
	out, err := exec.Command("sed", "-n", "s/SigIgn:[[:space:]]*//p", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := strconv.ParseUint(strings.TrimSpace(string(out)), 16, 64)
	if err != nil || ignored>>(syscall.SIGPIPE-1)&1 != 0 {
		t.Errorf("a command ignores the signals %s, %v; want SIGPIPE not among them", out, err)
	}
}
