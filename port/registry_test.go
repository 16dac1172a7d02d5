package port

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// What the search and LookupPort's error rely on, and what a careless regeneration would break.
func TestEmbeddedRegistryIsInItsForm(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(registry, "\n"), "\n")
	body := slices.IndexFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "#") })
	if body < 1 || !strings.Contains(lines[0], "as of 20") {
		t.Fatalf("the registry starts with %q, want a comment with its date", lines[0])
	}
	if !strings.HasSuffix(registry, "\n") || !utf8.ValidString(registry) {
		t.Error("the registry is not lines of UTF-8")
	}
	last, letters := uint16(0), ""
	ports := make(map[string][]uint16)
	for _, line := range lines[body:] {
		e := parseEntry(line)
		if e.port != last {
			last, letters = e.port, ""
		}
		letters += e.letters
		if strings.Count(line, "\t") != 3 || e.port < last || e.letters == "" || strings.Trim(e.letters, "tusd") != "" {
			t.Errorf("bad line %q", line)
		}
		for _, l := range e.letters {
			if strings.Count(letters, string(l)) > 1 {
				t.Errorf("port %d has a second line for protocol %c", e.port, l)
			}
		}
		for _, name := range strings.Split(e.names, ",") {
			if name == "" || strings.ContainsAny(name, " \t") {
				t.Errorf("bad name %q in %q", name, line)
			}
			ports[name] = append(ports[name], e.port)
		}
	}
	for name, p := range ports {
		slices.Sort(p)
		p = slices.Compact(p)
		if len(p) > 4 && int(p[len(p)-1])-int(p[0]) != len(p)-1 {
			t.Errorf("%s has the ports %v, which is neither a few nor a range", name, p)
		}
	}
}

func TestSearchFindsTheFirstLineOfEveryPort(t *testing.T) {
	offset := 0
	for line := range strings.Lines(registry) {
		if strings.HasPrefix(line, "#") {
			offset += len(line)
		}
	}
	for port := 1; port <= 65535; port++ {
		for offset < len(registry) && int(leadingPort(registry[offset:])) < port {
			offset += strings.IndexByte(registry[offset:], '\n') + 1
		}
		if got := search(uint16(port)); got != offset {
			t.Fatalf("search(%d) = %d, want %d", port, got, offset)
		}
	}
}
