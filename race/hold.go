package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// holders is how many processes hold the sockets of the ls races.
const holders = 5

// holding is a network namespace in which processes hold connections.
type holding struct {
	processes []*exec.Cmd
}

// startHolding starts processes that hold so many sockets together, in a network
// namespace of their own if own is set. They end with close, or with this program.
func startHolding(sockets int, own bool) (*holding, error) {
	h := &holding{}
	for range holders {
		cmd := exec.Command("/proc/self/exe", "-hold", strconv.Itoa(sockets/holders))
		cmd.Stderr = os.Stderr
		if own && len(h.processes) == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		}
		out, err := cmd.StdoutPipe()
		if err == nil {
			_, err = cmd.StdinPipe() // closed when this program ends: then they do, too
		}
		if err == nil && own && len(h.processes) > 0 {
			err = h.within(cmd.Start)
		} else if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			h.close()
			return nil, err
		}
		h.processes = append(h.processes, cmd)
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			h.close()
			return nil, fmt.Errorf("a process that was to hold %d sockets ended", sockets/holders)
		}
	}
	return h, nil
}

func (h *holding) close() {
	for _, cmd := range h.processes {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// within runs f on a thread in the network namespace of the processes, whose
// children are in it too.
func (h *holding) within(f func() error) error {
	end := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", h.processes[0].Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		end <- err
	}()
	return <-end
}

// unaccepted is how many of the connections are left in the accept queue: each
// is a socket that no process holds.
const unaccepted = 50

// holdSockets opens so many sockets, says so, and holds them until its input ends.
func holdSockets(sockets int) error {
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		return err
	}
	// Room for all in the ports of one address.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("1024 65535"), 0); err != nil {
		return err
	}
	listener, to, err := listenTCP([4]byte{127, 0, byte(os.Getpid() >> 8), byte(os.Getpid())})
	if err != nil {
		return err
	}
	waiting := min(unaccepted, sockets/20)
	for n := 1; n < sockets; n += 2 {
		if _, err := connectTCP(listener, to, n > 2*waiting); err != nil {
			return fmt.Errorf("socket %d: %w", n, err)
		}
	}
	fmt.Println("holding")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
	return nil
}

func listenTCP(address [4]byte) (listener int, at *unix.SockaddrInet4, err error) {
	if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		err = unix.Bind(listener, &unix.SockaddrInet4{Addr: address})
	}
	if err == nil {
		err = unix.Listen(listener, 4096)
	}
	if err != nil {
		return -1, nil, err
	}
	bound, err := unix.Getsockname(listener)
	if err != nil {
		return -1, nil, err
	}
	return listener, bound.(*unix.SockaddrInet4), nil
}

// connectTCP connects to the listener, and accepts the connection unless it is
// to stay in the accept queue.
func connectTCP(listener int, to *unix.SockaddrInet4, accept bool) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		err = unix.Connect(fd, to)
	}
	if err == nil && accept {
		_, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	return fd, err
}
