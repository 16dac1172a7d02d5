package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
)

func TestRulesAreReadLineByLine(t *testing.T) {
	all, err := parseRules([]byte(`
# a comment
8080 10.0.0.5:80            # and one behind
udp://:53 10.0.0.2:53 \
	--first-reply 5s --max 10
:443 10.0.0.9:443 --sni a.example=10.0.0.5:443 --sni *.b.example=10.0.0.6:443 --sni a.example=10.0.0.7:443
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 {
		t.Fatalf("got %d rules, want 3", len(all))
	}
	if r := all[1]; r.Targets[0].Network != fivetuple.UDP || r.FirstReply != 5*time.Second || r.limits.MaxConns != 10 {
		t.Errorf("got %+v", r)
	}
	if n := all[2].Names; len(n) != 2 || len(n["a.example"]) != 2 {
		t.Errorf("got %v", n)
	}
	if !all[2].exposed() || all[0].exposed() {
		t.Error("a rule on all addresses is exposed, one on loopback is not")
	}
}

func TestWrongRulesSayTheirLine(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"8080 1.2.3.4:80\n8081\n", "line 2: name where to listen and where to forward to"},
		{"8080 1.2.3.4:80 --no-such-flag\n", "line 1: unknown flag"},
		{"\n\n8080 'db:80'\n", "line 3: 'db:80': no shell reads this"},
		{"8080 udp://1.2.3.4:80\n", "line 1: forward to udp://1.2.3.4:80: streams go on to"},
		{"8080 1.2.3.4:80\n8080 1.2.3.5:80", "two rules listen on the same port: 8080 and 8080"},
		{"8080 1.2.3.4:80\n127.0.0.1:8080 1.2.3.5:80", "two rules listen on the same port"},
		{"8080-8090 1.2.3.4:80\n*:8085 1.2.3.5:80", "two rules listen on the same port"},
		{"8080 1.2.3.4:80 --insecure", "for targets that are tls://"},
		{"8080 1.2.3.4:80 --first-reply 1s", "is for UDP"},
		{"8080 1.2.3.4:80 --help", "--help is for the command line"},
		{"# nothing\n", "there is no rule in it"},
		{"8080 1.2.3.4:80 \\", "nothing follows"},
		{"8080 1.2.3.4:80 --loss 2", "is not a share"},
		{"8080 1.2.3.4:80 --cut-after soon", "neither a number of bytes nor a time"},
		{"8080 1.2.3.4:80 --bind-source eth0", "--bind-source: \"eth0\" is not ADDR"},
		{"8080 1.2.3.4:80 --sni a.example", "write it as HOST=TARGET"},
		{"8080 1.2.3.4:80 --idle -1s", "must not be negative"},
	} {
		_, err := parseRules([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want an error with %q", tt.text, err, tt.want)
		}
	}
}
