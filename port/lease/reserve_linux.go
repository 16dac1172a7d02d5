package lease

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// isToBeReserved says whether the port is to be listed in
// ip_local_reserved_ports for a lease, and taken out again after it: not if it
// is listed for another reason.
func (t *txn) isToBeReserved(port uint16) (bool, error) {
	set, err := reservedPorts()
	if err != nil || !set.has(port) {
		return err == nil, err
	}
	leases, err := t.all("namespace = ? AND port = ? AND reserved", t.namespace, port)
	return len(leases) > 0, t.wrap(err)
}

// reserve lists the port of a lease. That comes after the lease is written, and
// taking it out after its end is: so whoever is killed in between leaves a trace.
func (t *txn) reserve(l Lease) error {
	r, err := t.current(l)
	if err != nil {
		return err
	}
	set, err := reservedPorts()
	if err == nil && !set.has(l.Port) {
		set.add(l.Port)
		err = writeReserved(set)
	}
	if err == nil {
		return nil
	}
	if err := t.end(r); err != nil {
		return err
	}
	return &refusal{err}
}

// unreserve takes the ports out again that were listed for leases which have
// ended. A user who may not do that leaves it to the next change by one who may.
func (t *txn) unreserve() error {
	ended, err := t.all("namespace = ? AND reserved AND ended IS NOT NULL", t.namespace)
	if err != nil || len(ended) == 0 {
		return t.wrap(err)
	}
	held, err := t.all("namespace = ? AND reserved AND ended IS NULL", t.namespace)
	if err != nil {
		return t.wrap(err)
	}
	set, err := reservedPorts()
	if err != nil {
		return err
	}
	for _, r := range ended {
		set.remove(r.Port)
	}
	for _, r := range held {
		set.add(r.Port)
	}
	if err := writeReserved(set); errors.Is(err, fs.ErrPermission) {
		return nil
	} else if err != nil {
		return err
	}
	return t.wrap(t.exec("UPDATE leases SET reserved = 0 WHERE namespace = ? AND reserved AND ended IS NOT NULL", t.namespace))
}

func writeReserved(set *portSet) error {
	err := os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte(set.String()+"\n"), 0)
	if err != nil {
		return fmt.Errorf("reserve ports (net.ipv4.ip_local_reserved_ports): %w: it takes root, or CAP_NET_ADMIN", err)
	}
	return nil
}

// String writes the ports as the kernel reads them: "8080,9000-9010".
func (s *portSet) String() string {
	var b strings.Builder
	for p := 0; p <= 65535; p++ {
		if !s.has(uint16(p)) {
			continue
		}
		first := p
		for p < 65535 && s.has(uint16(p+1)) {
			p++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(first))
		if p > first {
			b.WriteString("-" + strconv.Itoa(p))
		}
	}
	return b.String()
}
