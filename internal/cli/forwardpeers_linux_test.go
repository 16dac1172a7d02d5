package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/sockdiag"
)

// ownRegistry keeps ft from the registry of ports of the machine.
func ownRegistry(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", filepath.Join(dir, "state"))
	t.Setenv("RUNTIME_DIRECTORY", filepath.Join(dir, "run"))
	t.Setenv("FT_CLAIMS_DIR", "none")
}

// needs fails the test if a program is missing, with the command that installs it.
func needs(t *testing.T, debian string, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: apt-get install %s", err, debian)
		}
	}
}

// output is what a program prints, which is to succeed. It hears the input.
func output(t *testing.T, input []byte, program string, args ...string) string {
	t.Helper()
	printed, said, err := runPeer(t.Context(), input, program, args...)
	if err != nil {
		t.Fatalf("%s %.200q: %v\n%.1000s\n%.1000s", program, args, err, printed, said)
	}
	return printed
}

// runPeer is output that may fail, with what the program says on standard error.
func runPeer(ctx context.Context, input []byte, program string, args ...string) (printed, said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

// throughForward calls the test with the address of an ft forward to each of the
// targets, which is to end in good order.
func throughForward(t *testing.T, test func(t *testing.T, host, port string), targets ...string) {
	for _, target := range targets {
		over, _, _ := strings.Cut(target, "://")
		t.Run("to "+over, func(t *testing.T) {
			l := startForward(t, "127.0.0.1:0", target)
			host, port, err := net.SplitHostPort(l.address)
			if err != nil {
				t.Fatal(err)
			}
			test(t, host, port)
			if code := l.stop(t); code != exitDone {
				t.Errorf("exit code %d:\n%.1000s", code, &l.said)
			}
		})
	}
}

// sameBytes checks that what came is what was sent.
func sameBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s is %s, want %s", what, summary(got), summary(want))
	}
}

func TestForwardCarriesRedis(t *testing.T) {
	needs(t, "redis-server redis-tools", "redis-server", "redis-cli", "redis-benchmark")
	ownRegistry(t)
	place := newPlace(t)
	server := startProgram(t, place, "redis-server", "--bind", "127.0.0.1", "--port", place.replace("PORT"), "--unixsocket", place.replace("DIR/s"), "--save", "", "--dir", place.dir)
	server.awaitListening(t, fivetuple.TCP)
	server.awaitSocket(t, fivetuple.Unix, fivetuple.StateListen)
	throughForward(t, func(t *testing.T, host, port string) {
		cli := func(input []byte, args ...string) string {
			return output(t, input, "redis-cli", append([]string{"-h", host, "-p", port}, args...)...)
		}
		if got, want := cli(nil, "SET", "greeting", "hello")+cli(nil, "GET", "greeting"), "OK\nhello\n"; got != want {
			t.Errorf("SET and GET: %q, want %q", got, want)
		}
		large := randomBytes(1, 8<<20)
		cli(large, "-x", "SET", "large")
		sameBytes(t, "a large value", []byte(cli(nil, "--raw", "GET", "large")), append(large, '\n'))
		redisPipelines(t, cli)
		redisPublishes(t, place, host, port)
		printed := cli(nil, "DBSIZE") + output(t, nil, "redis-benchmark", "-h", host, "-p", port, "-n", "5000", "-c", "50", "-P", "8", "-t", "set,get", "-q")
		for _, want := range []string{"SET: ", "GET: "} {
			if !strings.Contains(printed, want) {
				t.Errorf("redis-benchmark has no %q: %q", want, printed)
			}
		}
		// Whoever has left has left the server, too.
		eventually(t, "no client is left on the server", func() bool {
			return strings.Contains(output(t, nil, "redis-cli", "-p", place.replace("PORT"), "INFO", "clients"), "connected_clients:1\r\n")
		})
	}, place.replace("tcp://127.0.0.1:PORT"), place.replace("unix://DIR/s"))
	server.Process.Signal(syscall.SIGTERM)
	server.endsWhateverItHeard(t, 0)
}

// redisPipelines sends thousands of commands without waiting for a reply.
func redisPipelines(t *testing.T, cli func([]byte, ...string) string) {
	t.Helper()
	const n = 20_000
	var commands bytes.Buffer
	for i := range n {
		fmt.Fprintf(&commands, "SET key:%d %d\r\n", i, i*i)
	}
	if got, want := cli(commands.Bytes(), "--pipe"), fmt.Sprintf("errors: 0, replies: %d\n", n); !strings.HasSuffix(got, want) {
		t.Errorf("pipelined: %q, want %q", got, want)
	}
	if got, want := cli(nil, "GET", fmt.Sprintf("key:%d", n-1)), fmt.Sprintln((n-1)*(n-1)); got != want {
		t.Errorf("the last of the pipeline is %q, want %q", got, want)
	}
}

// redisPublishes hears what the server sends by itself.
func redisPublishes(t *testing.T, at place, host, port string) {
	t.Helper()
	subscriber := startProgram(t, at, "redis-cli", "-h", host, "-p", port, "SUBSCRIBE", "news")
	subscriber.hears(t, []byte("subscribe\nnews\n1\n"))
	output(t, nil, "redis-cli", "-h", host, "-p", port, "PUBLISH", "news", "good")
	subscriber.hears(t, []byte("message\nnews\ngood\n"))
	subscriber.Process.Kill()
	subscriber.awaitEnd(t)
}

func TestForwardCarriesPostgreSQL(t *testing.T) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		t.Fatal("no PostgreSQL: apt-get install postgresql")
	}
	bin := found[len(found)-1] + "/"
	needs(t, "postgresql", bin+"initdb", bin+"postgres", bin+"pgbench", bin+"psql")
	ownRegistry(t)
	place := newPlace(t)
	// It refuses to be root, as one is in the lab: there it is another user of the same files.
	user := []string{"unshare", "--user", "--ipc", "--map-user=65534", "--map-group=65534", "--"}
	data, port := filepath.Join(place.dir, "data"), place.replace("PORT")
	initdb := append(slices.Clone(user), bin+"initdb", "-D", data, "-U", "tester", "-A", "trust", "-N", "--locale=C", "-E", "UTF8")
	output(t, nil, initdb[0], initdb[1:]...)
	server := startProgram(t, place, append(slices.Clone(user), bin+"postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", place.dir,
		"-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=30")...)
	server.says(t, "database system is ready to accept connections")

	throughForward(t, func(t *testing.T, host, port string) {
		at := []string{"-h", host, "-p", port, "-U", "tester"}
		psql := func(query string) string {
			return output(t, nil, bin+"psql", append(at, "-X", "-A", "-t", "-c", query, "postgres")...)
		}
		bench := func(args ...string) string {
			return output(t, nil, bin+"pgbench", slices.Concat(at, args, []string{"postgres"})...)
		}
		bench("-i", "-q")
		const clients, transactions = 4, 50
		got := bench("-n", "-c", fmt.Sprint(clients), "-j", "2", "-t", fmt.Sprint(transactions))
		if want := fmt.Sprintf("processed: %d/%d\n", clients*transactions, clients*transactions); !strings.Contains(got, want) {
			t.Errorf("pgbench: %q, want %q", got, want)
		}
		if got := bench("-n", "-S", "-C", "-M", "prepared", "-c", "4", "-t", "10"); !strings.Contains(got, "processed: 40/40\n") { // a connection for each
			t.Errorf("pgbench with new connections: %q", got)
		}
		// What it moved between accounts, tellers and branches is what it recorded.
		sums := "SELECT count(*), (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta), (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta), " +
			"(SELECT sum(bbalance) FROM pgbench_branches) = sum(delta) FROM pgbench_history"
		if got, want := psql(sums), fmt.Sprintf("%d|t|t|t\n", clients*transactions); got != want {
			t.Errorf("the balances: %q, want %q", got, want)
		}
		var rows strings.Builder
		for i := range 20_000 {
			fmt.Fprintf(&rows, "%d\t%s\n", i, strings.Repeat(strconv.Itoa(i), 100))
		}
		sameBytes(t, "a table of 10 MB", []byte(psql("COPY (SELECT i, repeat(i::text, 100) FROM generate_series(0, 19999) i) TO STDOUT")), []byte(rows.String()))
		postgresCancels(t, place, psql, bin+"psql", at)
	}, "tcp://127.0.0.1:"+port, "unix://"+filepath.Join(place.dir, ".s.PGSQL."+port))
	server.Process.Signal(syscall.SIGINT) // a fast shutdown
	server.endsWhateverItHeard(t, 0)
}

// postgresCancels interrupts a query, which takes a connection of its own.
func postgresCancels(t *testing.T, place place, psql func(string) string, program string, at []string) {
	t.Helper()
	sleeper := startProgram(t, place, slices.Concat([]string{program}, at, []string{"-X", "-c", "SELECT pg_sleep(600)", "postgres"})...)
	eventually(t, "the query runs", func() bool {
		return psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active'") == "1\n"
	})
	sleeper.Process.Signal(syscall.SIGINT)
	sleeper.says(t, "canceling statement due to user request")
	sleeper.endsWhateverItHeard(t, 1)
}

const nginxConfig = `
daemon off;
user root root;
master_process off;
pid DIR/pid;
error_log stderr;
events { worker_connections 256; }
http {
	access_log off;
	client_max_body_size 0;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen 127.0.0.1:PORT;
		listen unix:DIR/s;
		root DIR;
		location /sum { proxy_pass http://unix:DIR/sum; proxy_ignore_client_abort on; }
	}
}
`

func TestForwardCarriesHTTP(t *testing.T) {
	needs(t, "nginx curl", "nginx", "curl")
	ownRegistry(t)
	place := newPlace(t)
	large := randomBytes(1, 64<<20)
	place.write(t, "large", large)
	for i := range smallFiles {
		place.write(t, fmt.Sprintf("small%d", i), smallFile(i))
	}
	place.write(t, "nginx.conf", []byte(place.replace(nginxConfig)))
	summer := newSummer(t, place.dir+"/sum")
	server := place.start(t, "nginx -e stderr -p DIR -c DIR/nginx.conf")
	server.awaitListening(t, fivetuple.TCP)
	server.awaitSocket(t, fivetuple.Unix, fivetuple.StateListen)
	throughForward(t, func(t *testing.T, host, port string) {
		url := "http://" + net.JoinHostPort(host, port)
		sameBytes(t, "a large file", []byte(output(t, nil, "curl", "-sS", url+"/large")), large)
		posted := large[:32<<20]
		summer.release <- struct{}{}
		if got, want := output(t, posted, "curl", "-sS", "--data-binary", "@-", url+"/sum"), sumOf(posted); got != want {
			t.Errorf("the sum of what was posted is %.100s, want %s", got, want)
		}
		<-summer.received
		manySmallFiles(t, url)
		pipelinedRequests(t, net.JoinHostPort(host, port))
		replyAfterHalfClose(t, place, summer, host, port)
	}, place.replace("tcp://127.0.0.1:PORT"), place.replace("unix://DIR/s"))
	server.Process.Signal(syscall.SIGTERM)
	server.endsWhateverItHeard(t, 0)
}

const smallFiles = 200

func smallFile(i int) []byte { return randomBytes(byte(i), i*7) }

// manySmallFiles asks for one after the other on one connection, and then for all
// at once on twenty.
func manySmallFiles(t *testing.T, url string) {
	t.Helper()
	var want []byte
	var urls bytes.Buffer
	for i := range smallFiles {
		want = append(want, smallFile(i)...)
		fmt.Fprintf(&urls, "url = %s/small%d\n", url, i)
	}
	got, said, err := runPeer(t.Context(), urls.Bytes(), "curl", "-sS", "-K", "-", "-w", "%{stderr}%{num_connects}\n")
	if err != nil {
		t.Fatalf("curl: %v\n%.1000s", err, said)
	}
	sameBytes(t, "all small files", []byte(got), want)
	if connections := strings.Count(said, "1\n"); connections != 1 {
		t.Errorf("%d connections for files one after the other, want 1", connections)
	}
	dir := t.TempDir()
	parallel := regexp.MustCompile(`url = (.*/(small\d+))`).ReplaceAllString(urls.String(), "$0\noutput = "+dir+"/$2")
	output(t, []byte(parallel), "curl", "-sS", "-Z", "--parallel-max", "20", "-K", "-")
	for i := range smallFiles {
		got, err := os.ReadFile(fmt.Sprintf("%s/small%d", dir, i))
		if err != nil {
			t.Error(err)
		}
		sameBytes(t, fmt.Sprintf("small file %d", i), got, smallFile(i))
	}
}

// pipelinedRequests sends all requests before it reads an answer.
func pipelinedRequests(t *testing.T, address string) {
	t.Helper()
	conn := dialPeer(t, address)
	var requests bytes.Buffer
	for i := range smallFiles {
		fmt.Fprintf(&requests, "GET /small%d HTTP/1.1\r\nHost: pipeline\r\n\r\n", i)
	}
	if _, err := conn.Write(requests.Bytes()); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	for i := range smallFiles {
		answer, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		got, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		sameBytes(t, fmt.Sprintf("answer %d", i), got, smallFile(i))
	}
}

func dialPeer(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// replyAfterHalfClose posts, ends its side, and has the answer only once the server
// has heard that end.
func replyAfterHalfClose(t *testing.T, at place, summer *summer, host, port string) {
	t.Helper()
	conn := dialPeer(t, net.JoinHostPort(host, port))
	body := randomBytes(2, 5<<20)
	fmt.Fprintf(conn, "POST /sum HTTP/1.1\r\nHost: half\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", len(body))
	if _, err := conn.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-summer.received
	if strings.HasSuffix(t.Name(), "to_tcp") { // a Unix socket does not show it
		eventually(t, "nginx has heard the end", func() bool {
			found, err := sockdiag.List(t.Context(), sockdiag.Query{
				Protocols: []fivetuple.Network{fivetuple.TCP}, States: sockdiag.StatesOf(fivetuple.StateCloseWait), LocalPort: at.port,
			})
			return err == nil && len(found) == 1
		})
	}
	summer.release <- struct{}{}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("the answer after the half-close: %v", err)
	}
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("the answer after the half-close: %v", err)
	}
	sameBytes(t, "the answer after the half-close", got, []byte(sumOf(body)))
}

// summer is an HTTP server behind nginx that answers with the sum of what is posted,
// when the test says so.
type summer struct {
	received chan struct{} // it has all of a body
	release  chan struct{} // it may answer
}

func newSummer(t *testing.T, path string) *summer {
	t.Helper()
	s := &summer{received: make(chan struct{}, 1), release: make(chan struct{}, 1)}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.received <- struct{}{}
		select {
		case <-s.release:
			io.WriteString(w, sumOf(body))
		case <-t.Context().Done():
		}
	})}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) })
	t.Cleanup(func() {
		server.Close()
		serving.Wait()
	})
	return s
}

// sumOf needs more than one segment. It fits into the buffer of a Unix socket, since
// of what does not nginx drops the rest when its client has half-closed.
func sumOf(body []byte) string { return strings.Repeat(fmt.Sprintf("%x ", sha256.Sum256(body)), 1500) }

// The zone has a record set of 3.8 KB, one of 20 KB, and many small ones.
const namedConfig = `
options {
	directory "DIR";
	listen-on port PORT { 127.0.0.1; };
	listen-on-v6 { none; };
	pid-file none;
	session-keyfile none;
	recursion no;
	dnssec-validation no;
	max-udp-size 4096;
	allow-transfer { any; };
};
controls { };
zone "test" { type primary; file "DIR/zone"; };
`

const zoneHosts = 2000

func zoneFile() string {
	var z strings.Builder
	z.WriteString("$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n")
	for i := range 15 {
		fmt.Fprintf(&z, "middle TXT \"%s\"\n", zoneText(i, 240))
	}
	for i := range 80 {
		fmt.Fprintf(&z, "large TXT \"%s\"\n", zoneText(i, 240))
	}
	for i := range zoneHosts {
		fmt.Fprintf(&z, "n%d A 10.0.%d.%d\n", i, i>>8, i&255)
	}
	return z.String()
}

// zoneText is n characters, other ones for each i.
func zoneText(i, n int) string { return strings.Repeat(fmt.Sprintf("text %03d ", i), n)[:n] }

func TestForwardCarriesDNS(t *testing.T) {
	needs(t, "bind9 bind9-dnsutils", "named", "dig")
	ownRegistry(t)
	place := newPlace(t)
	place.write(t, "named.conf", []byte(place.replace(namedConfig)))
	place.write(t, "zone", []byte(zoneFile()))
	// A copy, since Debian's AppArmor profile keeps /usr/sbin/named from files like these.
	named := filepath.Join(place.dir, "named")
	output(t, nil, "sh", "-c", `cp "$(command -v named)" "$0"`, named)
	server := startProgram(t, place, named, "-4", "-g", "-n", "1", "-c", place.dir+"/named.conf")
	server.says(t, "running\n")
	at := newPlace(t) // dig asks by TCP the port it has asked by UDP
	udp := startForward(t, at.replace("udp://127.0.0.1:PORT"), place.replace("udp://127.0.0.1:PORT"))
	tcp := startForward(t, at.replace("tcp://127.0.0.1:PORT"), place.replace("tcp://127.0.0.1:PORT"))

	for _, q := range []struct {
		name string
		args string
		want []string // regular expressions
		sets int      // of text
	}{
		{"a small answer over UDP", "+notcp n1.test A", []string{`n1\.test\.\s+60\s+IN\s+A\s+10\.0\.0\.1\n`, `\(UDP\)`}, 0},
		{"a small answer over TCP", "+tcp n1.test A", []string{`n1\.test\.\s+60\s+IN\s+A\s+10\.0\.0\.1\n`, `\(TCP\)`}, 0},
		{"no such name", "+notcp none.test A", []string{`status: NXDOMAIN`, `\(UDP\)`}, 0},
		{"3.8 KB by EDNS over UDP", "+notcp +bufsize=4096 +ignore middle.test TXT", []string{`flags: qr aa rd;`, `MSG SIZE  rcvd: 3[89]\d\d`, `\(UDP\)`}, 15},
		{"a truncated answer", "+notcp +bufsize=1232 +ignore large.test TXT", []string{`flags: qr aa tc rd;`, `\(UDP\)`}, 0},
		{"a truncated answer asked for by TCP", "+notcp +bufsize=1232 large.test TXT", []string{`Truncated, retrying in TCP mode`, `\(TCP\)`, `MSG SIZE  rcvd: 20\d\d\d`}, 80},
		{"a zone transfer", "+tcp test AXFR", []string{fmt.Sprintf(`XFR size: %d records`, 4+15+80+zoneHosts)}, 95},
	} {
		t.Run(q.name, func(t *testing.T) {
			printed := dig(t, at, nil, strings.Fields(q.args)...)
			for _, want := range q.want {
				if !regexp.MustCompile(want).MatchString(printed) {
					t.Errorf("no %s in %.2000s", want, printed)
				}
			}
			if got := len(regexp.MustCompile(`TXT\s+"text `).FindAllString(printed, -1)); got != q.sets {
				t.Errorf("%d texts, want %d", got, q.sets)
			}
		})
	}
	t.Run("many at once", func(t *testing.T) { t.Parallel(); manyQuestions(t, at, "+notcp") })
	t.Run("many at once over TCP", func(t *testing.T) { t.Parallel(); manyQuestions(t, at, "+tcp", "+keepopen") })
	t.Cleanup(func() { // when both have ended
		for _, l := range []*listening{udp, tcp} {
			if code := l.stop(t); code != exitDone {
				t.Errorf("exit code %d:\n%.1000s", code, &l.said)
			}
		}
		server.Process.Signal(syscall.SIGTERM)
		server.endsWhateverItHeard(t, 0)
	})
}

func dig(t *testing.T, at place, input []byte, args ...string) string {
	t.Helper()
	return output(t, input, "dig", slices.Concat([]string{"@127.0.0.1", "-p", at.replace("PORT"), "+time=10", "+tries=3", "+nocookie"}, args)...)
}

// manyQuestions has ten clients ask two hundred questions each.
func manyQuestions(t *testing.T, at place, flags ...string) {
	const clients = 10
	var asking sync.WaitGroup
	var retries atomic.Int64
	for c := range clients {
		asking.Go(func() {
			var questions, want strings.Builder
			for i := c; i < zoneHosts; i += clients {
				fmt.Fprintf(&questions, "n%d.test A\n", i)
				fmt.Fprintf(&want, "10.0.%d.%d\n", i>>8, i&255)
			}
			args := slices.Concat([]string{"@127.0.0.1", "-p", at.replace("PORT"), "+short", "+time=2", "+tries=8"}, flags, []string{"-f", "-"})
			printed, said, err := runPeer(t.Context(), []byte(questions.String()), "dig", args...)
			got := regexp.MustCompile(`(?m)^;;.*\n`).ReplaceAllString(printed, "")
			if err != nil || got != want.String() {
				t.Errorf("client %d: %v\n%.300s\n%.300s\nwant\n%.300s", c, err, got, said, want.String())
			}
			retries.Add(int64(strings.Count(printed, "timed out")))
		})
	}
	asking.Wait()
	// Now and then two clients have the same port: dig lets the kernel give it twice.
	if n := retries.Load(); n > zoneHosts/100 {
		t.Errorf("%d of %d questions had to be asked again", n, zoneHosts)
	}
}
