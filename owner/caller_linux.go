package owner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

func caller() (Process, error) {
	if err := ownProc(); err != nil {
		return Process{}, err
	}
	dir, pid, err := openParent(os.Getppid)
	if err != nil {
		return Process{}, err
	}
	for {
		shell, shellPID, ok := forkedFrom(dir)
		if !ok {
			break
		}
		unix.Close(dir)
		dir, pid = shell, shellPID
	}
	defer unix.Close(dir)
	return describeWithUser(dir, pid)
}

// openParent opens the parent's /proc/PID, and makes sure that it was still the
// parent when it did.
func openParent(getppid func() int) (dir, pid int, err error) {
	pid = getppid()
	switch pid {
	case 0:
		return -1, 0, errors.New("its parent is outside this PID namespace")
	case 1:
		if dir, ok := openFirstShell(); ok {
			return dir, pid, nil
		}
		return -1, 0, errors.New("its parent is process 1, as it is when the caller has ended")
	}
	dir, err = openProcess(pid)
	if getppid() != pid {
		if err == nil {
			unix.Close(dir)
		}
		return -1, 0, fmt.Errorf("process %d has just ended", pid)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return -1, 0, fmt.Errorf("it is process %d, which /proc hides (proc(5), hidepid): %w", pid, fs.ErrPermission)
	}
	return dir, pid, err
}

// openFirstShell opens process 1 if that is a shell, as in a container whose
// command is a script. It may have called, or have taken over the caller's child.
func openFirstShell() (dir int, ok bool) {
	dir, err := openProcess(1)
	if err != nil {
		return -1, false
	}
	if exe, err := readLink(dir, "exe"); err != nil || !isShell(exe) {
		unix.Close(dir)
		return -1, false
	}
	return dir, true
}

// forkedFrom opens the shell that the process is a copy of. There is none if
// the process has executed a program of its own since it was forked, is not a shell,
// has lost its parent, or if its parent has executed another program meanwhile or
// may not be looked into.
func forkedFrom(dir int) (shell, pid int, ok bool) {
	st, err := readStat(dir)
	if err != nil || st.flags&forkNoExec == 0 || st.parent == 0 {
		return -1, 0, false
	}
	shell, err = openProcess(int(st.parent))
	if err != nil {
		return -1, 0, false
	}
	if !sameShell(dir, shell) {
		unix.Close(shell)
		return -1, 0, false
	}
	return shell, int(st.parent), true
}

// sameShell says whether two processes have the image of the same run of a
// shell, by its auxiliary vector (getauxval(3)): a fork copies that, and every
// execve(2) fills it with the addresses of program, interpreter, vDSO and stack.
// They are random; where that is switched off (proc(5), randomize_va_space) two runs
// with the same arguments can be alike.
func sameShell(a, b int) bool {
	exe, err := readLink(a, "exe")
	if err != nil || !isShell(exe) {
		return false
	}
	auxv, err := readFile(a, "auxv")
	if err != nil || len(auxv) == 0 {
		return false
	}
	other, err := readFile(b, "auxv")
	return err == nil && bytes.Equal(auxv, other)
}

func readLink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// isShell tells a shell by the name of its file, one word of which is a shell's:
// /usr/bin/zsh-5.9, ksh93, bsd-csh, "/bin/bash (deleted)".
func isShell(exe string) bool {
	words := strings.FieldsFunc(exe[strings.LastIndexByte(exe, '/')+1:], func(r rune) bool { return !unicode.IsLetter(r) })
	return slices.ContainsFunc(words, func(w string) bool { return slices.Contains(shells, w) })
}

var shells = []string{
	"ash", "bash", "busybox", "csh", "dash", "fish", "hush", "ksh", "lksh", "loksh", "mksh",
	"oksh", "pdksh", "posh", "rbash", "rksh", "rzsh", "sh", "tcsh", "toybox", "yash", "zsh",
}
