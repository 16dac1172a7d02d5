package sockopt

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		in, want string
		n        int64
	}{
		{"nodelay", "nodelay=on", 1},
		{" TCP_NODELAY = yes ", "nodelay=on", 1},
		{"nodelay=off", "nodelay=off", 0},
		{"rcvbuf=4MiB", "rcvbuf=4MiB", 4 << 20},
		{"so_rcvbuf=4194304", "rcvbuf=4MiB", 4 << 20},
		{"rcvbuf=0.5KiB", "rcvbuf=512", 512},
		{"rcvbuf=1MB", "rcvbuf=1000000", 1e6},
		{"rcvbuf=64k", "rcvbuf=64000", 64000},
		{"rcvbuf=64Ki", "rcvbuf=64KiB", 64 << 10},
		{"rcvbuf=0", "rcvbuf=0", 0},
		{"max-pacing-rate=100Mbit", "max-pacing-rate=12500000B/s", 12500000},
		{"max-pacing-rate=1MiB/s", "max-pacing-rate=1MiB/s", 1 << 20},
		{"max-pacing-rate=unlimited", "max-pacing-rate=unlimited", -1},
		{"keepalive-idle=90s", "keepalive-idle=1m30s", 90},
		{"TCP_KEEPIDLE=7200", "keepalive-idle=2h", 7200},
		{"user-timeout=1.5s", "user-timeout=1.5s", 1500},
		{"user-timeout=1500", "user-timeout=1.5s", 1500},
		{"rcvtimeo=250ms", "rcvtimeo=250ms", 250_000},
		{"linger2=off", "linger2=off", -1},
		{"linger=5s", "linger=5s", 5},
		{"linger=0", "linger=0s", 0},
		{"linger=off", "linger=off", -1},
		{"keepalive", "keepalive=on", 1},
		{"keepalive=off", "keepalive=off", 0},
		{"keepalive=30s/10s/3", "keepalive=30s/10s/3", 1},
		{"keepalive=30", "keepalive=30s", 1},
		{"keepalive=//3", "keepalive=//3", 1},
		{"tos=0x10", "tos=lowdelay", 0x10},
		{"tos=lowdelay", "tos=lowdelay", 0x10},
		{"tos=AF41", "tos=af41", 0x88},
		{"tos=ef", "tos=ef", 0xb8},
		{"tos=cs1", "tos=cs1", 0x20},
		{"tos=3", "tos=0x3", 3},
		{"mark=0xffffffff", "mark=0xffffffff", 0xffffffff},
		{"ttl=default", "ttl=default", -1},
		{"congestion=bbr", "congestion=bbr", 0},
		{"bind-to-device=", "bindtodevice=", 0},
		{"unicast-if=0", "unicast-if=none", 0},
		{"multicast-if=10.0.0.1", "multicast-if=10.0.0.1", 0},
		{"local-port-range=40000-41000", "local-port-range=40000-41000", 41000<<16 | 40000},
		{"local-port-range=40000-", "local-port-range=40000-", 40000},
		{"local-port-range=-41000", "local-port-range=-41000", 41000 << 16},
		{"local-port-range=off", "local-port-range=off", 0},
		{"timestamping=rx-software|software", "timestamping=rx-software+software", 0x18},
		{"timestamping=none", "timestamping=none", 0},
		{"timestamping=0x40000018", "timestamping=0x40000018", 0x40000018},
		{"fastopen-key=00112233-44556677-8899aabb-ccddeeff", "fastopen-key=00112233445566778899aabbccddeeff", 0},
		{"join=239.1.1.1%eth0", "join=239.1.1.1%eth0", 0},
		{"IPV6_JOIN_GROUP=ff02::1", "join=ff02::1", 0},
		{"join-source=10.0.0.1@232.1.1.1%eth0", "join-source=10.0.0.1@232.1.1.1%eth0", 0},
	} {
		s, err := Parse(tc.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tc.in, err)
			continue
		}
		if s.String() != tc.want || s.Int() != tc.n {
			t.Errorf("Parse(%q) = %s (%d), want %s (%d)", tc.in, s, s.Int(), tc.want, tc.n)
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Errorf("Parse(%q) = %v, %v, want what Parse(%q) gave", s, again, err, tc.in)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct {
		in    string
		err   error
		parts []string // of the message
	}{
		{"rcvbuf", ErrValue, []string{"rcvbuf=64KiB"}},
		{"rcvbuf=", ErrValue, []string{"want a size"}},
		{"rcvbuf=-1", ErrValue, []string{"rcvbuf=-1", "out of range", "0 to 1073741823"}},
		{"rcvbuf=2GiB", ErrValue, []string{"out of range"}},
		{"rcvbuf=99999999999TiB", ErrValue, []string{"out of range"}},
		{"rcvbuf=1.3B", ErrValue, []string{"not a whole number of bytes"}},
		{"rcvbuf=1/2KiB", ErrValue, []string{"want a size"}},
		{"rcvbuf=1e9999999", ErrValue, []string{"want a size"}},
		{"nodelay=maybe", ErrValue, []string{"want on or off"}},
		{"nodelay=", ErrValue, nil},
		{"keepalive-idle=1500ms", ErrValue, []string{"whole s"}},
		{"keepalive-idle=0s", ErrValue, []string{"1s to 9h6m7s"}},
		{"keepalive-idle=10h", ErrValue, []string{"1s to 9h6m7s"}},
		{"keepalive-idle=soon", ErrValue, []string{"want a duration", "number of s"}},
		{"keepalive=30s/10s/3/1", ErrValue, []string{"IDLE"}},
		{"keepalive=30s/10s/200", ErrValue, []string{"keepalive-count", "1 to 127"}},
		{"keepalive=//", ErrValue, []string{"IDLE"}},
		{"linger=on", ErrValue, []string{"duration"}},
		{"linger=-1s", ErrValue, []string{"out of range"}},
		{"tos=256", ErrValue, []string{"out of range", "af41"}},
		{"tos=fast", ErrValue, []string{"lowdelay"}},
		{"priority=99999999999999999999", ErrValue, []string{"out of range"}},
		{"ttl=0", ErrValue, []string{"1 to 255", "default"}},
		{"user-timeout=-5s", ErrValue, []string{"out of range"}},
		{"rcvtimeo=99999999999999999999", ErrValue, []string{"out of range"}},
		{"max-pacing-rate=0", ErrValue, []string{"out of range", "unlimited"}},
		{"congestion=", ErrValue, []string{"1 to 15 letters"}},
		{"congestion=averyverylongname", ErrValue, []string{"1 to 15 letters"}},
		{"congestion=a b", ErrValue, []string{"not allowed"}},
		{"fastopen-key=0011", ErrValue, []string{"2 bytes, want 16 or 32"}},
		{"fastopen-key=xyz", ErrValue, []string{"hexadecimal"}},
		{"local-port-range=5", ErrValue, []string{"LOW-HIGH"}},
		{"local-port-range=9-5", ErrValue, []string{"9 is above 5"}},
		{"local-port-range=1-70000", ErrValue, []string{"70000"}},
		{"timestamping=rx-software+nonsense", ErrValue, []string{"rx-hardware"}},
		{"timestamping=-1", ErrValue, []string{"out of range"}},
		{"join=10.0.0.1", ErrValue, []string{"not a multicast address"}},
		{"join=10.0.0.1@239.1.1.1", ErrValue, []string{"join-source"}},
		{"join-source=239.1.1.1", ErrValue, []string{"SOURCE@GROUP"}},
		{"join-source=::1@239.1.1.1", ErrValue, []string{"not a source address"}},
		{"type=stream", ErrReadOnly, []string{"type"}},
		{"info", ErrReadOnly, nil},
	} {
		_, err := Parse(tc.in)
		if !errors.Is(err, tc.err) {
			t.Errorf("Parse(%q): %v, want %v", tc.in, err, tc.err)
			continue
		}
		for _, part := range tc.parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("Parse(%q): %v, want it to say %q", tc.in, err, part)
			}
		}
	}
}

func TestSettingsIsAFlagValue(t *testing.T) {
	var s Settings
	for _, text := range []string{"rcvbuf=1MiB,nodelay", "tos=ef"} {
		if err := s.Set(text); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := s.String(), "rcvbuf=1MiB,nodelay=on,tos=ef"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := s.Set("linger=5s,nosuch=1"); !errors.Is(err, ErrUnknown) || len(s) != 3 {
		t.Errorf("after an error: %v, %d settings, want 3", err, len(s))
	}
	if got, want := s.PerConn().String(), "nodelay=on"; got != want {
		t.Errorf("PerConn: got %s, want %s", got, want)
	}
}

func TestSettingsInYAMLAndJSON(t *testing.T) {
	var config struct{ Options Settings }
	const want = "rcvbuf=1MiB,keepalive=30s/10s/3"
	if err := yaml.Unmarshal([]byte("options: [rcvbuf=1MiB, keepalive=30s/10s/3]"), &config); err != nil || config.Options.String() != want {
		t.Errorf("yaml: %s, %v, want %s", config.Options, err, want)
	}
	text, err := json.Marshal(config.Options)
	if err != nil {
		t.Fatal(err)
	}
	var back Settings
	if err := json.Unmarshal(text, &back); err != nil || back.String() != want {
		t.Errorf("json %s: %s, %v, want %s", text, back, err, want)
	}
	if err := yaml.Unmarshal([]byte("options: [rcvbuf=big]"), &config); !errors.Is(err, ErrValue) {
		t.Errorf("yaml: %v, want %v", err, ErrValue)
	}
}

func FuzzParse(f *testing.F) {
	for _, o := range All() {
		f.Add(o.Name)
	}
	for _, seed := range []string{"rcvbuf=4MiB", "max-pacing-rate=1.5Mbit/s", "keepalive=30s/10s/3", "keepalive=//3", "linger=0", "tos=0x10",
		"timestamping=rx-software+software", "join-source=10.0.0.1@232.1.1.1%eth0", "join=ff02::1%lo", "local-port-range=-5",
		"fastopen-key=00112233-44556677-8899aabb-ccddeeff", "multicast-if=10.0.0.1", "bindtodevice=", "mark=-1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again != s {
			t.Errorf("%q parses to %q, which parses to %q, %v", text, s, again, err)
		}
		var list Settings
		if err := list.Set(s.String()); err != nil || len(list) != 1 || list[0] != s {
			t.Errorf("%q parses to %q, which as a list is %q, %v", text, s, list, err)
		}
	})
}
