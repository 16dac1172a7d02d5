package tui

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
	"github.com/fivetuple/fivetuple/sockopt"
	"github.com/fivetuple/fivetuple/table"
)

var update = flag.Bool("update", false, "write the wanted screens anew")

func TestMain(m *testing.M) {
	time.Local = time.UTC // times of day are on the screens
	os.Exit(m.Run())
}

// user sits before a screen that shows a kernel's sockets.
type user struct {
	*testing.T
	*model
	kernel *kernel
	pids   map[uint32]int
	closed []sockdiag.Socket
}

// sit runs a test before a screen, in a time of its own.
func sit(t *testing.T, o Options, k *kernel, test func(*user)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u := &user{T: t, kernel: k, pids: map[uint32]int{}}
		o.Close = u.closeSocket
		var err error
		if u.model, err = newModel(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		u.book.dump = k.dump
		u.book.here.ID = 1
		u.get = u.getSocket
		if u.filter, err = u.parse(t.Context(), o.Filter); err != nil {
			t.Fatal(err)
		}
		read(t, u.book, u.reading())
		u.learnOwners()
		u.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
		test(u)
	})
}

func (u *user) learnOwners() {
	u.book.learn(answer{of: held(u.pids), upTo: 1 << 60}, time.Now().Add(time.Hour))
	u.turn()
}

func (u *user) closeSocket(_ context.Context, r *table.Row) (table.Closed, error) {
	for i, have := range u.kernel.sockets {
		if have.Cookie == r.Cookie {
			u.kernel.sockets = slices.Delete(slices.Clone(u.kernel.sockets), i, i+1)
			u.closed = append(u.closed, r.Socket)
			return table.Destroyed, nil
		}
	}
	return table.Gone, nil
}

func (u *user) getSocket(_ context.Context, s sockdiag.Socket, _ sockdiag.Details) (sockdiag.Socket, error) {
	for _, have := range u.kernel.sockets {
		if have.Cookie == s.Cookie {
			return have, nil
		}
	}
	return sockdiag.Socket{}, fs.ErrNotExist
}

// press presses keys, one name each, and waits for what they do but for the
// next tick.
func (u *user) press(keys ...string) {
	u.Helper()
	for _, k := range keys {
		u.settle(u.send(key(k)))
	}
}

func (u *user) send(msg tea.Msg) tea.Cmd {
	_, cmd := u.Update(msg)
	return cmd
}

func (u *user) write(text string) {
	for _, r := range text {
		u.press(string(r))
	}
}

func key(name string) tea.KeyPressMsg {
	codes := map[string]rune{
		"up": tea.KeyUp, "down": tea.KeyDown, "left": tea.KeyLeft, "home": tea.KeyHome, "end": tea.KeyEnd, "pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp,
		"enter": tea.KeyEnter, "esc": tea.KeyEscape, "backspace": tea.KeyBackspace, "tab": tea.KeyTab,
	}
	if c, ok := codes[name]; ok {
		return tea.KeyPressMsg{Code: c}
	}
	if rest, ok := strings.CutPrefix(name, "ctrl+"); ok {
		return tea.KeyPressMsg{Code: rune(rest[0]), Mod: tea.ModCtrl}
	}
	r, _ := utf8.DecodeRuneInString(name)
	return tea.KeyPressMsg{Code: r, Text: name}
}

func (u *user) settle(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	switch msg := cmd().(type) {
	case tea.BatchMsg:
		for _, c := range msg {
			u.settle(c)
		}
	case tickMsg, nil, tea.QuitMsg:
	default:
		u.settle(u.send(msg))
	}
}

// second lets a second pass and the table be read.
func (u *user) second() {
	time.Sleep(time.Second)
	u.settle(u.read())
}

var escape = regexp.MustCompile("\x1b\\[[0-9;:]*m")

// text is the screen without colours.
func (u *user) text() string {
	lines := u.screen()
	for i, l := range lines {
		lines[i] = strings.TrimRight(escape.ReplaceAllString(l, ""), " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

func (u *user) sees(want string) {
	u.Helper()
	if got := u.text(); !strings.Contains(got, want) {
		u.Errorf("%q is not on the screen:\n%s", want, got)
	}
}

func (u *user) seesNot(unwanted string) {
	u.Helper()
	if got := u.text(); strings.Contains(got, unwanted) {
		u.Errorf("%q is on the screen:\n%s", unwanted, got)
	}
}

// picked is the cookie of the selected socket.
func (u *user) pickedCookie() uint64 {
	if u.model.page.picked == nil {
		return 0
	}
	return u.model.page.picked.Cookie
}

// office are sockets of every kind of interest.
func office() *kernel {
	var all []sockdiag.Socket
	add := func(protocol fivetuple.Network, state fivetuple.State, local, remote string, in, out uint64) *sockdiag.Socket {
		n := uint64(len(all) + 1)
		s := sockdiag.Socket{Protocol: protocol, State: state, Cookie: n, Inode: uint32(1000 + n), UID: 33, Local: netip.MustParseAddrPort(local)}
		if remote != "" {
			s.Remote = netip.MustParseAddrPort(remote)
		}
		if protocol == fivetuple.TCP && state != fivetuple.StateTimeWait {
			s.Info = &sockopt.TCPInfo{BytesReceived: in, BytesAcked: out, RTT: 12300 * time.Microsecond, RTTVar: 2 * time.Millisecond, MinRTT: 10 * time.Millisecond,
				RTO: 204 * time.Millisecond, SndCwnd: 10, SndMSS: 1448, SndWnd: 65536, TotalRetrans: 3, DeliveryRate: 1 << 20}
			s.Congestion = "cubic"
		}
		all = append(all, s)
		return &all[len(all)-1]
	}
	add(fivetuple.TCP, fivetuple.StateListen, "0.0.0.0:80", "", 0, 0).SendQueue = 511
	for i := range 12 {
		add(fivetuple.TCP, fivetuple.StateEstablished, "192.168.100.10:80", fmt.Sprintf("203.0.113.%d:%d", 10+i, 40000+i), uint64(i), uint64(i))
	}
	add(fivetuple.TCP, fivetuple.StateEstablished, "[2001:db8::10]:443", "[2001:db8:1:2:3:4:5:6]:50123", 1, 1)
	add(fivetuple.TCP, fivetuple.StateCloseWait, "192.168.100.10:80", "203.0.113.99:40099", 1, 1).RecvQueue = 17
	add(fivetuple.TCP, fivetuple.StateSynSent, "192.168.100.10:51000", "198.51.100.1:25", 0, 0)
	w := add(fivetuple.TCP, fivetuple.StateTimeWait, "192.168.100.10:80", "203.0.113.98:40098", 0, 0)
	w.Inode, w.Timer = 0, sockdiag.Timer{Kind: sockdiag.TimerTimeWait, Expires: 42 * time.Second}
	add(fivetuple.UDP, fivetuple.StateClose, "127.0.0.53:53", "", 0, 0)
	return newKernel(all...)
}

// move lets data flow: 100 KiB in on the first connection, 90 on the next ...
func (k *kernel) flow(u *user) {
	for i, s := range k.sockets {
		if s.Info != nil && s.State == fivetuple.StateEstablished {
			info := *s.Info
			info.BytesReceived += uint64(max(0, 10-i)) << 10
			info.BytesAcked += uint64(max(0, 10-i)) << 16
			k.sockets[i].Info = &info
		}
	}
	u.second()
}

func TestScreens(t *testing.T) {
	for _, tt := range []struct {
		name string
		keys []string
		do   func(*user)
	}{
		{name: "sockets"},
		{name: "details", keys: []string{"down", "down", "enter"}},
		{name: "kill", keys: []string{"down", "k"}},
		{name: "processes", keys: []string{"g", "down"}},
		{name: "ports", keys: []string{"g", "g"}},
		{name: "help", keys: []string{"?"}},
		{name: "filter", keys: []string{"/"}, do: func(u *user) { u.write("port 80 and (state") }},
		{name: "paused", keys: []string{"s", "p"}},
	} {
		for _, size := range [][2]int{{80, 24}, {120, 40}} {
			t.Run(fmt.Sprintf("%s %dx%d", tt.name, size[0], size[1]), func(t *testing.T) {
				sit(t, Options{}, office(), func(u *user) {
					for i := range u.kernel.sockets {
						u.pids[uint32(1001+i)] = 4711 + i/8
					}
					u.learnOwners()
					u.settle(u.send(tea.WindowSizeMsg{Width: size[0], Height: size[1]}))
					u.kernel.flow(u)
					u.kernel.flow(u)
					u.press(tt.keys...)
					if tt.do != nil {
						tt.do(u)
					}
					golden(t, fmt.Sprintf("%s-%dx%d", tt.name, size[0], size[1]), u.text())
				})
			})
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: write it with -update", err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Whatever the size, the screen has as many lines as there are, none too wide.
func TestScreensFitAnySize(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		u.kernel.flow(u)
		for _, keys := range [][]string{{}, {"down", "enter"}, {"k"}, {"n", "?"}, {"x", "/", "f", "o", "o", "enter"}, {"esc", "g"}, {"g", "g", "g", "p"}} {
			u.press(keys...)
			for _, w := range []int{1, 5, 20, 39, 60, 80, 132, 250} {
				for _, h := range []int{1, 2, 3, 5, 10, 15, 24, 60} {
					u.settle(u.send(tea.WindowSizeMsg{Width: w, Height: h}))
					lines := u.screen()
					if len(lines) != h {
						t.Errorf("%dx%d after %v: %d lines", w, h, keys, len(lines))
					}
					for _, l := range lines {
						if lipgloss.Width(l) > w {
							t.Errorf("%dx%d after %v: a line is %d wide: %q", w, h, keys, lipgloss.Width(l), l)
						}
					}
					u.View()
				}
			}
		}
	})
}

func TestASelectedRowStaysSelectedWhenTheOrderChanges(t *testing.T) {
	sit(t, Options{Sort: "-recvq"}, office(), func(u *user) {
		for i := range u.kernel.sockets {
			u.kernel.sockets[i].RecvQueue = uint32(100 - i)
		}
		u.second()
		u.press("down", "down", "down")
		if got := u.pickedCookie(); got != 3 {
			t.Fatalf("selected %d, want the third", got)
		}
		u.kernel.sockets[2].RecvQueue = 0
		u.second()
		if got, rank := u.pickedCookie(), u.model.page.rank; got != 3 || rank != len(u.kernel.sockets)-1 {
			t.Errorf("selected %d in place %d, want 3 in the last", got, rank)
		}
		u.press("r")
		if got, rank := u.pickedCookie(), u.model.page.rank; got != 3 || rank != 0 {
			t.Errorf("reversed: selected %d in place %d, want 3 in the first", got, rank)
		}
	})
}

func TestASelectedRowBeyondTheScreenKeepsALine(t *testing.T) {
	k := newKernel()
	for i := range 100 {
		s := tcp(uint64(i+1), fmt.Sprintf("10.0.0.2:%d", 1000+i), 0, 0)
		s.RecvQueue = uint32(1000 - i)
		k.sockets = append(k.sockets, s)
	}
	sit(t, Options{Sort: "-recvq"}, k, func(u *user) {
		u.press("up")
		if got := u.pickedCookie(); got != 19 {
			u.Errorf("Up selects %d first, want the last row on the screen", got)
		}
		u.press("esc", "down")
		u.sees("10.0.0.2:1000")
		u.kernel.sockets[0].RecvQueue = 0
		u.second()
		lines := u.screen()
		if last := escape.ReplaceAllString(lines[22], ""); !strings.Contains(last, "10.0.0.2:1000") {
			t.Errorf("the last row is %q, want the selected one", last)
		}
		u.press("up") // the nearest row on the screen
		if got := u.pickedCookie(); got != 20 {
			t.Errorf("selected %d, want the last of the 19 rows on the screen", got)
		}
		u.press("end")
		if got, rank := u.pickedCookie(), u.model.page.rank; got != 1 || rank != 99 {
			t.Errorf("End selects %d in place %d, want 1 in place 99", got, rank)
		}
		u.press("pgup", "pgup", "home")
		if got := u.pickedCookie(); got != 2 {
			t.Errorf("Home selects %d, want 2", got)
		}
	})
}

func TestAClosedSelectedSocketIsSaidToBeClosed(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		u.kernel.flow(u)
		u.press("down")
		cookie := u.pickedCookie()
		u.sees("9.0K")
		u.closeSocket(t.Context(), &table.Row{Socket: sockdiag.Socket{Cookie: cookie}})
		u.second()
		u.sees("closed")
		u.seesNot("9.0K") // it moves nothing any more
		u.press("k")
		u.sees("closed already")
		u.press("esc")
		u.seesNot("closed")
	})
}

// One that the filter no longer matches is not said to be closed.
func TestASelectedSocketOutsideTheFilterIsNotClosed(t *testing.T) {
	sit(t, Options{Filter: "recvq < 10"}, newKernel(tcp(1, "10.0.0.2:1", 0, 0)), func(u *user) {
		u.press("down", "enter")
		u.kernel.sockets[0].RecvQueue = 50
		u.second()
		u.sees("not in the filter any more")
		u.kernel.sockets = nil
		u.second()
		u.second()
		u.sees("closed: tcp")
	})
}

func TestTheFilterIsTyped(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		u.sees("18 sockets")
		u.press("/")
		u.write("udp")
		u.sees("1 socket ")
		u.sees("127.0.0.53:53")
		u.write(" and nonsense =")
		u.sees("^")
		u.sees("column ")
		u.sees("1 socket ") // the last good one goes on
		u.press("enter")    // which is no filter: the prompt stays
		if !u.prompt.open {
			t.Error("Enter closed the prompt on a syntax error")
		}
		u.press("ctrl+u")
		u.sees("18 sockets")
		u.write("state listen")
		u.press("enter")
		if u.prompt.open {
			t.Error("Enter left the prompt open")
		}
		u.sees("filter: state listen")
		u.sees("1 socket ")
		u.press("/")
		u.write(" or udp")
		u.sees("2 sockets")
		u.press("esc")
		u.sees("1 socket ")
		u.sees("filter: state listen")
	})
}

func TestTheLineIsEdited(t *testing.T) {
	p := prompt{}
	for _, k := range []string{"b", "c", "home", "a", "end", "é", " ", "x", "y", "ctrl+w", "backspace", "left", "backspace"} {
		msg := key(k)
		p.key(msg.String(), msg.Text)
	}
	if got, want := string(p.line), "abé"; got != want || p.cursor != 2 {
		t.Errorf("got %q, cursor %d, want %q, 2", got, p.cursor, want)
	}
	p.insert("\x1b]0;\n\tz")
	if got, want := string(p.line), "ab]0;  zé"; got != want {
		t.Errorf("pasted: got %q, want %q", got, want)
	}
}

// A parse of an earlier text that ends late changes nothing.
func TestOnlyTheLatestTextCounts(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		u.press("/")
		u.send(key("8"))
		late := u.parseLine()().(parsedMsg)
		u.press("backspace")
		u.settle(u.send(late))
		u.sees("18 sockets")
	})
}

func TestOnlyAConfirmedSocketIsClosed(t *testing.T) {
	for _, tt := range []struct {
		keys []string
		want int
		sees string
	}{
		{[]string{"k"}, 0, "Choose the socket to close first"},
		{[]string{"down", "k", "n"}, 0, "Nothing was closed"},
		{[]string{"down", "k", "enter"}, 0, "Nothing was closed"},
		{[]string{"down", "k", "esc"}, 0, "Nothing was closed"},
		{[]string{"down", "k", "q"}, 0, "Nothing was closed"},
		{[]string{"down", "k", "y"}, 1, "Closed tcp"},
		{[]string{"g", "down", "k"}, 0, "Choose a single socket"},
	} {
		t.Run(strings.Join(tt.keys, " "), func(t *testing.T) {
			sit(t, Options{}, office(), func(u *user) {
				u.press(tt.keys...)
				u.sees(tt.sees)
				if len(u.closed) != tt.want {
					t.Errorf("closed %v, want %d", u.closed, tt.want)
				}
			})
		})
	}
}

// What is closed is what the question was about, whatever was read since.
func TestWhatIsClosedIsWhatTheQuestionShowed(t *testing.T) {
	sit(t, Options{Sort: "-recvq"}, office(), func(u *user) {
		u.kernel.sockets[4].RecvQueue = 1000
		u.second()
		u.press("down", "k")
		u.sees("192.168.100.10:80 to 203.0.113.13:40003")
		u.sees("no process is known")
		u.kernel.sockets[6].RecvQueue = 5000
		u.second()
		u.sees("192.168.100.10:80 to 203.0.113.13:40003")
		u.press("y")
		if len(u.closed) != 1 || u.closed[0].Cookie != 5 {
			t.Errorf("closed %+v, want the one with cookie 5", u.closed)
		}
		if u.closed[0].Remote != netip.MustParseAddrPort("203.0.113.13:40003") {
			t.Errorf("closed %v", u.closed[0].Remote)
		}
	})
}

func TestWhatBecameOfASocketIsSaid(t *testing.T) {
	for _, tt := range []struct {
		result table.Closed
		err    error
		sees   string
	}{
		{table.NotClosed, fmt.Errorf("x: %w", fs.ErrPermission), "CAP_NET_ADMIN"},
		{table.NotClosed, fmt.Errorf("x: %w", errors.ErrUnsupported), "only the process that holds it"},
		{table.NotClosed, errors.New("disk on fire"), "disk on fire"},
		{table.Gone, nil, "closed before"},
		{table.ShutDown, nil, "Shut down tcp"},
		{table.Aborted, nil, "still bound"},
	} {
		sit(t, Options{}, office(), func(u *user) {
			u.model.kill = func(context.Context, *table.Row) (table.Closed, error) { return tt.result, tt.err }
			u.press("down", "k", "y")
			u.sees(tt.sees)
		})
	}
}

func TestPauseStopsReading(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		u.press("p")
		n := len(u.kernel.queries)
		u.settle(u.send(tickMsg(u.ticks - 1)))
		u.settle(u.send(tickMsg(u.ticks)))
		u.press("down", "s", "g", "pgdown")
		if len(u.kernel.queries) != n {
			t.Errorf("%d readings while paused", len(u.kernel.queries)-n)
		}
		u.sees("PAUSED")
		u.press("p")
		if len(u.kernel.queries) != n+1 {
			t.Error("no reading at once after the pause")
		}
	})
}

func TestKeysWorkDuringAReading(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		reading, msgs := u.read(), make(chan tea.Msg)
		go func() { msgs <- reading() }() // with -race it is seen if a key touches the book
		for _, k := range []string{"down", "down", "s", "g", "g", "g", "g", "end", "enter", "pgup", "/", "x", "esc", "?", "x", "r"} {
			u.send(key(k)) // none of them may touch the book
			u.View()
		}
		u.settle(u.send(<-msgs))
		u.sees("18 sockets")
	})
}

// What lies beyond the page is not to be had during a reading; the nearest row is.
func TestEndDuringAReadingGoesToTheLastKnownRow(t *testing.T) {
	k := newKernel()
	for i := range 200 {
		k.sockets = append(k.sockets, tcp(uint64(i+1), fmt.Sprintf("10.0.0.2:%d", 1000+i), 0, 0))
	}
	sit(t, Options{Sort: "cookie"}, k, func(u *user) {
		reading := u.read()
		u.send(key("end"))
		last := u.model.page.rows[len(u.model.page.rows)-1].Cookie
		if got := u.pickedCookie(); got != last || last == 200 {
			t.Errorf("selected %d, want %d", got, last)
		}
		u.settle(reading)
		u.press("end")
		if got := u.pickedCookie(); got != 200 {
			t.Errorf("selected %d, want 200", got)
		}
	})
}

func TestReadingsThatCostMuchAreRarer(t *testing.T) {
	for _, tt := range []struct{ interval, cost, want time.Duration }{
		{time.Second, 100 * time.Millisecond, time.Second},
		{time.Second, 300 * time.Millisecond, time.Second},
		{time.Second, 600 * time.Millisecond, 2 * time.Second},
		{200 * time.Millisecond, 150 * time.Millisecond, 500 * time.Millisecond},
	} {
		if got := stretched(tt.interval, tt.cost); got != tt.want {
			t.Errorf("interval %v, cost %v: got %v, want %v", tt.interval, tt.cost, got, tt.want)
		}
	}
	sit(t, Options{}, office(), func(u *user) {
		u.cost, u.every = 600*time.Millisecond, 2*time.Second
		u.sees("every 2 s (a reading costs 600.0 ms)")
	})
}

func TestAGroupOpensItsSockets(t *testing.T) {
	sit(t, Options{Filter: "tcp"}, office(), func(u *user) {
		for i := range 4 {
			u.pids[uint32(1002+i)] = 99
		}
		u.learnOwners()
		u.kernel.flow(u)
		u.press("g", "down")
		u.sees("prog/99")
		u.press("enter")
		u.sees("filter: (tcp) and pid:99")
		u.sees("4 sockets")
	})
}

func TestAFailedReadingIsSaid(t *testing.T) {
	sit(t, Options{}, office(), func(u *user) {
		u.kernel.err = errors.New("no buffer space")
		u.second()
		u.sees("reading failed")
		u.sees("203.0.113.10:40000")
		u.kernel.err = nil
		u.second()
		u.seesNot("reading failed")
	})
}

func TestNamesCannotSpeakToTheTerminal(t *testing.T) {
	k := newKernel(sockdiag.Socket{Protocol: fivetuple.Unix, State: fivetuple.StateListen, Cookie: 1, Inode: 1001, Name: "/run/\x1b[2Jx\u202e"})
	sit(t, Options{All: true}, k, func(u *user) {
		u.press("down", "enter")
		if got := u.text(); strings.ContainsAny(got, "\x1b\u202e") {
			t.Errorf("on the screen:\n%q", got)
		}
		u.sees(`/run/\x1b[2Jx`)
	})
}

func TestLeaksAreWarnedOf(t *testing.T) {
	k := newKernel()
	for i := range 150 {
		s := tcp(uint64(i+1), fmt.Sprintf("10.0.0.2:%d", 1000+i), 0, 0)
		s.State = fivetuple.StateCloseWait
		k.sockets = append(k.sockets, s)
	}
	for i := range 90 {
		s := tcp(uint64(1000+i), "10.0.0.9:5432", 0, 0)
		s.Local = netip.AddrPortFrom(s.Local.Addr(), uint16(32000+i))
		k.sockets = append(k.sockets, s)
	}
	sit(t, Options{Ephemeral: fivetuple.PortRange{First: 32000, Last: 32099}}, k, func(u *user) {
		for i := range 150 {
			u.pids[uint32(1001+i)] = 99
		}
		u.learnOwners()
		u.second()
		u.sees("150 connections in CLOSE_WAIT")
		u.sees("90 of 100 local ports")
	})
}

func TestTheLocaleSaysWhetherThereIsUTF8(t *testing.T) {
	for _, tt := range []struct {
		environ string
		want    bool
	}{
		{"LANG=C.UTF-8", true}, {"LANG=C", false}, {"", false}, {"LANG=C.UTF-8 LC_ALL=C", false}, {"LANG=C LC_CTYPE=de_DE.utf8", true}, {"LC_ALL= LANG=C.utf8", true},
	} {
		if got := speaksUTF8(strings.Fields(tt.environ)); got != tt.want {
			t.Errorf("%q: got %t", tt.environ, got)
		}
	}
	sit(t, Options{}, office(), func(u *user) {
		u.ascii = true
		u.kernel.flow(u)
		u.kernel.flow(u)
		u.press("down", "enter")
		if got := u.text(); strings.ContainsFunc(got, func(r rune) bool { return r > 0x7e }) {
			t.Errorf("not ASCII:\n%s", got)
		}
	})
}
