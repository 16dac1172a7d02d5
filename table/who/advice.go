package who

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
	"github.com/fivetuple/fivetuple/port/lease"
	"github.com/fivetuple/fivetuple/stats"
	"github.com/fivetuple/fivetuple/table"
)

// advise says how to free the port: the holders of listeners first, as nothing else
// keeps them from it.
func (s *search) advise(u *use) []Advice {
	if u.key.port == 0 && u.key.name == "" {
		return nil
	}
	var all []Advice
	holders := slices.DeleteFunc(slices.Clone(u.Holders), func(h Holder) bool { return len(u.Listeners) > 0 && len(h.Listening) == 0 })
	plain := []Holder{}
	for _, h := range holders {
		a, ok := s.manager(u, h)
		if !ok {
			plain = append(plain, h)
			continue
		}
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	switch {
	case len(u.Listeners) > 0:
		all = append(all, s.killing(u, plain)...)
		if len(holders) == 0 {
			all = append(all, ownerless(u))
		}
	case len(plain) > 0:
		all = append(all, s.closing(u, plain)...)
	}
	if len(u.Listeners) == 0 {
		all = append(all, leftovers(u)...)
	}
	for _, l := range u.Leases {
		if slices.ContainsFunc(holders, func(h Holder) bool { return h.PID == l.Owner.PID }) {
			continue // it ends with the process
		}
		a := Advice{Text: fmt.Sprintf("the port is leased to %s, and would stay so", l.Owner)}
		a.Command = fmt.Sprintf("ft port release %d", l.Port)
		if l.Protocol.Protocol() != fivetuple.TCP {
			a.Command += " --proto " + l.Protocol.Protocol().String()
		}
		all = append(all, a)
	}
	return all
}

// manager is the way to stop a process that somebody looks after: killed, it would
// often be started again.
func (s *search) manager(u *use, h Holder) (Advice, bool) {
	port := strconv.Itoa(int(u.key.port))
	switch {
	case h.Container != "":
		return s.stopContainer(h), true
	case h.Command == "docker-proxy":
		return Advice{Command: "docker stop $(docker ps -q --filter publish=" + port + ")",
			Text: "docker-proxy holds the port for a container; it ends with it"}, true
	case h.PID == 1 && h.Command == "systemd":
		return Advice{Command: "systemctl list-sockets --all",
			Text: "systemd itself listens, to start a service when somebody connects: find the .socket unit and stop it (systemctl stop NAME.socket)"}, true
	case strings.HasSuffix(h.Unit, ".service") && strings.Contains(h.cgroup, "/user@") && !strings.HasPrefix(h.Unit, "user@"):
		return Advice{Command: "systemctl --user stop " + shellWord(h.Unit), Text: "as user " + h.User + ": a service of theirs"}, true
	case strings.HasSuffix(h.Unit, ".service") && !strings.HasPrefix(h.Unit, "user@"):
		a := Advice{Command: "systemctl stop " + shellWord(h.Unit), Text: "a service: systemd may start it again if it is killed"}
		if s.isOwn(h.Process) {
			a.Text += "; " + ownSession
		}
		return a, true
	}
	return Advice{}, false
}

const ownSession = "MIND: this session runs below it and may end with it"

// stopContainer names the engine by the path of the control group.
func (s *search) stopContainer(h Holder) Advice {
	id := h.Container
	isHash := len(id) == 64
	if isHash {
		id = id[:12]
	}
	a := Advice{Text: "it runs in a container"}
	switch {
	case strings.Contains(h.cgroup, "libpod"):
		a.Command = "podman stop " + id
	case strings.Contains(h.cgroup, "cri-containerd"), strings.Contains(h.cgroup, "crio"), strings.Contains(h.cgroup, "kubepods"):
		a.Command = "crictl stop " + id
		a.Text = "it runs in a container, of Kubernetes probably, which starts it again: scale down or delete what it belongs to (kubectl)"
	case isHash:
		a.Command = "docker stop " + id
	case strings.Contains(h.cgroup, "lxc"):
		a.Command = "lxc-stop -n " + shellWord(id)
	default:
		a.Command = "machinectl poweroff " + shellWord(id)
	}
	return a
}

// killing is the way to end processes that nobody looks after. A listener is free
// when all that hold it have ended.
func (s *search) killing(u *use, holders []Holder) []Advice {
	if len(holders) == 0 {
		return nil
	}
	what := "ends it (SIGTERM)"
	if own := slices.IndexFunc(holders, func(h Holder) bool { return s.isOwn(h.Process) }); own >= 0 {
		what += "; " + ownSession
	}
	if len(holders) == 1 {
		h := holders[0]
		if slices.ContainsFunc(u.Leases, func(l lease.Lease) bool { return l.Owner.PID == h.PID }) {
			what += ", and with it its lease"
		}
		return []Advice{{Command: "kill " + strconv.Itoa(h.PID), Text: what}}
	}
	if u.MoreHolders > 0 {
		return []Advice{{Command: fmt.Sprintf("ft ls -a -o ndjson sport = :%d", u.key.port),
			Text: fmt.Sprintf("lists all %d processes: the port is free when each of them has closed it", len(u.Holders)+u.MoreHolders)}}
	}
	if parent, ok := commonParent(holders); ok {
		return []Advice{{Command: "kill " + strconv.Itoa(parent.PID),
			Text: fmt.Sprintf("%s; it started the others, which usually end with it: the port is free when all %d have", what, len(holders))}}
	}
	var pids []string
	for _, h := range holders {
		pids = append(pids, strconv.Itoa(h.PID))
	}
	return []Advice{{Command: "kill " + strings.Join(pids, " "), Text: strings.Replace(what, "it (", "them (", 1) + "; the port is free when all have closed it"}}
}

// commonParent is the holder from whom all others descend.
func commonParent(holders []Holder) (owner.Process, bool) {
	for _, h := range holders {
		others := slices.DeleteFunc(slices.Clone(holders), func(o Holder) bool { return o.Process == h.Process })
		if !slices.ContainsFunc(others, func(o Holder) bool {
			return !slices.ContainsFunc(o.Ancestors, func(a owner.Process) bool { return a.PID == h.PID && a.Start == h.Start })
		}) {
			return h.Process, true
		}
	}
	return owner.Process{}, false
}

// closing is the way to end connections from a port that nobody listens on.
func (s *search) closing(u *use, holders []Holder) []Advice {
	all := []Advice{closeConnections(u)}
	return append(all, s.killing(u, holders)...)
}

func closeConnections(u *use) Advice {
	open := slices.DeleteFunc(slices.Clone(u.rows), func(r *table.Row) bool { return waits(r) || r.State == fivetuple.StateTimeWait })
	if len(open) == 1 && open[0].Cookie != 0 {
		return Advice{Command: fmt.Sprintf("ft kill cookie:%x", open[0].Cookie), Text: "closes the connection and leaves the process running"}
	}
	return Advice{Command: fmt.Sprintf("ft kill %s sport = :%d", u.key.protocol, u.key.port), Text: "closes the connections and leaves the processes running"}
}

// leftovers are connections that no process holds any more, or not yet.
func leftovers(u *use) (all []Advice) {
	counts := map[fivetuple.State]int{}
	orphans := 0
	for _, r := range u.rows {
		counts[r.State]++
		if len(r.Owners) == 0 && r.Inode == 0 && r.State.Phase() == fivetuple.PhaseClosing && r.State != fivetuple.StateTimeWait {
			orphans++
		}
	}
	if n := counts[fivetuple.StateTimeWait]; n > 0 {
		all = append(all, Advice{Text: fmt.Sprintf("%s in TIME_WAIT: a server that sets SO_REUSEADDR, as most do, can listen at once; another must wait %s",
			count(n, "connection"), stats.FormatDuration(u.TimeWait))})
	}
	if orphans > 0 {
		all = append(all, Advice{Command: fmt.Sprintf("ft kill %s sport = :%d", u.key.protocol, u.key.port),
			Text: fmt.Sprintf("%s that no process has any more; the kernel ends them when the peer answers, or gives up after a while", count(orphans, "closing connection"))})
	}
	return all
}

// ownerless says what to do about a listener that nobody is seen to hold.
func ownerless(u *use) Advice {
	if u.Ownerless[table.Denied.String()] > 0 {
		return Advice{Command: fmt.Sprintf("sudo ft who %d", u.key.port), Text: "shows the process: it is another user's, whom this one may not look into"}
	}
	return Advice{Text: "no process that is seen from here has it: one outside this container or PID namespace, or the kernel itself (NFS, WireGuard, ...)"}
}

// shellWord quotes what a shell would not take as it is.
func shellWord(s string) string {
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.@:", c)) {
			return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
		}
	}
	return s
}
