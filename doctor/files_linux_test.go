package doctor

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// healthy are the files of a machine on which all is well.
var healthy = map[string]string{
	"proc/self/limits":    "Limit  Soft Limit  Hard Limit  Units\nMax open files            65536               524288               files     \n",
	"proc/sys/fs/file-nr": "1000\t0\t100000\n",
	"proc/sys/fs/nr_open": "1048576\n",
	"proc/7/limits":       "Max open files            1024                 524288               files\n",
	"proc/7/comm":         "nginx\n",
	"proc/7/fd/0":         "",
	"proc/7/fd/1":         "",
	"proc/8/comm":         "has ended",
	"proc/thread-self/net/sockstat": `sockets: used 15
TCP: inuse 1 orphan 2 tw 3 alloc 99906 mem 4
UDP: inuse 0 mem 117
`,
	"proc/thread-self/net/softnet_stat": "057ab89e 00000000 00000000 00000000\n05e9fedb 00000000 00000000 00000000\n",
	"proc/thread-self/net/netstat": `TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeWaitOverflow
TcpExt: 1 0 0 0
IpExt: InNoRoutes InTruncatedPkts
IpExt: 0 0
`,
	"proc/thread-self/status":    "Name:\tft\nCapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n",
	"proc/thread-self/uid_map":   "         0          0 4294967295\n",
	"proc/thread-self/mountinfo": "22 27 0:21 / /proc rw,relatime - proc proc rw\n31 23 0:28 / /sys/fs/cgroup rw shared:3 - cgroup2 cgroup2 rw\n",

	"proc/sys/fs/pipe-user-pages-soft":                   "16384\n",
	"proc/sys/fs/pipe-max-size":                          "1048576\n",
	"proc/sys/net/core/rmem_max":                         "4194304\n",
	"proc/sys/net/core/wmem_max":                         "4194304\n",
	"proc/sys/net/ipv4/tcp_rmem":                         "4096\t131072\t6291456\n",
	"proc/sys/net/ipv4/tcp_wmem":                         "4096\t16384\t4194304\n",
	"proc/sys/net/ipv4/tcp_moderate_rcvbuf":              "1\n",
	"proc/sys/net/ipv4/tcp_window_scaling":               "1\n",
	"proc/sys/net/ipv4/tcp_mem":                          "1000\t2000\t3000\n",
	"proc/sys/net/ipv4/udp_mem":                          "1000\t2000\t3000\n",
	"proc/sys/net/core/optmem_max":                       "131072\n",
	"proc/sys/net/core/netdev_max_backlog":               "1000\n",
	"proc/sys/net/core/somaxconn":                        "4096\n",
	"proc/sys/net/ipv4/tcp_syncookies":                   "1\n",
	"proc/sys/net/ipv4/tcp_max_syn_backlog":              "2048\n",
	"proc/sys/net/ipv4/tcp_abort_on_overflow":            "0\n",
	"proc/sys/net/ipv4/ip_local_port_range":              "32768\t60999\n",
	"proc/sys/net/ipv4/ip_local_reserved_ports":          "\n",
	"proc/sys/net/ipv4/tcp_tw_reuse":                     "2\n",
	"proc/sys/net/ipv4/tcp_timestamps":                   "1\n",
	"proc/sys/net/ipv4/tcp_max_tw_buckets":               "1000\n",
	"proc/sys/net/ipv4/ip_unprivileged_port_start":       "1024\n",
	"proc/sys/net/ipv4/tcp_fin_timeout":                  "60\n",
	"proc/sys/net/ipv4/tcp_max_orphans":                  "1000\n",
	"proc/sys/net/netfilter/nf_conntrack_count":          "10\n",
	"proc/sys/net/netfilter/nf_conntrack_max":            "1000\n",
	"proc/sys/kernel/yama/ptrace_scope":                  "1\n",
	"proc/sys/net/ipv4/tcp_congestion_control":           "bbr\n",
	"proc/sys/net/ipv4/tcp_available_congestion_control": "reno cubic bbr\n",

	"sys/kernel/btf/vmlinux": "types\x00bpf_iter_task_file\x00more",
}

// probed are the checks that ask the kernel and read no file, or no file only.
var probed = map[string]bool{
	"pipe_pages": true, "ping_sockets": true, "user_namespaces": true,
	"accept_queue": true, "ephemeral_exhaustion": true, "close_wait": true, "fin_wait": true,
	"diag_tcp": true, "diag_udp": true, "diag_unix": true, "diag_mptcp": true, "diag_raw": true, "diag_packet": true,
	"diag_destroy": true, "pidfd_getfd": true, "mptcp": true, "ipv6": true, "tun": true, "packet_sockets": true,
	"udp_segmentation": true, "udp_coalescing": true,
}

// root writes files, but those that are "gone", under a new root.
func root(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for path, text := range files {
		if text == "gone" {
			continue
		}
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// examined makes one check.
func examined(t *testing.T, name string, m *machine) []Finding {
	t.Helper()
	for _, c := range checks {
		if c.name == name {
			return c.examine(m)
		}
	}
	t.Fatalf("there is no check %s", name)
	return nil
}

func TestNothingIsFoundOnAHealthyMachine(t *testing.T) {
	m := &machine{root: root(t, healthy)}
	for _, c := range checks {
		for _, f := range c.examine(m) {
			if f.Level != OK && !probed[c.name] {
				t.Errorf("got %+v, want ok", f)
			}
			if f.Level == OK && (f.Value == "" || f.Effect != "" || f.Fix != "") {
				t.Errorf("got %+v, want a value, no effect and no fix where all is well", f)
			}
		}
	}
}

func TestBadValuesAreFoundWithTheirFix(t *testing.T) {
	status := func(eff, bnd string) string { return "CapEff:\t" + eff + "\nCapBnd:\t" + bnd + "\n" }
	const none, every = "0000000000000000", "000001ffffffffff"
	for _, tt := range []struct {
		check, path, text string
		level             Level
		value, fix        string // parts of them
	}{
		{"descriptors_process", "proc/self/limits", "Max open files   256   524288  files", Note, "soft limit 256, hard limit 524288", "ulimit -n 524288"},
		{"descriptors_process", "proc/self/limits", "Max open files   256   1024  files", Warning, "hard limit 1024", "LimitNOFILE="},
		{"descriptors_process", "proc/self/limits", "Max open files   unlimited   unlimited  files", OK, "hard limit 9223372036854775807", ""},
		{"descriptors_process", "proc/self/limits", "Max cpu time   1   1  s", Unknown, "has no limits of open files", ""},
		{"descriptors_machine", "proc/sys/fs/file-nr", "80001 0 100000", Warning, "80001 of 100000", "sysctl -w fs.file-max=200000"},
		{"descriptors_machine", "proc/sys/fs/file-nr", "80000 0 100000", OK, "80000 of 100000", ""},
		{"descriptors_machine", "proc/sys/fs/file-nr", "95000 0 100000", Problem, "95000 of 100000", "sysctl -w fs.file-max=200000"},
		{"descriptors_machine", "proc/sys/fs/file-nr", "95000 0", Unknown, `fs.file-nr holds "95000 0"`, ""},
		{"descriptors_ceiling", "proc/sys/fs/nr_open", "1024", Note, "1024", "sysctl -w fs.nr_open=1048576"},
		{"pipe_pages", "proc/sys/fs/pipe-user-pages-soft", "1024", Note, "4 MiB", "sysctl -w fs.pipe-user-pages-soft=16384"},
		{"pipe_pages", "proc/sys/fs/pipe-user-pages-soft", "0", OK, "no limit", ""},
		{"pipe_size", "proc/sys/fs/pipe-max-size", "65536", Note, "64 KiB", "sysctl -w fs.pipe-max-size=1048576"},
		{"receive_buffer", "proc/sys/net/core/rmem_max", "212992", Note, "208 KiB", "sysctl -w net.core.rmem_max=4194304"},
		{"send_buffer", "proc/sys/net/core/wmem_max", "212992", Note, "208 KiB", "sysctl -w net.core.wmem_max=4194304"},
		{"tcp_receive_buffer", "proc/sys/net/ipv4/tcp_rmem", "4096 131072 524288", Note, "from 128 KiB to 512 KiB", `sysctl -w net.ipv4.tcp_rmem="4096 131072 6291456"`},
		{"tcp_send_buffer", "proc/sys/net/ipv4/tcp_wmem", "4096 16384 65536", Note, "from 16 KiB to 64 KiB", `sysctl -w net.ipv4.tcp_wmem="4096 16384 6291456"`},
		{"tcp_send_buffer", "proc/sys/net/ipv4/tcp_wmem", "4096 lots", Unknown, "want 3 numbers", ""},
		{"tcp_autotuning", "proc/sys/net/ipv4/tcp_moderate_rcvbuf", "0", Warning, "off", "sysctl -w net.ipv4.tcp_moderate_rcvbuf=1"},
		{"tcp_window_scaling", "proc/sys/net/ipv4/tcp_window_scaling", "0", Warning, "off", "sysctl -w net.ipv4.tcp_window_scaling=1"},
		{"tcp_memory", "proc/thread-self/net/sockstat", "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 2000", Warning, "8000 KiB of all sockets", `sysctl -w net.ipv4.tcp_mem="2000 4000 6000"`},
		{"tcp_memory", "proc/thread-self/net/sockstat", "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 2850", Problem, "of all sockets", `sysctl -w net.ipv4.tcp_mem="2000 4000 6000"`},
		{"tcp_memory", "proc/thread-self/net/sockstat", "UDP: inuse 0 mem 117", Unknown, "has no mem of TCP", ""},
		{"tcp_memory", "proc/sys/net/ipv4/tcp_mem", "gone", Unknown, "net.ipv4.tcp_mem is not there", "on the host"},
		{"udp_memory", "proc/thread-self/net/sockstat", "UDP: inuse 1 mem 3100", Problem, "of all sockets", `sysctl -w net.ipv4.udp_mem="2000 4000 6000"`},
		{"option_memory", "proc/sys/net/core/optmem_max", "10240", Note, "10 KiB", "sysctl -w net.core.optmem_max=131072"},
		{"packet_backlog", "proc/thread-self/net/softnet_stat", "00100000 0000000a 0\n00100000 00000001 0", Note, "11 packets dropped since boot, about 2097152 processed", "sysctl -w net.core.netdev_max_backlog=4000"},
		{"packet_backlog", "proc/thread-self/net/softnet_stat", "00001000 0000000a 0", Warning, "10 packets", "sysctl -w net.core.netdev_max_backlog=4000"},
		{"packet_backlog", "proc/thread-self/net/softnet_stat", "00001000", Unknown, "has a line", ""},
		{"listen_backlog", "proc/sys/net/core/somaxconn", "128", Warning, "128", "sysctl -w net.core.somaxconn=4096"},
		{"listen_backlog", "proc/sys/net/core/somaxconn", "1024", Note, "1024", "sysctl -w net.core.somaxconn=4096"},
		{"syn_backlog", "proc/sys/net/ipv4/tcp_syncookies", "0", Warning, "no SYN cookies, 2048 half-open", "sysctl -w net.ipv4.tcp_syncookies=1"},
		{"syn_backlog", "proc/sys/net/ipv4/tcp_syncookies", "2", Note, "every connection", "sysctl -w net.ipv4.tcp_syncookies=1"},
		{"abort_on_overflow", "proc/sys/net/ipv4/tcp_abort_on_overflow", "1", Note, "on", "sysctl -w net.ipv4.tcp_abort_on_overflow=0"},
		{"listen_overflows", "proc/thread-self/net/netstat", "TcpExt: ListenDrops ListenOverflows\nTcpExt: 9 5", Note, "5 overflows of accept queues, 9 connections dropped by listeners, since boot", "accept(2)"},
		{"listen_overflows", "proc/thread-self/net/netstat", "TcpExt: ListenDrops\nTcpExt: 9", Unknown, "has no ListenOverflows", ""},
		{"ephemeral_range", "proc/sys/net/ipv4/ip_local_port_range", "40000 40499", Warning, "40000-40499, 500 ports", "ip_local_port_range"},
		{"ephemeral_range", "proc/sys/net/ipv4/ip_local_port_range", "40000 49999", Note, "10000 ports", "ip_local_port_range"},
		{"ephemeral_range", "proc/sys/net/ipv4/ip_local_reserved_ports", "80,40000-40999,60999-65535", OK, "27231 ports, 1001 more reserved", ""},
		{"ephemeral_range", "proc/sys/net/ipv4/ip_local_reserved_ports", "40000-", Unknown, "want ports", ""},
		{"ephemeral_range", "proc/sys/net/ipv4/ip_local_port_range", "60000 40000", Unknown, "want two ports", ""},
		{"ephemeral_range", "proc/sys/net/ipv4/ip_local_port_range", "-1 99999", Unknown, "want two ports", ""},
		{"time_wait_reuse", "proc/sys/net/ipv4/tcp_tw_reuse", "0", Note, "none", "sysctl -w net.ipv4.tcp_tw_reuse="},
		{"time_wait_reuse", "proc/sys/net/ipv4/tcp_timestamps", "0", Note, "timestamps are off", "sysctl -w net.ipv4.tcp_timestamps=1"},
		{"time_wait_reuse", "proc/sys/net/ipv4/tcp_tw_reuse", "1", OK, "every destination", ""},
		{"time_wait", "proc/thread-self/net/sockstat", "TCP: inuse 1 orphan 0 tw 900 alloc 1 mem 1", Warning, "900 sockets in TIME_WAIT of 1000", "sysctl -w net.ipv4.tcp_max_tw_buckets=65536"},
		{"time_wait", "proc/thread-self/net/netstat", "TcpExt: TCPTimeWaitOverflow\nTcpExt: 4", Note, "exceeded 4 times since boot", "sysctl -w net.ipv4.tcp_max_tw_buckets="},
		{"unprivileged_ports", "proc/sys/net/ipv4/ip_unprivileged_port_start", "0", OK, "every port", ""},
		{"unprivileged_ports", "proc/sys/net/ipv4/ip_unprivileged_port_start", "5000", Note, "ports from 5000", "=1024"},
		{"fin_timeout", "proc/sys/net/ipv4/tcp_fin_timeout", "180", Note, "180 s", "sysctl -w net.ipv4.tcp_fin_timeout=60"},
		{"orphans", "proc/thread-self/net/sockstat", "TCP: inuse 1 orphan 999 tw 0 alloc 1 mem 1", Problem, "999", "sysctl -w net.ipv4.tcp_max_orphans=2000"},
		{"conntrack", "proc/sys/net/netfilter/nf_conntrack_count", "801", Warning, "801 tracked connections of 1000", "sysctl -w net.netfilter.nf_conntrack_max=2000"},
		{"conntrack", "proc/sys/net/netfilter/nf_conntrack_count", "gone", OK, "not tracked", ""},
		{"cap_net_admin", "proc/thread-self/status", status(none, every), Note, "not in effect", `setcap cap_net_admin+ep "$(command -v ft)"`},
		{"cap_net_admin", "proc/thread-self/status", status(none, none), Note, "not in effect", "--cap-add=NET_ADMIN"},
		{"cap_net_admin", "proc/thread-self/status", status("0000000000001000", every), OK, "in effect", ""},
		{"cap_net_raw", "proc/thread-self/status", status("0000000000001000", every), Note, "not in effect", "setcap cap_net_raw+ep"},
		{"cap_net_raw", "proc/thread-self/uid_map", "0 1000 1", OK, "what belongs to this user namespace", ""},
		{"cap_bpf", "proc/thread-self/uid_map", "0 1000 1", Note, "does not count here", "on the host"},
		{"cap_bpf", "proc/thread-self/status", status("0000000000200000", every), OK, "in effect", ""}, // CAP_SYS_ADMIN
		{"cap_sys_admin", "proc/thread-self/status", "CapEff:\tmany\n", Unknown, "", ""},
		{"ptrace_scope", "proc/thread-self/status", status(none, none), Note, "1, restricted", "ptrace_scope=0"},
		{"ptrace_scope", "proc/sys/kernel/yama/ptrace_scope", "3", Note, "3", "restart"},
		{"ptrace_scope", "proc/sys/kernel/yama/ptrace_scope", "gone", OK, "no Yama", ""},
		{"btf", "sys/kernel/btf/vmlinux", "gone", Note, "no", "CONFIG_DEBUG_INFO_BTF"},
		{"bpf_iterators", "sys/kernel/btf/vmlinux", "bpf_iter_task", Note, "no", "Linux 5.8"},
		{"bpf_iterators", "sys/kernel/btf/vmlinux", "gone", Note, "no", "Linux 5.8"},
		{"cgroup2", "proc/thread-self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw", Note, "not mounted", "mount -t cgroup2"},
		{"cgroup2", "proc/thread-self/mountinfo", "gone", Unknown, "/proc/thread-self/mountinfo is not there", ""},
	} {
		files := maps.Clone(healthy)
		files[tt.path] = tt.text
		found := examined(t, tt.check, &machine{root: root(t, files)})
		f := found[0]
		if len(found) != 1 || f.Check != tt.check || f.Group == "" || f.Level != tt.level || !strings.Contains(f.Value, tt.value) || !strings.Contains(f.Fix, tt.fix) {
			t.Errorf("%s with %s %q\ngot  %+v\nwant %v, %q, fix %q", tt.check, tt.path, tt.text, found, tt.level, tt.value, tt.fix)
		}
		if f.Level > Unknown && (f.Effect == "" || f.Fix == "") {
			t.Errorf("%s with %s %q: got %+v, want an effect and a fix", tt.check, tt.path, tt.text, f)
		}
	}
}

func TestHidepidCountsOnlyWithoutTheRightToSeeAll(t *testing.T) {
	files := maps.Clone(healthy)
	files["proc/thread-self/mountinfo"] = "22 27 0:21 / /proc rw,relatime - proc proc rw,hidepid=invisible\n"
	if f := examined(t, "hidepid", &machine{root: root(t, files)})[0]; f.Level != OK {
		t.Errorf("with CAP_SYS_PTRACE: got %+v, want ok", f)
	}
	files["proc/thread-self/status"] = "CapEff:\t0\nCapBnd:\t0\n"
	if f := examined(t, "hidepid", &machine{root: root(t, files)})[0]; f.Level != Note || f.Value != "hidepid=invisible" {
		t.Errorf("without: got %+v, want a note", f)
	}
	files["proc/thread-self/mountinfo"] += "23 27 0:22 / /proc rw,relatime - proc proc rw\n"
	if f := examined(t, "hidepid", &machine{root: root(t, files)})[0]; f.Level != OK {
		t.Errorf("with another /proc over it: got %+v, want ok", f)
	}
}

func TestTheSoftLimitIsThatOfTheParent(t *testing.T) {
	files := maps.Clone(healthy)
	for soft, want := range map[string]string{"1024": "soft limit 1024, hard limit 524288", "999999": "soft limit 524288, hard limit 524288"} {
		files[fmt.Sprintf("proc/%d/limits", os.Getppid())] = "Max open files   " + soft + "   999999  files"
		if f := examined(t, "descriptors_process", &machine{root: root(t, files)})[0]; f.Value != want {
			t.Errorf("got %+v, want %s", f, want)
		}
	}
}

func TestAUserWhosePipesAreAllUsedUpIsFound(t *testing.T) {
	found, _ := pipeLimit(16384, 4096, 8192, 65536)
	f := found[0]
	if f.Level != Problem || f.Value != "64 MiB of all pipes of a user, reached: a new pipe holds 8 KiB" || f.Fix != "sysctl -w fs.pipe-user-pages-soft=65536" {
		t.Errorf("got %+v", f)
	}
}

func TestReservedPortsAreNotEphemeral(t *testing.T) {
	files := maps.Clone(healthy)
	files["proc/sys/net/ipv4/ip_local_reserved_ports"] = "40000,40005-40006"
	r, err := (&machine{root: root(t, files)}).ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]bool{32767: false, 32768: true, 39999: true, 40000: false, 40005: false, 40006: false, 40007: true, 60999: true, 61000: false} {
		if got := r.has(port); got != want {
			t.Errorf("port %d: got %v, want %v", port, got, want)
		}
	}
}

func TestAProcessNearItsLimitIsNamed(t *testing.T) {
	for _, tt := range []struct {
		used, soft, hard, ceiling int64
		level                     Level
		fix                       string
	}{
		{80, 100, 1000, 5000, OK, ""},
		{81, 100, 1000, 5000, Warning, "prlimit --pid 7 --nofile=1000:1000"},
		{95, 100, 100, 5000, Problem, "prlimit --pid 7 --nofile=200:200"},
		{95, 100, 100, 150, Problem, "prlimit --pid 7 --nofile=150:150"},
		{95, 100, 100, 100, Problem, "sysctl -w fs.nr_open=200, then prlimit --pid 7 --nofile=200:200"},
		{0, 0, 0, 100, OK, ""},
	} {
		f, near := nearLimit(tt.used, tt.soft, tt.hard, tt.ceiling, "7")
		if f.Level != tt.level || f.Fix != tt.fix || near != (tt.level != OK) {
			t.Errorf("%+v\ngot %v, %+v", tt, near, f)
		}
	}
}

func TestFilesThatMakeNoSenseAreUnknown(t *testing.T) {
	for _, text := range []string{"gone", "", "x", "-", "\x00\xff", "99999999999999999999 99999999999999999999 99999999999999999999", strings.Repeat("q z\n", 9)} {
		files := maps.Clone(healthy)
		for path := range files {
			if !strings.HasPrefix(path, "proc/7") && !strings.HasPrefix(path, "proc/8") {
				files[path] = text
			}
		}
		m := &machine{root: root(t, files)}
		for _, c := range checks {
			found := c.examine(m)
			if len(found) == 0 {
				t.Errorf("files %q: %s found nothing", text, c.name)
			}
			for _, f := range found {
				if f.Level == Problem || f.Level == Warning {
					t.Errorf("files %q: got %+v", text, f)
				}
			}
		}
		for _, name := range []string{"descriptors_process", "tcp_memory", "listen_overflows", "ephemeral_range", "cap_net_raw", "time_wait"} {
			if f := examined(t, name, m)[0]; f.Level != Unknown {
				t.Errorf("files %q: got %+v, want unknown", text, f)
			}
		}
	}
}

func TestWhatMayNotBeReadIsUnknown(t *testing.T) {
	err := &os.PathError{Op: "open", Path: "net.core.x", Err: os.ErrPermission}
	f := unknown(fmt.Errorf("wrapped: %w", err))
	if f.Level != Unknown || !strings.Contains(f.Value, "net.core.x: permission denied") || !strings.Contains(f.Fix, "root") {
		t.Errorf("got %+v", f)
	}
}

func TestSizesAreWrittenForPeople(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 bytes", 4096: "4 KiB", 212992: "208 KiB", 1 << 20: "1 MiB", 6291456: "6 MiB", 1500 << 20: "1500 MiB", 2 << 30: "2 GiB", 33 << 30: "33 GiB"} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d): got %q, want %q", bytes, got, want)
		}
	}
}

func TestChecksHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range checks {
		if seen[c.name] || strings.ToLower(c.name) != c.name || strings.ContainsAny(c.name, " -") {
			t.Errorf("check %q: the name is taken, or not in snake_case", c.name)
		}
		seen[c.name] = true
	}
}
