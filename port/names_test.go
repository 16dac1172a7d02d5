package port_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fivetuple/fivetuple/port"
)

func load(t testing.TB, text string) *port.Names {
	t.Helper()
	path := filepath.Join(t.TempDir(), "services")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	names, err := port.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func address(s port.Service) string {
	return strconv.Itoa(int(s.Port)) + "/" + s.Protocol
}

func TestFileWinsOverTheRegistry(t *testing.T) {
	names := load(t, `
# a comment line
imap2    143/tcp  imap              # Interim Mail Access Protocol
frontend 443/tcp
MyApp    8081/TCP web Portal        # our   own
http     8082/tcp
ssh      22/tcp
webcache 8080/tcp # first
http-alt 8080/tcp proxy # second
mine     80/tcp
`)
	for _, test := range []struct {
		port uint16
		want port.Service
	}{
		{143, port.Service{Name: "imap2", Description: "Interim Mail Access Protocol", Aliases: []string{"imap"}}},
		{443, port.Service{Name: "frontend", Aliases: []string{"https"}}},
		{8081, port.Service{Name: "MyApp", Description: "our own", Aliases: []string{"web", "Portal", "sunproxyadmin"}}},
		{8082, port.Service{Name: "http", Description: "", Aliases: []string{"us-cli"}}},
		{22, port.Service{Name: "ssh", Description: "The Secure Shell (SSH) Protocol"}},
		{8080, port.Service{Name: "webcache", Description: "first", Aliases: []string{"http-alt", "proxy"}}},
		{80, port.Service{Name: "mine", Aliases: []string{"www", "www-http"}}},
		{631, port.Service{Name: "ipp", Description: "IPP (Internet Printing Protocol)", Aliases: []string{"ipps"}}},
	} {
		test.want.Port, test.want.Protocol = test.port, "tcp"
		got, ok := names.Lookup(test.port, "TCP")
		if !ok || !reflect.DeepEqual(got, test.want) {
			t.Errorf("Lookup(%d) = %+v, %v, want %+v", test.port, got, ok, test.want)
		}
		if name := names.Name(test.port, "tcp"); name != test.want.Name {
			t.Errorf("Name(%d) = %q, want %q", test.port, name, test.want.Name)
		}
	}
	if got := names.Name(443, "udp"); got != "https" {
		t.Errorf("Name(443, udp) = %q, want https: the file says nothing of udp", got)
	}
	want := []string{"frontend 443/tcp", "https 443/udp", "https 443/sctp"}
	if got := written(names.Services(443)); !slices.Equal(got, want) {
		t.Errorf("Services(443) = %q, want %q", got, want)
	}
}

func TestNameOfTheFileHasThePortsOfTheFile(t *testing.T) {
	names := load(t, "http 8082/tcp\nfrontend 443/tcp\nmine 591/tcp\nmyApp 8081/tcp web\nmyApp 8090/tcp MYAPP\n")
	for _, test := range []struct {
		name, protocol string
		want           []string
	}{
		{"HTTP", "tcp", []string{"http 8082/tcp"}},
		{"http", "", []string{"http 80/udp", "http 80/sctp", "http 8082/tcp"}},
		{"www", "tcp", []string{"http 80/tcp"}},
		{"https", "tcp", []string{"frontend 443/tcp"}},
		{"frontend", "", []string{"frontend 443/tcp"}},
		{"MYAPP", "TCP", []string{"myApp 8081/tcp", "myApp 8090/tcp"}},
		{"WEB", "", []string{"myApp 8081/tcp"}},
		{"http-alt", "tcp", []string{"mine 591/tcp", "http-alt 8008/tcp", "http-alt 8080/tcp"}},
		{"web", "udp", nil},
		{"nothing", "", nil},
	} {
		if got := written(names.LookupName(test.name, test.protocol)); !slices.Equal(got, test.want) {
			t.Errorf("LookupName(%q, %q) = %q, want %q", test.name, test.protocol, got, test.want)
		}
	}
}

func TestBadLinesOfTheFileArePassedOver(t *testing.T) {
	bad := []string{
		"name", "name 80", "name /tcp", "name 80/", "name tcp/80", "name 0/tcp", "name 65536/tcp", "name -1/tcp", "name 80.5/tcp",
		"name 80/tcp/udp", "name 1/ddp", "#name 4/tcp", "name #4/tcp", "4/tcp name", "\x00\xff\xfe", strings.Repeat("x", 1<<20), "\t \r",
	}
	names := load(t, strings.Join(bad, "\n")+"\nfirst 4/tcp\r\nlast 6/tcp")
	for _, test := range []struct {
		port uint16
		want string
	}{{4, "first"}, {6, "last"}, {80, "http"}, {1, "tcpmux"}} {
		if got := names.Name(test.port, "tcp"); got != test.want {
			t.Errorf("Name(%d) = %q, want %q", test.port, got, test.want)
		}
	}
	if got := names.LookupName("name", "tcp"); len(got) != 1 || got[0].Port != 42 {
		t.Errorf("LookupName(name) = %+v, want only the registry's port 42", got)
	}
}

func TestWellKnownHasThePortsOfTheFile(t *testing.T) {
	names := load(t, "mine 4/tcp\nmine 1023/tcp\nssh 22/tcp\nhigh 1024/tcp\nother 6/udp\n")
	tcp := append(port.WellKnown("tcp"), 4, 1023)
	slices.Sort(tcp)
	if got := names.WellKnown("tcp"); !slices.Equal(got, tcp) {
		t.Errorf("WellKnown(tcp) = %v, want %v", got, tcp)
	}
	if got := names.WellKnown(""); !slices.Contains(got, 4) || !slices.Contains(got, 6) || slices.Contains(got, 1024) {
		t.Errorf("WellKnown() = %v, want 4 and 6 in it but not 1024", got)
	}
}

func TestNamesWithoutAFileAreTheRegistry(t *testing.T) {
	for _, names := range []*port.Names{nil, new(port.Names), load(t, "")} {
		for _, test := range slices.Concat(common, registered) {
			if got := names.Name(test.port, test.protocol); got != test.name {
				t.Errorf("Name(%d, %s) = %q, want %q", test.port, test.protocol, got, test.name)
			}
			got, want := names.LookupName(test.name, ""), port.LookupName(test.name, "")
			if !reflect.DeepEqual(got, want) {
				t.Errorf("LookupName(%s) = %v, want %v", test.name, got, want)
			}
		}
		if got, want := names.WellKnown(""), port.WellKnown(""); !slices.Equal(got, want) {
			t.Errorf("WellKnown() = %v, want %v", got, want)
		}
	}
}

func TestServiceBelongsToTheCaller(t *testing.T) {
	names := load(t, "mine 4/tcp alias\n")
	s, _ := names.Lookup(4, "tcp")
	s.Aliases[0] = "changed"
	if s, _ := names.Lookup(4, "tcp"); s.Aliases[0] != "alias" {
		t.Errorf("the alias became %q through another caller's result", s.Aliases[0])
	}
}

func TestLoadSaysWhichFileIsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no-such-file")
	names, err := port.Load(path)
	if names != nil || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, %v, want an error that names %s", names, err, path)
	}
	if got := names.Name(443, "tcp"); got != "https" {
		t.Errorf("Name(443) without a file = %q, want https", got)
	}
}

// Holds on any machine, whatever its services file says.
func TestSystemAnswers(t *testing.T) {
	names, err := port.System()
	if err != nil {
		t.Fatal(err)
	}
	if s := names.Name(443, "tcp"); s == "" {
		t.Error("port 443/tcp has no name")
	}
}
