package owner

import (
	"strings"
	"testing"
)

const (
	id64  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	id64b = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
)

func TestCgroupPathsNameUnitAndContainer(t *testing.T) {
	for _, c := range []struct{ path, unit, container string }{
		{"/", "", ""},
		{"", "", ""},
		{"/init.scope", "init.scope", ""},
		{"/system.slice/nginx.service", "nginx.service", ""},
		{"/system.slice/nginx.service/worker", "nginx.service", ""},
		{"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", ""},
		{"/system.slice/system-postgresql.slice/postgresql@16-main.service", "postgresql@16-main.service", ""},
		{`/system.slice/srv-data\x2dold.mount`, `srv-data\x2dold.mount`, ""},
		{"/system.slice/docker.socket", "docker.socket", ""},
		{"/system.slice/_cpu.service", "cpu.service", ""},
		{"/system.slice", "", ""},
		{"/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-1234.scope", "app-firefox-1234.scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/dev.service", "dev.service", ""},
		{"/.service", "", ""},
		// docker: systemd as the driver, then the file system, then an older systemd
		{"/system.slice/docker-" + id64 + ".scope", "docker-" + id64 + ".scope", id64},
		{"/docker/" + id64, "", id64},
		{"/system.slice/docker.service", "docker.service", ""},
		{"/system.slice/docker-" + id64 + ".scope/init.scope", "init.scope", id64},
		{"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id64 + ".scope", "docker-" + id64 + ".scope", id64}, // rootless
		{"/docker/" + id64 + "/docker/" + id64b, "", id64b},
		{"/docker/" + id64 + "/system.slice/nginx.service", "nginx.service", id64},
		// podman
		{"/machine.slice/libpod-" + id64 + ".scope", "libpod-" + id64 + ".scope", id64},
		{"/machine.slice/libpod-" + id64 + ".scope/container", "libpod-" + id64 + ".scope", id64},
		{"/machine.slice/libpod-conmon-" + id64 + ".scope", "libpod-conmon-" + id64 + ".scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id64 + ".scope/container", "libpod-" + id64 + ".scope", id64},
		{"/libpod_parent/libpod-" + id64, "", id64},
		{"/libpod_parent/conmon", "", ""},
		{"/system.slice/web.service/libpod-payload-" + id64, "web.service", id64},
		// Kubernetes
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2f6a_1.slice/cri-containerd-" + id64 + ".scope", "cri-containerd-" + id64 + ".scope", id64},
		{"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice/crio-" + id64 + ".scope", "crio-" + id64 + ".scope", id64},
		{"/kubepods.slice/kubepods-podx.slice/crio-conmon-" + id64 + ".scope", "crio-conmon-" + id64 + ".scope", ""},
		{"/kubepods/burstable/pod0a1b2c3d-0000-1111-2222-333344445555/" + id64, "", id64},
		{"/kubepods/besteffort/pod0a1b2c3d-0000-1111-2222-333344445555/crio-" + id64, "", id64},
		{"/system.slice/containerd.service/kubepods-burstable-podx.slice:cri-containerd:" + id64, "containerd.service", id64},
		{"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podx.slice/cri-containerd-" + id64 + ".scope", "cri-containerd-" + id64 + ".scope", id64},
		{"/docker/" + id64 + "/kubelet/kubepods/besteffort/podx/" + id64b, "", id64b}, // kind
		{"/kubepods.slice/kubepods-podx.slice", "", ""},
		// others
		{"/system.slice/nerdctl-" + id64 + ".scope", "nerdctl-" + id64 + ".scope", id64},
		{"/ecs/0123456789abcdef/" + id64, "", id64},
		{"/lxc.payload.web", "", "web"},
		{"/lxc.payload.web/system.slice/nginx.service", "nginx.service", "web"},
		{"/lxc.payload/web/init.scope", "init.scope", "web"},
		{"/lxc.monitor.web", "", ""},
		{"/lxc/101/ns/system.slice/ssh.service", "ssh.service", "101"},
		{"/machine.slice/machine-web.scope", "machine-web.scope", "web"},
		{`/machine.slice/machine-debian\x2dtree.scope/payload/system.slice/ssh.service`, "ssh.service", "debian-tree"},
		{`/machine.slice/machine-qemu\x2d1\x2dubuntu.scope/libvirt/emulator`, `machine-qemu\x2d1\x2dubuntu.scope`, "qemu-1-ubuntu"},
		{"/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn@web.service", "web"},
		// what only looks like it
		{"/system.slice/docker-0123456789ab.scope", "docker-0123456789ab.scope", ""},
		{"/x/" + strings.ToUpper(id64), "", ""},
		{"/x/" + id64 + "0", "", ""},
		{"/x/" + strings.Replace(id64, "0", "g", 1), "", ""},
		{"/machine.slice/machine-\x1b.scope", `machine-\x1b.scope`, `\x1b`},
	} {
		got := cgroupAt(c.path)
		if got.Unit != c.unit || got.Container != c.container {
			t.Errorf("%q\ngot  unit %q, container %q\nwant unit %q, container %q", c.path, got.Unit, got.Container, c.unit, c.container)
		}
	}
}

func TestCgroupOfAProcessIsOneThatIsManaged(t *testing.T) {
	for _, c := range []struct{ name, file, path, unit, container string }{
		{"cgroup2", "0::/system.slice/a.service\n", "/system.slice/a.service", "a.service", ""},
		{"both", "2:memory:/x\n1:name=systemd:/system.slice/a.service\n0::/\n", "/system.slice/a.service", "a.service", ""},
		{"both, cgroup2 managed", "1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n", "/system.slice/b.service", "b.service", ""},
		{"version 1", "5:cpu,cpuacct:/docker/" + id64 + "\n4:memory:/docker/" + id64 + "\n0::/\n", "/docker/" + id64, "", id64},
		{"version 1, not all controllers", "5:memory:/docker/" + id64 + "\n4:rdma:/\n", "/docker/" + id64, "", id64},
		{"nothing managed", "5:cpu:/a\n0::/b\n", "/b", "", ""},
		{"outside the cgroup namespace", "0::/../other.slice/a.service\n", "/../other.slice/a.service", "a.service", ""},
		{"removed", "0::/system.slice/a.service (deleted)\n", "/system.slice/a.service", "a.service", ""},
		{"a colon in the path", "0::/x/s.slice:docker:" + id64 + "\n", "/x/s.slice:docker:" + id64, "", id64},
		{"empty", "", "", "", ""},
		{"not such a file", "a\nb:c\n", "", "", ""},
	} {
		got := cgroupIn(c.file)
		want := Cgroup{Path: c.path, Unit: c.unit, Container: c.container}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, want)
		}
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/system.slice/docker-" + id64 + ".scope\n")
	f.Add(`1:name=systemd:/machine.slice/machine-a\x2d\x.scope`)
	f.Fuzz(func(t *testing.T, file string) {
		c := cgroupIn(file)
		for _, s := range []string{c.Path, c.Unit, c.Container} {
			if strings.ContainsAny(s, "\x1b\n\x00\a") {
				t.Errorf("%q: got %q, which speaks to the terminal", file, s)
			}
		}
	})
}
