package env

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
)

const wholeFile = `
project: shop
range: 20000-29999
ports:
  api:
  db:   {proto: tcp, range: 15432-15532}
  dns:  {proto: both, env: DNS_PORT}
  web:  {port: 3000}
  web.ui-2: 3001
  admin: 3002-3010
  metrics: {addr: "*", proto: udp}
  six: {addr: "::ffff:10.0.0.1", port: 4000, range: 4000-4010}
`

var loopback = netip.MustParseAddr("127.0.0.1")

func TestParseReadsEverySetting(t *testing.T) {
	got, err := parse("ports.yaml", "/home/alice/shop/ports.yaml", []byte(wholeFile))
	if err != nil {
		t.Fatal(err)
	}
	tcp, udp := []fivetuple.Network{fivetuple.TCP}, []fivetuple.Network{fivetuple.UDP}
	within := func(first, last uint16) fivetuple.PortRange { return fivetuple.PortRange{First: first, Last: last} }
	want := []Port{
		{"api", "PORT_API", tcp, loopback, within(20000, 29999), 5},
		{"db", "PORT_DB", tcp, loopback, within(15432, 15532), 6},
		{"dns", "DNS_PORT", []fivetuple.Network{fivetuple.TCP, fivetuple.UDP}, loopback, within(20000, 29999), 7},
		{"web", "PORT_WEB", tcp, loopback, within(3000, 3000), 8},
		{"web.ui-2", "PORT_WEB_UI_2", tcp, loopback, within(3001, 3001), 9},
		{"admin", "PORT_ADMIN", tcp, loopback, within(3002, 3010), 10},
		{"metrics", "PORT_METRICS", udp, netip.IPv6Unspecified(), within(20000, 29999), 11},
		{"six", "PORT_SIX", tcp, netip.MustParseAddr("10.0.0.1"), within(4000, 4000), 12},
	}
	if d := cmp.Diff(want, got.Ports, cmp.AllowUnexported(Port{}), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got.Name != "shop" || !got.shared || got.purpose != "/home/alice/shop/ports.yaml" {
		t.Errorf("got project %q, shared: %v, for %q", got.Name, got.shared, got.purpose)
	}
}

func TestParseTakesShortForms(t *testing.T) {
	for _, tt := range []struct{ name, in string }{
		{"a list", "ports: [api, db]"},
		{"a map", "ports: {api: , db: ~}"},
		{"an empty map for a port", "ports: {api: {}, db: {}}"},
		{"aliases", "ports: {api: &a {addr: 127.0.0.1}, db: *a}"},
		{"JSON", `{"ports": {"api": null, "db": null}}`},
	} {
		got, err := parse("ports.yaml", "/shop/ports.yaml", []byte(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if len(got.Ports) != 2 || got.Ports[0].Name != "api" || got.Ports[1].Name != "db" {
			t.Errorf("%s: got %+v", tt.name, got.Ports)
		}
		if q := got.Ports[1]; q.Range != (fivetuple.PortRange{First: 49152, Last: 65535}) || q.Address != loopback {
			t.Errorf("%s: the defaults are %+v", tt.name, q)
		}
	}
}

func TestParseNamesTheLineAndTheRemedy(t *testing.T) {
	long := strings.Repeat("n", 60)
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", "ports.yaml:1: there is nothing in the file: write ports: [api, db], for example"},
		{"comments alone", "# ports\n", "ports.yaml:1: there is nothing in the file"},
		{"no ports", "project: shop\n", "ports.yaml:1: the file has no ports"},
		{"ports of nothing", "ports:\n", "ports.yaml:1: the file has no ports"},
		{"an empty map", "ports: {}", "ports.yaml:1: the file has no ports"},
		{"an empty list", "ports: []", "ports.yaml:1: the file has no ports"},
		{"not a map", "- api\n- db\n", "ports.yaml:1: the file: a map is needed here"},
		{"ports of one value", "ports: 8080\n", "ports.yaml:1: ports: a map is needed here"},
		{"a port as a list", "ports:\n  api: [1]\n", "ports.yaml:2: a port: a map is needed here"},
		{"a list of maps", "ports:\n  - api: 1\n", "ports.yaml:2: one value is needed here"},
		{"a map for a value", "ports:\n  api: {proto: {}}\n", "ports.yaml:2: one value is needed here"},
		{"an unknown key", "port: 1\nports: [a]\n", `ports.yaml:1: unknown key "port": the file has project, range, ports`},
		{"an unknown setting", "ports:\n  api:\n    prot: tcp\n", `ports.yaml:3: unknown key "prot": a port has proto, addr, port, range, env`},
		{"a merge", "ports:\n  a: &a {proto: udp}\n  b: {<<: *a}\n", `ports.yaml:3: unknown key "<<"`},
		{"a key twice", "ports: [a]\nports: [b]\n", "ports.yaml:2: ports stands at line 1 already"},
		{"a name twice", "ports:\n  api:\n  api:\n", "ports.yaml:3: api stands at line 2 already"},
		{"a name twice in a list", "ports:\n- api\n- api\n", "ports.yaml:3: api and api, at line 2, are both the variable PORT_API"},
		{"one variable of two names", "ports:\n  web-ui:\n  web_ui:\n", "ports.yaml:3: web_ui and web-ui, at line 2, are both the variable PORT_WEB_UI: give one another name, or an env"},
		{"one variable by env", "ports:\n  api:\n  b: {env: PORT_API}\n", "ports.yaml:3: b and api, at line 2, are both the variable PORT_API"},
		{"a bad variable", "ports:\n  api: {env: 1X}\n", `ports.yaml:2: "1X" cannot be the name of a variable`},
		{"a variable that ends its line", "ports:\n  api: {env: \"X\\n\"}\n", `ports.yaml:2: "X\n" cannot be the name of a variable`},
		{"a bad name", "ports:\n  a b:\n", `ports.yaml:2: the name "a b": want letters, digits`},
		{"a name with a newline", "ports:\n  \"a\\nb\":\n", `ports.yaml:2: the name "a\nb": want`},
		{"a name with a slash", "ports:\n  a/b:\n", `ports.yaml:2: the name "a/b": want`},
		{"an empty name", "ports:\n  '':\n", `ports.yaml:2: the name "": want`},
		{"a long name", "project: shop\nports:\n  " + long + ":\n", "ports.yaml:3: the name " + long + " is 1 bytes too long: ports are leased as shop/" + long + ", and the limit is 64"},
		{"a bad project", "project: a/b\nports: [a]\n", `ports.yaml:1: project "a/b": want letters`},
		{"an empty project", "project:\nports: [a]\n", `ports.yaml:1: project "": want letters`},
		{"a backward range", "range: 9-8\nports: [a]\n", `ports.yaml:1: port range "9-8" runs backwards: write 8-9`},
		{"a range of words", "ports:\n  a: {range: x-y}\n", `ports.yaml:2: "x" is not a port number: want a number or a range such as 8000-8090`},
		{"port 0", "ports:\n  a: {port: 0}\n", "ports.yaml:2: port range 0: port 0 is none"},
		{"port 0 in a range", "ports:\n  a: 0-10\n", "ports.yaml:2: port range 0-10: port 0 is none"},
		{"port 65536", "ports:\n  a: 65536\n", "ports.yaml:2: port 65536 is out of range 0-65535"},
		{"many ports for one", "ports:\n  a: {port: 1-2}\n", "ports.yaml:2: port 1-2 is 2 ports: write range: 1-2"},
		{"a port outside", "ports:\n  a: {port: 9, range: 1-8}\n", "ports.yaml:2: port 9 is outside the range 1-8"},
		{"one port twice", "ports:\n  a: 80\n  b: {proto: both, port: 80, addr: '*'}\n", "ports.yaml:3: b and a, at line 2, both want port 80: give one another"},
		{"an unknown protocol", "ports:\n  a: {proto: sctp}\n", `ports.yaml:2: protocol "sctp" is unknown: want tcp, udp or both`},
		{"a host name", "ports:\n  a: {addr: localhost}\n", `ports.yaml:2: "localhost" is not an IP address: want 127.0.0.1, ::1, or "*" for all`},
		{"two documents", "ports: [a]\n---\nports: [b]\n", "ports.yaml:2: a second YAML document begins"},
		{"no YAML", "ports:\n  a: {\n", "ports.yaml:2: not YAML: did not find expected node content"},
		{"no YAML in a second document", "ports: [a]\n---\n[\n", ": not YAML: "},
		{"no text", "ports: \x00", "ports.yaml:1: not YAML: control characters are not allowed"},
	} {
		_, err := parse("ports.yaml", "/s/ports.yaml", []byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than is wrong: %v", tt.name, err)
		}
	}
}

func TestParseFindsAllThatIsWrong(t *testing.T) {
	_, err := parse("a.yaml", "/s/a.yaml", []byte("project: '?'\nrange: x\nports:\n  a: 1\n  b: 1\n  c: {proto: x, addr: y, range: 1-, port: 0, env: é}\n  d:\n  e:\n"))
	if err == nil {
		t.Fatal("got no error")
	}
	var lines []string
	for line := range strings.Lines(err.Error()) {
		lines = append(lines, line[:strings.Index(line, ": ")])
	}
	want := []string{"a.yaml:1", "a.yaml:2", "a.yaml:5", "a.yaml:6", "a.yaml:6", "a.yaml:6", "a.yaml:6", "a.yaml:6"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Errorf("-want +got:\n%s\nof %v", d, err)
	}
}

func TestSamePortNumberOfDifferentSockets(t *testing.T) {
	in := "ports:\n  a: 80\n  b: {port: 80, proto: udp}\n  c: {port: 80, addr: 127.0.0.2}\n  d: {port: 80, addr: '::1'}\n  e: 81-82\n  f: 81-82\n"
	if _, err := parse("ports.yaml", "/s/ports.yaml", []byte(in)); err != nil {
		t.Error(err)
	}
}

func TestFileOfNothingButErrorsIsReadInTime(t *testing.T) {
	_, err := parse("ports.yaml", "/s/ports.yaml", []byte("range: 80\nports:\n"+strings.Repeat("- a\n", maxFile/4)))
	if got, want := strings.Count(fmt.Sprint(err), "\n")+1, 2*(maxFile/4-1); got != want {
		t.Errorf("got %d errors, want %d", got, want)
	}
}

func TestOwnProject(t *testing.T) {
	for _, tt := range []struct{ where, want string }{
		{"/home/alice/shop/ports.yaml", "shop-"},
		{"/ports.yaml", "_-"},
		{"/a b\n/ports.yaml", "a_b_-"},
		{"/" + strings.Repeat("x", 200) + "/ports.yaml", strings.Repeat("x", 23) + "-"},
	} {
		got := ownProject(tt.where)
		if !strings.HasPrefix(got, tt.want) || len(got) != len(tt.want)+8 || !isName(got) {
			t.Errorf("%q: got %q, want %s and a hash", tt.where, got, tt.want)
		}
	}
	if a, b := ownProject("/a/shop/ports.yaml"), ownProject("/b/shop/ports.yaml"); a == b {
		t.Errorf("two checkouts are both %s", a)
	}
}

func TestProjectIsTheSameHoweverItIsReached(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "shop", "ports.yaml"), "ports: [api]")
	if err := os.Symlink("shop", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "other", "x"), "")
	if err := os.Symlink("../shop/ports.yaml", filepath.Join(dir, "other", "ports.yaml")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "shop"))
	want := load(t, filepath.Join(dir, "shop", "ports.yaml")).Name
	for _, path := range []string{"ports.yaml", "../link/ports.yaml", "../shop/./ports.yaml"} {
		if got := load(t, path).Name; got != want {
			t.Errorf("%s: got project %s, want %s", path, got, want)
		}
	}
	if got := load(t, "../other/ports.yaml").Name; got == want {
		t.Errorf("a link in another checkout is the same project, %s", got)
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	write(t, large, strings.Repeat("#\n", maxFile/2)+"\n")
	for _, tt := range []struct{ path, want string }{
		{filepath.Join(dir, "none.yaml"), "none.yaml: no such file or directory"},
		{dir, "is a directory"},
		{large, "large is larger than 64 KiB"},
		{"/dev/zero", "/dev/zero is larger than 64 KiB"},
	} {
		if _, err := Load(tt.path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.path, err, tt.want)
		}
	}
}

func TestPurposeIsTheEndOfThePath(t *testing.T) {
	for _, tt := range []struct{ where, want string }{
		{"/home/alice/shop/ports.yaml", "/home/alice/shop/ports.yaml"},
		{"/a\nb/ports.yaml", `/a\nb/ports.yaml`},
		{"/" + strings.Repeat("x", 127), "/" + strings.Repeat("x", 127)},
		{"/y" + strings.Repeat("x", 127), "..." + strings.Repeat("x", 125)},
		{"/" + strings.Repeat("é", 100), "..." + strings.Repeat("é", 62)},
	} {
		if got := purpose(tt.where); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.where, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, in := range []string{wholeFile, "ports: [api, db]", "ports: &a {x: *a}", "a: &a [*a]", "ports: {a: 0-1, b: {env: '', proto: x}}", "{", "---\n---\n", "? [a]\n: b"} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parse("f", "/shop/f", in)
		if err != nil {
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "f:") {
					t.Errorf("%q names no line", line)
				}
			}
			return
		}
		variables := make(map[string]bool)
		for _, q := range p.Ports {
			if len(p.leaseName(q)) > lease.MaxName || !isName(q.Name) || !isVariable.MatchString(q.Variable) || variables[q.Variable] {
				t.Errorf("%+v of project %q has a bad name", q, p.Name)
			}
			if q.Range.First == 0 || q.Range.First > q.Range.Last || len(q.Protocols) == 0 || !q.Address.IsValid() || q.line == 0 {
				t.Errorf("%+v is no request", q)
			}
			variables[q.Variable] = true
		}
		if len(p.Ports) == 0 {
			t.Error("no ports and no error")
		}
	})
}

func load(t *testing.T, path string) Project {
	t.Helper()
	p, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
