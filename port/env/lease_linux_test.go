package env

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/port/lease"
)

// ports runs `ft port env` and returns its lines: "PORT_API=50000 DNS_PORT=53".
func ports(t *testing.T, registry lease.Registry, file string) string {
	t.Helper()
	variables, err := load(t, file).Lease(t.Context(), registry)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, v := range variables {
		lines = append(lines, fmt.Sprintf("%s=%d", v.Name, v.Port))
	}
	return strings.Join(lines, " ")
}

// leased returns what the registry lists: "shop/api tcp 127.0.0.1:50000".
func leased(t *testing.T, registry lease.Registry) []string {
	t.Helper()
	leases, err := registry.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range leases {
		lines = append(lines, fmt.Sprintf("%s %s %s", l.Name, l.Protocol, l.AddrPort()))
	}
	slices.Sort(lines)
	return lines
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestEveryRunGivesTheSamePorts(t *testing.T) {
	registry := openRegistry(t)
	file := filepath.Join(t.TempDir(), "shop", "ports.yaml")
	write(t, file, "ports: {web: 3000, api: , db: {range: 20000-20100}, dns: {proto: both, addr: '*', env: DNS_PORT}}")
	first := ports(t, registry, file)
	if !strings.HasPrefix(first, "PORT_WEB=3000 PORT_API=") || !strings.Contains(first, " PORT_DB=20") || !strings.Contains(first, " DNS_PORT=") {
		t.Errorf("got %s", first)
	}
	leases, err := registry.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(leases) != 5 {
		t.Errorf("got leases %v, want 5", leases)
	}
	for _, l := range leases {
		ends := time.Until(l.Expires)
		if !l.IsDetached() || !strings.HasPrefix(l.Name, load(t, file).Name+"/") || l.Purpose != file || ends < month-time.Minute || ends > month {
			t.Errorf("got lease %+v", l)
		}
	}
	// Its own server has the port.
	listen(t, "127.0.0.1:3000")
	for range 3 {
		if again := ports(t, registry, file); again != first {
			t.Errorf("got %s, then %s", first, again)
		}
	}
	after, err := registry.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range after {
		if after[i].Fence != leases[i].Fence || !after[i].Expires.After(leases[i].Expires) {
			t.Errorf("lease %+v has become %+v, which is not the same renewed", leases[i], after[i])
		}
	}
}

func TestExpiredPortComesBack(t *testing.T) {
	registry := openRegistry(t)
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "ports: {api: , dns: {proto: both}}")
	p := load(t, file)
	p.TTL = time.Nanosecond
	first, err := p.Lease(t.Context(), registry)
	if err != nil {
		t.Fatal(err)
	}
	if got := leased(t, registry); len(got) != 0 {
		t.Fatalf("%v have not expired", got)
	}
	p.TTL = 0
	second, err := p.Lease(t.Context(), registry)
	if err != nil {
		t.Fatal(err)
	}
	for i := range first {
		if first[i].Port != second[i].Port {
			t.Errorf("%s was %d and is %d", first[i].Name, first[i].Port, second[i].Port)
		}
	}
}

func TestChangedFileChangesWhatItMust(t *testing.T) {
	for _, tt := range []struct {
		name, before, after string
		want                string // of the leases, without the project's name
	}{
		{"another range", "{api: 20000, db: 20001}", "{api: 20010, db: 20001}", "/api tcp 127.0.0.1:20010 /db tcp 127.0.0.1:20001"},
		{"a range that has the port", "{api: 20000}", "{api: 19990-20010}", "/api tcp 127.0.0.1:20000"},
		{"swapped", "{api: 20000, db: 20001}", "{api: 20001, db: 20000}", "/api tcp 127.0.0.1:20001 /db tcp 127.0.0.1:20000"},
		{"another address", "{api: 20000}", "{api: {port: 20000, addr: '*'}}", "/api tcp [::]:20000"},
		{"another protocol", "{api: 20000}", "{api: {port: 20000, proto: udp}}", "/api udp 127.0.0.1:20000"},
		{"both from one", "{api: 20000}", "{api: {proto: both, range: 19990-20010}}", "/api tcp 127.0.0.1:20000 /api udp 127.0.0.1:20000"},
		{"one of both", "{api: {port: 20000, proto: both}}", "{api: {port: 20000, proto: udp}}", "/api udp 127.0.0.1:20000"},
		{"a name less", "{api: 20000, db: 20001}", "{api: 20000}", "/api tcp 127.0.0.1:20000"},
		{"another name", "{api: 20000}", "{rest: 20000}", "/rest tcp 127.0.0.1:20000"},
		{"another variable", "{api: 20000}", "{api: {port: 20000, env: X}}", "/api tcp 127.0.0.1:20000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			registry := openRegistry(t)
			file := filepath.Join(t.TempDir(), "ports.yaml")
			write(t, file, "ports: "+tt.before)
			ports(t, registry, file)
			write(t, file, "ports: "+tt.after)
			ports(t, registry, file)
			got := strings.ReplaceAll(strings.Join(leased(t, registry), " "), load(t, file).Name, "")
			if got != tt.want {
				t.Errorf("got leases %s, want %s", got, tt.want)
			}
		})
	}
}

func TestCheckoutsHavePortsOfTheirOwn(t *testing.T) {
	registry := openRegistry(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a", "ports.yaml"), filepath.Join(dir, "b", "ports.yaml")
	write(t, a, "ports: [api]")
	write(t, b, "ports: [api]")
	if first, second := ports(t, registry, a), ports(t, registry, b); first == second {
		t.Errorf("both have %s", first)
	}
}

func TestFilesOfOneProjectShareWhatBothName(t *testing.T) {
	registry := openRegistry(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, "{project: shop, ports: [api, db]}")
	write(t, b, "{project: shop, ports: [web, api]}")
	first := ports(t, registry, a)
	second := ports(t, registry, b)
	if api := first[:len("PORT_API=12345")]; !strings.HasSuffix(second, " "+api) {
		t.Errorf("one has %s, the other %s", first, second)
	}
	if again := ports(t, registry, a); again != first {
		t.Errorf("got %s, then %s", first, again)
	}
	// A name that is removed from one file may be another's.
	write(t, a, "{project: shop, ports: [api]}")
	ports(t, registry, a)
	if got := leased(t, registry); len(got) != 3 {
		t.Errorf("got leases %v, want api, db and web", got)
	}
}

func TestPortsThatCannotBeHadAreNamed(t *testing.T) {
	registry := openRegistry(t)
	other, err := registry.Acquire(t.Context(), lease.Request{Port: 3000, Name: "rival"})
	if err != nil {
		t.Fatal(err)
	}
	listen(t, "127.0.0.1:3001")
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "project: shop\nports:\n  a: \n  b: 3000\n  c: 3001\n  d: 3000-3001\n  e: \n")
	variables, err := load(t, file).Lease(t.Context(), registry)
	if variables != nil || !errors.Is(err, lease.ErrLeased) || !errors.Is(err, lease.ErrInUse) || !errors.Is(err, lease.ErrExhausted) {
		t.Errorf("got %v and error %v", variables, err)
	}
	for i, want := range []string{
		file + ":4: tcp 127.0.0.1:3000 overlaps tcp 127.0.0.1:3000, leased to rival (",
		file + ":5: bind tcp 127.0.0.1:3001: ",
		file + ":6: no tcp port of 3000-3001 is free on 127.0.0.1: 1 leased, 1 in use",
	} {
		if lines := strings.Split(fmt.Sprint(err), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[i], want) {
			t.Errorf("got %q, want line %d to be %q", lines, i, want)
		}
	}
	before := leased(t, registry)
	if len(before) != 3 {
		t.Errorf("got leases %v, want those of rival, a and e", before)
	}
	if err := registry.Release(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	write(t, file, "project: shop\nports: {a: , b: 3000, e: }\n")
	ports(t, registry, file)
	after := leased(t, registry)
	for _, l := range before {
		if strings.HasPrefix(l, "shop/") && !slices.Contains(after, l) {
			t.Errorf("%s was leased before the error, and now there are %v", l, after)
		}
	}
}

func TestOneNumberForBothProtocols(t *testing.T) {
	registry := openRegistry(t)
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "ports: {dns: {proto: both, range: 20000-20002}}")
	twin := listen(t, "127.0.0.1:20002")
	listen(t, "127.0.0.1:20000")
	if got := ports(t, registry, file); got != "PORT_DNS=20001" {
		t.Errorf("got %s", got)
	}
	twin.Close()
	// A run that was killed may have left a half, and a half of another number.
	leases, err := registry.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, half := range leases {
		if half.Protocol == fivetuple.UDP {
			err = registry.Release(t.Context(), half)
			half.Port++
			_, errAcquire := registry.Acquire(t.Context(), lease.Request{
				Protocol: half.Protocol, Port: half.Port, Name: half.Name, Detached: true, TTL: time.Hour,
			})
			err = errors.Join(err, errAcquire)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := ports(t, registry, file); got != "PORT_DNS=20001" {
		t.Errorf("got %s", got)
	}
	name := load(t, file).Name + "/dns"
	if got, want := leased(t, registry), []string{name + " tcp 127.0.0.1:20001", name + " udp 127.0.0.1:20001"}; !slices.Equal(got, want) {
		t.Errorf("got leases %v, want %v", got, want)
	}
}

func TestOthersLeasesOfTheNameAreLeftAlone(t *testing.T) {
	registry := openRegistry(t)
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "{project: shop, ports: [api]}")
	for _, r := range []lease.Request{
		{Name: "shop/api"}, // of a process
		{Name: "shop/api", Detached: true, TTL: time.Hour, Owner: lease.Owner{User: "somebody"}},
		{Name: "shop/db", Detached: true, TTL: time.Hour},
		{Name: "shop", Detached: true, TTL: time.Hour},
	} {
		if _, err := registry.Acquire(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	before := leased(t, registry)
	got := strings.TrimPrefix(ports(t, registry, file), "PORT_API=")
	for _, l := range before {
		if strings.HasSuffix(l, ":"+got) {
			t.Errorf("got port %s, which is another's: %s", got, l)
		}
	}
	if _, err := load(t, file).Release(t.Context(), registry); err != nil {
		t.Fatal(err)
	}
	if after := leased(t, registry); !slices.Equal(before, after) {
		t.Errorf("got leases %v, want %v", after, before)
	}
}

func TestReleaseEndsTheFilesLeases(t *testing.T) {
	registry := openRegistry(t)
	dir := t.TempDir()
	alone, shared := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, alone, "{ports: {api: , dns: {proto: both}}}")
	write(t, shared, "{project: shop, ports: [api, db]}")
	first := ports(t, registry, alone)
	ports(t, registry, shared)
	write(t, alone, "{ports: [api]}")
	write(t, shared, "{project: shop, ports: [api]}")
	for _, tt := range []struct {
		file    string
		n, left int
	}{{alone, 3, 2}, {shared, 1, 1}, {alone, 0, 1}} {
		released, err := load(t, tt.file).Release(t.Context(), registry)
		if err != nil {
			t.Fatal(err)
		}
		if got := leased(t, registry); len(released) != tt.n || len(got) != tt.left {
			t.Errorf("%s: released %v, left %v; want %d and %d", tt.file, released, got, tt.n, tt.left)
		}
	}
	write(t, alone, "{ports: {api: , dns: {proto: both}}}")
	if again := ports(t, registry, alone); again != first {
		t.Errorf("got %s, and after the release %s", first, again)
	}
}

// The ranges have just the ports that are needed: not even for a moment may a
// run have more than its own.
func TestRunsAtOnceAgree(t *testing.T) {
	registry := openRegistry(t)
	dir := t.TempDir()
	const list = "{a: {proto: both}, b: {proto: both}, c: , d: }"
	files := []string{filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")}
	for round := range 3 {
		text := fmt.Sprintf("{project: shop%d, range: %d-%[2]d, ports: %s}", round, 20000+10*round, list)
		text = strings.Replace(text, fmt.Sprintf("-%d,", 20000+10*round), fmt.Sprintf("-%d,", 20003+10*round), 1)
		var runs []*exec.Cmd
		var outputs []*strings.Builder
		for i := range 8 {
			write(t, files[i%2], text)
		}
		for i := range 8 {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), playVariable+"="+files[i%2])
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			runs, outputs = append(runs, cmd), append(outputs, &out)
		}
		for i, run := range runs {
			if err := run.Wait(); err != nil {
				t.Errorf("run %d: %v: %s", i, err, outputs[i])
			}
			if got, want := outputs[i].String(), outputs[0].String(); got != want {
				t.Errorf("run %d got %s, run 0 %s", i, got, want)
			}
		}
	}
	if got := leased(t, registry); len(got) != 3*6 {
		t.Errorf("got %d leases, want 18: %v", len(got), got)
	}
}

// endsAfterList is a registry in which a lease ends between two calls.
type endsAfterList struct {
	lease.Registry
	ends func(lease.Lease) bool
}

func (r endsAfterList) List(ctx context.Context) ([]lease.Lease, error) {
	leases, err := r.Registry.List(ctx)
	for _, l := range leases {
		if r.ends(l) {
			err = errors.Join(err, r.Release(ctx, l))
		}
	}
	return leases, err
}

func TestLeaseThatEndsMeanwhileIsTakenAgain(t *testing.T) {
	registry := openRegistry(t)
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "ports: {api: , dns: {proto: both}, db: }")
	first, before := ports(t, registry, file), leased(t, registry)
	ending := endsAfterList{registry, func(l lease.Lease) bool {
		return strings.HasSuffix(l.Name, "/api") || l.Protocol == fivetuple.UDP
	}}
	if again := ports(t, ending, file); again != first {
		t.Errorf("got %s, then %s", first, again)
	}
	if after := leased(t, registry); !slices.Equal(before, after) {
		t.Errorf("got leases %v, want %v", after, before)
	}
	// One that is not asked for any more may end, too.
	write(t, file, "ports: {db: }")
	ports(t, ending, file)
}

// brokenRegistry grants nothing for a reason that is not the port's.
type brokenRegistry struct {
	lease.Registry
	calls int
}

var errDiskFull = errors.New("disk full")

func (r *brokenRegistry) Acquire(context.Context, lease.Request) (lease.Lease, error) {
	r.calls++
	return lease.Lease{}, errDiskFull
}

func TestBrokenRegistryIsNotAskedAgain(t *testing.T) {
	registry := &brokenRegistry{Registry: openRegistry(t)}
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "ports: [a, b, c]")
	if _, err := load(t, file).Lease(t.Context(), registry); !errors.Is(err, errDiskFull) || registry.calls != 1 {
		t.Errorf("got %v after %d calls, want that the disk is full, after 1", err, registry.calls)
	}
}

func TestLockThatIsNeverGivenBack(t *testing.T) {
	registry := openRegistry(t)
	file := filepath.Join(t.TempDir(), "ports.yaml")
	write(t, file, "ports: [api]")
	path := filepath.Join(os.Getenv("STATE_DIRECTORY"), "ports-env.lock")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	p := load(t, file)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Lease(cancelled, registry); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	synctest.Test(t, func(t *testing.T) {
		want := "another run has kept " + path + " locked for 10s: see who with `fuser -v " + path + "`, and end it"
		if _, err := p.Lease(t.Context(), registry); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, err := p.Release(t.Context(), registry); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	f.Close()
	ports(t, registry, file)
}

func TestLimitsAreTheRegistrys(t *testing.T) {
	registry := lease.NewMemory()
	for _, tt := range []struct {
		r    lease.Request
		want error
	}{
		{lease.Request{Name: strings.Repeat("n", lease.MaxName), Purpose: strings.Repeat("p", lease.MaxPurpose)}, nil},
		{lease.Request{Name: strings.Repeat("n", lease.MaxName+1)}, lease.ErrInvalid},
		{lease.Request{Purpose: strings.Repeat("p", lease.MaxPurpose+1)}, lease.ErrInvalid},
	} {
		if _, err := registry.Acquire(t.Context(), tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%d and %d bytes: got %v, want %v", len(tt.r.Name), len(tt.r.Purpose), err, tt.want)
		}
	}
}
