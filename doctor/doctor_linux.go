package doctor

import (
	"context"
	"errors"
	"io/fs"
)

// check is one thing to look at. run returns a finding for each bad subject,
// or one that says all is well; what it cannot read is an error. Examine fills
// in Check and Group.
type check struct {
	group, name string
	run         func(*machine) ([]Finding, error)
}

// checks are all there are, in the order of the findings.
var checks = []check{
	{"descriptors", "descriptors_process", descriptorsProcess},
	{"descriptors", "descriptors_machine", descriptorsMachine},
	{"descriptors", "descriptors_ceiling", descriptorsCeiling},
	{"descriptors", "descriptors_near_limit", descriptorsNearLimit},

	{"buffers", "pipe_pages", pipePages},
	{"buffers", "pipe_size", pipeSize},
	{"buffers", "receive_buffer", receiveBuffer},
	{"buffers", "send_buffer", sendBuffer},
	{"buffers", "tcp_receive_buffer", tcpReceiveBuffer},
	{"buffers", "tcp_send_buffer", tcpSendBuffer},
	{"buffers", "tcp_autotuning", tcpAutotuning},
	{"buffers", "tcp_window_scaling", tcpWindowScaling},
	{"buffers", "tcp_memory", tcpMemory},
	{"buffers", "udp_memory", udpMemory},
	{"buffers", "option_memory", optionMemory},
	{"buffers", "packet_backlog", packetBacklog},

	{"backlog", "listen_backlog", listenBacklog},
	{"backlog", "syn_backlog", synBacklog},
	{"backlog", "abort_on_overflow", abortOnOverflow},
	{"backlog", "listen_overflows", listenOverflows},
	{"backlog", "accept_queue", acceptQueue},

	{"ports", "ephemeral_range", ephemeralRange},
	{"ports", "ephemeral_exhaustion", ephemeralExhaustion},
	{"ports", "time_wait_reuse", timeWaitReuse},
	{"ports", "time_wait", timeWait},
	{"ports", "unprivileged_ports", unprivilegedPorts},

	{"connections", "close_wait", closeWait},
	{"connections", "fin_wait", finWait},
	{"connections", "fin_timeout", finTimeout},
	{"connections", "orphans", orphans},
	{"connections", "conntrack", conntrack},

	{"rights", "cap_net_admin", capability(capNetAdmin)},
	{"rights", "cap_net_raw", capability(capNetRaw)},
	{"rights", "cap_net_bind_service", capability(capNetBindService)},
	{"rights", "cap_bpf", capability(capBPF)},
	{"rights", "cap_perfmon", capability(capPerfmon)},
	{"rights", "cap_sys_ptrace", capability(capSysPtrace)},
	{"rights", "cap_sys_resource", capability(capSysResource)},
	{"rights", "cap_sys_admin", capability(capSysAdmin)},
	{"rights", "ping_sockets", pingSockets},
	{"rights", "ptrace_scope", ptraceScope},
	{"rights", "hidepid", hidepid},
	{"rights", "user_namespaces", userNamespaces},

	{"kernel", "diag_tcp", diag(tcpDiag)},
	{"kernel", "diag_udp", diag(udpDiag)},
	{"kernel", "diag_unix", diag(unixDiag)},
	{"kernel", "diag_mptcp", diag(mptcpDiag)},
	{"kernel", "diag_raw", diag(rawDiag)},
	{"kernel", "diag_packet", diag(packetDiag)},
	{"kernel", "diag_destroy", diagDestroy},
	{"kernel", "btf", btf},
	{"kernel", "bpf_iterators", bpfIterators},
	{"kernel", "pidfd_getfd", pidfdGetfd},
	{"kernel", "mptcp", mptcp},
	{"kernel", "ipv6", ipv6},
	{"kernel", "tun", tun},
	{"kernel", "packet_sockets", packetSockets},
	{"kernel", "congestion_control", congestionControl},
	{"kernel", "udp_segmentation", udpSegmentation},
	{"kernel", "udp_coalescing", udpCoalescing},
	{"kernel", "cgroup2", cgroup2},
}

func examine(ctx context.Context, o Options) ([]Finding, error) {
	m := newMachine(ctx, o.Root)
	var all []Finding
	for _, c := range checks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		all = append(all, c.examine(m)...)
	}
	return all, nil
}

func (c check) examine(m *machine) []Finding {
	found, err := c.run(m)
	if err != nil {
		found = append(found, unknown(err))
	}
	for i := range found {
		found[i].Group, found[i].Check = c.group, c.name
	}
	return found
}

// unknown is the finding of a check that could not be made.
func unknown(err error) Finding {
	f := Finding{Level: Unknown, Value: err.Error()}
	var path *fs.PathError
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.Fix = "run ft doctor as root"
	case errors.Is(err, fs.ErrNotExist) && errors.As(err, &path):
		f.Value = path.Path + " is not there"
		f.Effect = "It is set for the whole machine, and not shown in a container or another network namespace; or this kernel lacks it."
		f.Fix = "run ft doctor on the host"
	}
	return f
}

// fine and bad make the one finding of a check.
func fine(value string) ([]Finding, error) { return []Finding{{Value: value}}, nil }

func bad(level Level, value, effect, fix string) ([]Finding, error) {
	return []Finding{{Level: level, Value: value, Effect: effect, Fix: fix}}, nil
}

// levelOfUse says how bad it is that so much of a limit is used.
func levelOfUse(used, limit int64) Level {
	switch {
	case limit <= 0:
		return OK
	case float64(used) >= 0.95*float64(limit):
		return Problem
	case float64(used) > 0.8*float64(limit):
		return Warning
	}
	return OK
}
