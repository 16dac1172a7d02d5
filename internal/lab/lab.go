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
// # Links with conditions
//
// [ShapedLink] is a [Link] with delay, jitter, loss, reordering, a rate, a queue
// and an MTU of its own, in each direction, for kernels without netem:
//
//	link := lab.ShapedLink(t, client, server, lab.Conditions{Delay: 20 * time.Millisecond, Rate: 10e6}, "10.0.0.0/24")
//	link.AtoB.Set(lab.Conditions{Loss: 0.01, Seed: 1}) // from client to server, from now on
//
// The test process itself carries the packets between two TUN devices. Where the
// user may not open /dev/net/tun (mode 0600 where no udev runs) it does so between
// two veth pairs, by packet(7) sockets. What a test should know of both:
//
//   - Packets are whole IP packets, with their checksum and of the MTU at most: there
//     is no offload, nor a hardware address to be asked for. Multicast listener
//     reports, which the kernel sends by itself, are not carried and not counted.
//   - A packet arrives never before its time, and on an idle machine of two cores
//     10 µs after it in the median, 0.2 ms in one of a hundred. A busy machine
//     adds tens of milliseconds to that: test lower bounds exactly, upper ones with
//     patience.
//   - Without a rate a connection has some 5 Gbit/s, and one direction carries some
//     500,000 packets per second, which takes both cores. At 100 Mbit/s a connection
//     takes an eighth of a core, both hosts' TCP included.
//   - What comes faster is lost and counted in [Stats].Overrun. Up to 10,000 packets
//     may come at once between TUN devices. A packet socket holds twice the
//     net.core.rmem_max: where that is 212992, some 180 packets of 1500 bytes or 500
//     small ones; where it is 4 MiB, twenty times as many.
//   - At most 128 MiB of packets, each counted as one of the MTU, wait and are on
//     their way in one direction: delay times rate must stay below that.
//   - A process that is stopped or starved carries nothing meanwhile.
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
