package sockopt

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTableIsSound(t *testing.T) {
	seen := map[string]string{}
	canonical := regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	for _, o := range All() {
		for _, name := range append([]string{o.Name, o.Constant}, o.Aliases...) {
			if other, taken := seen[normal(name)]; taken && other != o.Name {
				t.Errorf("%s: name %s also belongs to %s", o.Name, name, other)
			}
			seen[normal(name)] = o.Name
			for _, spelled := range []string{name, strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
				if got, ok := Lookup(spelled); !ok || got.Name != o.Name {
					t.Errorf("Lookup(%q) = %q, %v, want %q", spelled, got.Name, ok, o.Name)
				}
			}
		}
		if !canonical.MatchString(o.Name) {
			t.Errorf("%s: not a canonical name", o.Name)
		}
		if o.Doc == "" || len(o.Doc) > 140 || strings.HasSuffix(o.Doc, ".") {
			t.Errorf("%s: Doc is one line of at most 140 letters without a full stop, got %d: %q", o.Name, len(o.Doc), o.Doc)
		}
		if o.Man == "" || !regexp.MustCompile(`^\d+\.\d+(\.\d+)*$`).MatchString(o.Since) {
			t.Errorf("%s: Man %q, Since %q", o.Name, o.Man, o.Since)
		}
		if (o.Kind == Bytes || o.Kind == Duration || o.Kind == Linger) != (o.Unit != "") {
			t.Errorf("%s: %s with unit %q", o.Name, o.Kind, o.Unit)
		}
		if o.Kind == Report && o.Access != ReadOnly {
			t.Errorf("%s: a report that can be set", o.Name)
		}
		if o.Kind == Flags && len(o.Values) == 0 {
			t.Errorf("%s: flags without names", o.Name)
		}
		if o.Twin != "" {
			twin, ok := Lookup(o.Twin)
			if !ok || twin.Kind != o.Kind || twin.LevelName() != "ipv6" || o.LevelName() != "ip" {
				t.Errorf("%s: twin %s is %v of level %s", o.Name, o.Twin, twin.Kind, twin.LevelName())
			}
		}
	}
}

func TestAllIsSortedByLevelAndName(t *testing.T) {
	levels := []string{"socket", "tcp", "udp", "ip", "ipv6"}
	all := All()
	sorted := slices.IsSortedFunc(all, func(a, b Option) int {
		if d := slices.Index(levels, a.LevelName()) - slices.Index(levels, b.LevelName()); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	if !sorted || len(all) < 150 {
		t.Errorf("%d options, sorted %v", len(all), sorted)
	}
	all[0].Name = "overwritten"
	if All()[0].Name == "overwritten" {
		t.Error("the caller of All can change the table")
	}
}

func TestUnknownNamesSuggestTheNearest(t *testing.T) {
	for _, tc := range []struct{ name, want string }{
		{"nodlay", "nodelay"},
		{"TCP_KEEPIDEL", "keepalive-idle"},
		{"rcvbuff", "rcvbuf"},
		{"so_resueport", "reuseport"},
		{"keep-alive-idle", "keepalive-idle"},
		{"congest", "congestion"},
	} {
		_, err := Parse(tc.name + "=1")
		if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "did you mean "+tc.want) {
			t.Errorf("Parse(%q): %v, want a hint at %s", tc.name, err, tc.want)
		}
	}
	for _, name := range []string{"", "x", "zzzzzzzzzz", strings.Repeat("nodelay", 1000)} {
		_, err := Parse(name)
		if !errors.Is(err, ErrUnknown) || strings.Contains(err.Error(), "did you mean") {
			t.Errorf("Parse(%.20q): %.80v, want unknown without a hint", name, err)
		}
	}
}

func TestSocketsAdmit(t *testing.T) {
	for _, tc := range []struct {
		option, socket Sockets
		want           bool
	}{
		{0, TCP | IPv4, true},
		{TCP, TCP | IPv6, true},
		{TCP, UDP | IPv4, false},
		{TCP, Unix, false},
		{IPv6, TCP | IPv4, false},
		{IPv4 | IPv6, Unix, false},
		{Raw | IPv6, Raw | IPv4, false},
		{UDP | Raw | IPv6, Raw | IPv6, true},
		{TCP, TCP | IPv4 | MPTCP, true},
		{TCP, 0, true}, // an unknown family is left to the kernel
	} {
		if got := tc.option.Admits(tc.socket); got != tc.want {
			t.Errorf("(%s).Admits(%s) = %v, want %v", tc.option, tc.socket, got, tc.want)
		}
	}
}
