package who

import (
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/owner"
)

func TestAdviceGoesToWhoeverLooksAfterTheProcess(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct {
		name    string
		holder  Holder
		command string
	}{
		{"a process", Holder{Process: owner.Process{PID: 7}}, "kill 7"},
		{"a login session", Holder{Process: owner.Process{PID: 7}, Unit: "session-3.scope", cgroup: "/user.slice/session-3.scope"}, "kill 7"},
		{"a service", Holder{Unit: "nginx.service", cgroup: "/system.slice/nginx.service"}, "systemctl stop nginx.service"},
		{"an instance", Holder{Unit: "a@b.service", cgroup: "/system.slice/a@b.service"}, "systemctl stop a@b.service"},
		{"an odd name", Holder{Unit: `a\x20b;c.service`, cgroup: "/system.slice/x"}, `systemctl stop 'a\x20b;c.service'`},
		{"a user's service", Holder{Unit: "web.service", cgroup: "/user.slice/user@1000.service/app.slice/web.service"}, "systemctl --user stop web.service"},
		{"systemd", Holder{Process: owner.Process{PID: 1, Command: "systemd"}, Unit: "init.scope"}, "systemctl list-sockets --all"},
		{"docker", Holder{Container: id, Unit: "docker.service", cgroup: "/docker/" + id}, "docker stop 0123456789ab"},
		{"podman", Holder{Container: id, cgroup: "/machine.slice/libpod-" + id + ".scope"}, "podman stop 0123456789ab"},
		{"kubernetes", Holder{Container: id, cgroup: "/kubepods.slice/cri-containerd-" + id + ".scope"}, "crictl stop 0123456789ab"},
		{"lxc", Holder{Container: "web", cgroup: "/lxc.payload.web"}, "lxc-stop -n web"},
		{"nspawn", Holder{Container: "web", cgroup: "/machine.slice/machine-web.scope"}, "machinectl poweroff web"},
		{"docker-proxy", Holder{Process: owner.Process{Command: "docker-proxy"}, Unit: "docker.service"}, "docker stop $(docker ps -q --filter publish=8080)"},
	} {
		c.holder.Listening = []int{3}
		u := &use{key: key{protocol: fivetuple.TCP, port: 8080}}
		u.Listeners, u.Holders = []Listener{{}}, []Holder{c.holder}
		got := new(search).advise(u)
		if len(got) != 1 || got[0].Command != c.command {
			t.Errorf("%s: got %+v, want %q", c.name, got, c.command)
		}
	}
}

func TestAParentIsKnownByItsStartToo(t *testing.T) {
	parent := owner.Process{PID: 7, Start: 5}
	for _, c := range []struct {
		start uint64
		want  bool
	}{{5, true}, {4, false}} {
		child := Holder{Process: owner.Process{PID: 8, Start: 9}, Ancestors: []owner.Process{{PID: 7, Start: c.start}, {PID: 1}}}
		if got, ok := commonParent([]Holder{{Process: parent}, child}); ok != c.want || ok && got != parent {
			t.Errorf("got %v, %v, want %v", got, ok, c.want)
		}
	}
}

func TestAHolderThatRunsThisOneIsWarnedOf(t *testing.T) {
	s := &search{}
	s.self = []owner.Process{{PID: 7, Start: 1}}
	for _, c := range []struct {
		start uint64
		want  bool
	}{{1, true}, {2, false}} {
		u := &use{key: key{protocol: fivetuple.TCP, port: 22}}
		u.Listeners = []Listener{{}}
		u.Holders = []Holder{{Process: owner.Process{PID: 7, Start: c.start}, Listening: []int{3}}}
		got := s.advise(u)
		if len(got) != 1 || strings.Contains(got[0].Text, "MIND") != c.want {
			t.Errorf("got %+v, want a warning: %v", got, c.want)
		}
	}
}
