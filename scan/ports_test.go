package scan_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fivetuple/fivetuple/port"
	"github.com/fivetuple/fivetuple/scan"
)

func TestParsePorts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services")
	if err := os.WriteFile(path, []byte("app 8081/tcp\napp 9001/tcp\nmine 4/tcp\nonly 70/udp\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	names, err := port.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text, want string
		len        int
	}{
		{"22", "22", 1},
		{"8080-8090", "8080-8090", 11},
		{"22,80,443,8000-8010", "22,80,443,8000-8010", 14},
		{"443, 80 ,22", "22,80,443", 3},
		{"80,80,79-81,82,84", "79-82,84", 5},
		{"1-10,5-20,21", "1-21", 21},
		{"http,HTTPS", "80,443", 2},
		{"http-alt", "591,8008,8080", 3},
		{"app", "8081,9001", 2},
		{"-", "1-65535", 65535},
		{"all", "1-65535", 65535},
		{"All,22", "1-65535", 65535},
		{"-1023", "1-1023", 1023},
		{"49152-", "49152-65535", 16384},
		{"65535,1", "1,65535", 2},
		{"007", "7", 1},
	} {
		got, err := scan.ParsePorts(tt.text, names)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got.String() != tt.want || got.Len() != tt.len {
			t.Errorf("%q: got %s of %d ports, want %s of %d", tt.text, got, got.Len(), tt.want, tt.len)
		}
	}
	got, err := scan.ParsePorts("well-known", names)
	if want := names.WellKnown("tcp"); err != nil || !slices.Equal(slices.Collect(got.All()), want) || !slices.Contains(want, 4) {
		t.Errorf("well-known: got %v, %v, want %v", got, err, want)
	}
}

func TestParsePortsSaysWhatIsWrongWhere(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", `ports "": column 1: no port is given: write 22, 8000-8010, https, well-known or all`},
		{"22,,80", `ports "22,,80": column 4: no port is given: write 22, 8000-8010, https, well-known or all`},
		{"22,80,", `ports "22,80,": column 7: no port is given: write 22, 8000-8010, https, well-known or all`},
		{"22,  x y", `ports "22,  x y": column 6: unknown service "x y" over tcp: write the port number`},
		{"é,ü", `ports "é,ü": column 1: unknown service "é" over tcp: write the port number`},
		{"ssh,é", `ports "ssh,é": column 5: unknown service "é" over tcp: write the port number`},
		{"syslog", `ports "syslog": column 1: unknown service "syslog" over tcp: write the port number`},
		{"80,65536", `ports "80,65536": column 4: port 65536 is out of range 0-65535`},
		{"0", `ports "0": column 1: port 0 cannot be connected to: ports are 1 to 65535`},
		{"0-", `ports "0-": column 1: port 0 cannot be connected to: ports are 1 to 65535`},
		{"90-80", `ports "90-80": column 1: port range "90-80" runs backwards: write 80-90`},
		{"1-2-3", `ports "1-2-3": column 1: "2-3" is not a port number`},
		{"--", `ports "--": column 1: "-" is not a port number`},
	} {
		got, err := scan.ParsePorts(tt.text, nil)
		if err == nil || err.Error() != tt.want || got.Len() != 0 {
			t.Errorf("got %v, %v, want %s", got, err, tt.want)
		}
	}
	if _, err := scan.ParsePorts("nonesuch", nil); !errors.Is(err, port.ErrUnknown) {
		t.Errorf("got %v, want port.ErrUnknown", err)
	}
}

func TestPorts(t *testing.T) {
	got := scan.Ports(443, 0, 80, 81, 80, 65535)
	if want := "80-81,443,65535"; got.String() != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if got := scan.Ports(0); got.Len() != 0 {
		t.Errorf("port 0: got %v, want none", got)
	}
}

// Whatever parses is an ascending set of ports but 0 that prints and parses back equal.
func FuzzParsePorts(f *testing.F) {
	for _, seed := range []string{"22", "8080-8090", "22,80,443,8000-8010", "http,https", "well-known", "-", "all", "-9,5-,7", " 1 ,, 2", "0-0", "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set, err := scan.ParsePorts(text, nil)
		if err != nil {
			return
		}
		ports := slices.Collect(set.All())
		if len(ports) == 0 || len(ports) != set.Len() {
			t.Fatalf("%q: %d ports where Len is %d", text, len(ports), set.Len())
		}
		previous := uint16(0)
		for _, p := range ports {
			if p <= previous {
				t.Fatalf("%q: port %d comes after %d", text, p, previous)
			}
			previous = p
		}
		again, err := scan.ParsePorts(set.String(), nil)
		if err != nil || !slices.Equal(slices.Collect(again.All()), ports) {
			t.Fatalf("%q: %s parses as %v, %v", text, set, again, err)
		}
	})
}
