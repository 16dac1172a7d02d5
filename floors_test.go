package fivetuple_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/fivetuple/fivetuple"

// floors is the architecture: a package imports only what lies on lower floors.
var floors = map[string]int{
	"": 1, "packet": 1, "port": 1,
	"sockopt": 1, "netns": 1, "secure": 1,
	"sockdiag": 2, "owner": 2, "filter": 2, "stats": 2, "ancillary": 2, "dial": 2,
	"table": 3, "port/lease": 3, "stream": 3, "datagram": 3, "activation": 3, "capture": 3, "capture/pcapng": 3, "history": 3, "handoff": 3, "prefork": 3,
	"port/env": 4, "table/changes": 4, "table/who": 4, "inspect": 4, "doctor": 4, "port/lease/leasetest": 4,
	"stream/gate": 4, "stream/loop": 5, "join": 4,
	"relay/upstream": 3, "relay/faults": 3, "relay/splice": 5, "relay/sessions": 4, "relay": 6,
	"scan": 4, "ping": 4, "bench": 4,
	"service": 7, "daemon": 8, "fleet": 8,
	"internal/demo": 9, "internal/tui": 9, "internal/web": 9, "internal/cli": 10, "cmd/ft": 11,
	// Machinery below everything, which any package may use and which uses none.
	"internal/acl": 0, "internal/proxyheader": 0, "internal/confine": 0, "internal/quota": 0, "internal/printable": 0,
	"internal/claims": 0, "internal/dnat": 0, "internal/sqlitefile": 0, "internal/statedir": 0,
	"internal/poll": 0, "internal/vsock": 0, "internal/unixfile": 0, "internal/fields": 0,
	// The test hosts: for tests and the race alone.
	"internal/lab": 0,
	// Generators stand by themselves.
	"port/internal/gen": 6,
}

func TestPackagesImportOnlyLowerFloors(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg, imports := short(fields[0]), fields[1:]
		floor, known := floors[pkg]
		if !known {
			t.Errorf("package %s is on no floor: enter it in floors_test.go and in the map of CONTRIBUTING.md", pkg)
			continue
		}
		for _, path := range imports {
			if path != module && !strings.HasPrefix(path, module+"/") {
				continue
			}
			seen++
			below := short(path)
			if below == "internal/lab" {
				t.Errorf("%s imports internal/lab outside its tests", pkg)
			}
			if floors[below] >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d)", pkg, floor, below, floors[below])
			}
		}
	}
	if seen == 0 {
		t.Error("go list showed no imports of the project")
	}
}

func short(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
}
