// Package lab gives tests hosts of their own: network namespaces with their own
// loopback, addresses, routes, sysctls and port filters, joined by veth pairs,
// in which Go functions and programs run.
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
//	func TestServer(t *testing.T) {
//		client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
//		lab.Link(t, client, server, "10.0.0.0/24", "fd00::/64") // client .1, server .2
//		server.Drop(t, "tcp", 81)
//		server.Start(t, exec.Command("nc", "-lk", "80")).WaitListening(t, "tcp", 80)
//		conn, err := client.Dial(t.Context(), "tcp", "10.0.0.2:80")
//		...
//	}
//
// It stands on Linux namespaces (namespaces(7)), on rtnetlink(7) and, for port
// filters, on nft(8). The whole test binary runs in user, mount, PID and network
// namespaces of its own, so that an ordinary user can run such tests, nothing
// outside is ever a target, and the kernel itself clears everything away when the
// binary ends, however it ends: the PID namespace dies with its first process and
// nothing else holds the others. Where the namespaces cannot be made the tests
// fail and say what to change. On systems other than Linux [Main] runs the tests
// as they are and [NewHost] fails.
//
// Inside, the user is root over the lab. Started by root, user and group ids 0 to
// 65535 are those of the machine, so a test can drop to another user; started by
// an ordinary user, uid 0 stands for that user and there is no other.
package lab

import (
	"os"
	"testing"
)

// Main runs the tests of m in the lab and exits with their code. It is called
// from TestMain, first thing.
func Main(m *testing.M) {
	Enter()
	os.Exit(m.Run())
}

// Enter is [Main] for a TestMain that has more to do, such as running testscript
// or goleak: it returns in the process that is to run the tests. In the process
// that `go test` started it never returns, but runs the test binary again inside
// the lab, passes signals on to it and exits with its code. Programs started from
// within, such as fuzz workers, are in the lab already and return at once.
func Enter() {
	enter()
}
