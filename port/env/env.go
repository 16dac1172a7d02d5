// Package env gives a project the same ports at every run on a machine, as
// environment variables, from a file such as this ports.yaml:
//
//	project: shop         # optional: files with the same project share ports
//	range: 20000-29999    # optional: where ports come from; default 49152-65535
//	ports:
//	  api:                # the variable PORT_API
//	  db:      {range: 15432-15532}
//	  dns:     {proto: both, env: DNS_PORT}   # one number for TCP and UDP
//	  web:     3000       # this one; short for {port: 3000}, as 3000-3010 is for {range: 3000-3010}
//	  metrics: {addr: "*"}
//
// Names of which nothing else is to be said can be a list: "ports: [api, db]".
//
// A port is TCP on 127.0.0.1 unless proto (tcp, udp, both) and addr (an IP
// address, or * for all) say otherwise. It is leased under the name PROJECT/NAME,
// by no process, for 30 days from the last run. A run renews what it finds, in
// use or not, and so gives the same port again. A lease that is not what the file
// says any more is released, and the port chosen anew. Of a port whose lease has
// expired, the registry knows to whom it belonged, and gives it back if it is free.
//
// By default the project is the file itself, known by its directory's name and
// a hash of its path: two checkouts have different ports. What such a project has
// leased under names that the file has no more is released at the next run. Files
// that name their project share the ports of equal names, about which they must
// agree; a name that is in none of them any more keeps its lease until that
// expires.
//
// Runs of one user wait for each other, by flock(2) on a file beside the registry
// of ports, so that runs at once agree, also those of two files of one project. On
// Windows they do not wait, and the first runs of a project may disagree.
package env

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
)

// Project is what a file asks for. It is made by [Load].
type Project struct {
	Name  string
	Ports []Port // in the order of the file
	// TTL is how long the ports stay leased after a run, 0 for 30 days.
	TTL time.Duration

	file    string // as it was given, for errors
	purpose string // of the leases: where the file is
	shared  bool   // other files may have the same project
}

// Port is one that a file asks for.
type Port struct {
	Name      string              // in the file
	Variable  string              // of the environment
	Protocols []fivetuple.Network // TCP, UDP, or both
	Address   netip.Addr          // :: for all
	Range     fivetuple.PortRange // one port is one asked for by number

	line int
}

// Variable is a port that the project has.
type Variable struct {
	Name   string // PORT_API
	Port   uint16
	Leases []lease.Lease // one for each protocol
}

// maxFile is far more than any project needs, and keeps a file that is none,
// such as /dev/zero, from filling the memory.
const maxFile = 64 << 10

// Load reads and checks a file. The error has all that is wrong in it, each on
// a line of its own as "ports.yaml:3: what is wrong".
func Load(path string) (Project, error) {
	text, err := read(path)
	if err != nil {
		return Project{}, fmt.Errorf("the project's ports: %w", err)
	}
	where, err := locate(path)
	if err != nil {
		return Project{}, fmt.Errorf("the project's ports: %w", err)
	}
	return parse(path, where, text)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var text bytes.Buffer
	n, err := io.Copy(&text, io.LimitReader(f, maxFile+1))
	if err == nil && n > maxFile {
		err = errors.New(path + " is larger than 64 KiB: it is no list of ports")
	}
	return text.Bytes(), err
}

// locate returns the absolute path of the file, the same however its directory
// is reached. A link to a file is a file of its own, as several checkouts may
// link to the same.
func locate(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// ownProject is the project of a file that names none: "shop-1a2b3c4d".
func ownProject(where string) string {
	dir := []byte(filepath.Base(filepath.Dir(where)))
	dir = dir[:min(len(dir), 23)] // with the hash, half of the name of a lease
	for i, c := range dir {
		if !isNameByte(c) {
			dir[i] = '_'
		}
	}
	return fmt.Sprintf("%s-%x", dir, sha256.Sum256([]byte(where)))[:len(dir)+1+8]
}
