package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// forwarder is a program that forwards a port.
type forwarder struct {
	name     string
	packages string // Debian's
	// command is how it is started; nil for no forwarder at all.
	command func(b *forwardBench, network, from, to string) ([]string, error)
}

var (
	ftForwarder = forwarder{"ft forward", "", func(b *forwardBench, network, from, to string) ([]string, error) {
		return []string{b.ft, "forward", network + "://" + from, network + "://" + to}, nil
	}}
	haproxy = forwarder{"HAProxy", "haproxy", haproxyCommand}
	nginx   = forwarder{"nginx stream", "nginx libnginx-mod-stream", nginxCommand}
	socat   = forwarder{"socat", "socat", socatCommand(nil)}
	// By default socat moves 8 KiB at a time.
	socatLarge = forwarder{"socat -b 131072", "socat", socatCommand([]string{"-b", "131072"})}
	direct     = forwarder{name: "direct"}
)

// allForwarders forward TCP, ours first.
var allForwarders = []forwarder{ftForwarder, haproxy, nginx, socat, socatLarge}

// haproxyCommand writes its configuration: two threads, and splice(2) where it
// thinks that worth it. It forwards no UDP.
func haproxyCommand(b *forwardBench, network, from, to string) ([]string, error) {
	if network != "tcp" {
		return nil, errors.New("HAProxy forwards TCP only")
	}
	path, err := b.configure("haproxy", from, `
global
  nbthread 2
  maxconn 6000
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen forward
  bind `+from+`
  server target `+to+`
`)
	return []string{"haproxy", "-db", "-f", path}, err
}

// nginxCommand writes its configuration: two processes, each with a listener of
// its own, and for UDP as large a buffer as it may have.
func nginxCommand(b *forwardBench, network, from, to string) ([]string, error) {
	listen, timeout := from+" reuseport backlog=4096", "1h"
	if network == "udp" {
		listen, timeout = from+" udp reuseport rcvbuf=4m", "10s"
	}
	path, err := b.configure("nginx", from, `
daemon off;
user root root;
worker_processes 2;
worker_rlimit_nofile 12500;
pid `+filepath.Join(b.folder, "nginx"+portOf(from)+".pid")+`;
error_log stderr warn;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events { worker_connections 12000; }
stream {
  server {
    listen `+listen+`;
    proxy_pass `+to+`;
    proxy_timeout `+timeout+`;
  }
}
`)
	return []string{"nginx", "-e", "stderr", "-p", b.folder, "-c", path}, err
}

// socatCommand has a process for each connection, or sender of datagrams.
func socatCommand(options []string) func(_ *forwardBench, network, from, to string) ([]string, error) {
	return func(_ *forwardBench, network, from, to string) ([]string, error) {
		common := "-LISTEN:" + portOf(from) + ",bind=127.0.0.1,reuseaddr,fork"
		if network == "udp" {
			return slices.Concat([]string{"socat", "-T", "10"}, options, []string{"UDP4" + common, "UDP4:" + to}), nil
		}
		return slices.Concat([]string{"socat"}, options, []string{"TCP4" + common + ",backlog=4096", "TCP4:" + to}), nil
	}
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// configure writes a configuration file for the forwarder that listens there.
func (b *forwardBench) configure(name, from, text string) (path string, err error) {
	path = filepath.Join(b.folder, fmt.Sprintf("%s%s.conf", name, portOf(from)))
	return path, os.WriteFile(path, []byte(strings.TrimLeft(text, "\n")), 0o644)
}
