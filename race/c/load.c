// The load of the races: many connections to an echo server, each with one
// message under way, every byte of the answers compared.
//
//	load [flags] ADDRESS:PORT
//	  -c N        connections (1)
//	  -s BYTES    size of a message (64)
//	  -d SECONDS  how long it measures (2)
//	  -w SECONDS  how long it warms up first (0.5)
//	  -i SECONDS  each connection sends once in so long, evenly spread, instead
//	              of the next message at once
//	  -k          measures nothing: keeps the connections until standard input ends
//	  -f ADDRESS  the first source address (127.0.0.2)
//	  -n N        how many source addresses (4)
//	  -p PID      process whose processor time is measured; may be repeated
//	  -j          print JSON, with the histogram: [longest ns, messages], ...
//
// The first message of a connection is sent when it is made, and not counted.
// The latency of a message lasts from the moment before it is sent, or with -i
// from when it was due, until its last byte is back. A message sent in the time
// measured counts for the latencies whenever it comes back; one that does not
// within 30 seconds is an error.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTING_AT_ONCE = 256, PATTERNS = 1 << 16, READ = 64 << 10, MAX_PIDS = 64 };
static const uint64_t second = 1000000000, patience = 30 * second;

struct conn {
	int fd; // -1 once it failed
	int decided; // whether it came about
	uint32_t messages, sent, got;
	const char *message; // NULL: none under way
	uint64_t began;
};

static struct {
	struct sockaddr_in to;
	uint32_t source;
	int conns, sources, keep, json, pids[MAX_PIDS], npids;
	size_t size;
	double duration, warmup, interval;
} opt = {.conns = 1, .sources = 4, .size = 64, .duration = 2, .warmup = 0.5};

static enum { CONNECT, WARM_UP, MEASURE, DRAIN } phase;
static struct conn *conns;
static int epoll, connecting, under_way;
static char *pattern; // PATTERNS + size random bytes: a message starts anywhere in them
static uint64_t measured_from, measured_to, round_trips, late, errors;
static char first_error[200];

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * second + t.tv_nsec;
}

static void fail(const char *what) {
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

// ---- latencies: log-linear, 128 steps for each power of two

static uint64_t steps[58 * 128];

static void record(uint64_t ns) {
	int top = 63 - __builtin_clzll(ns | 1), shift = top > 7 ? top - 7 : 0;
	steps[shift * 128 + (ns >> shift)]++;
}

// longest is the longest latency that the step stands for.
static uint64_t longest(size_t step) {
	int shift = step < 256 ? 0 : step / 128 - 1;
	return ((step - shift * 128 + 1) << shift) - 1;
}

static double quantile(double q) {
	uint64_t all = 0, below = 0;
	size_t n = sizeof steps / sizeof *steps;
	for (size_t i = 0; i < n; i++)
		all += steps[i];
	for (size_t i = 0; i < n; i++)
		if ((below += steps[i]) && below >= q * all)
			return longest(i) / 1e9;
	return 0;
}

// ---- processor time

// ticks is what the processes used, in units of sysconf(_SC_CLK_TCK).
static uint64_t ticks(void) {
	uint64_t sum = 0;
	for (int i = 0; i < opt.npids; i++) {
		char path[32], line[1024];
		snprintf(path, sizeof path, "/proc/%d/stat", opt.pids[i]);
		FILE *f = fopen(path, "r");
		if (!f || !fgets(line, sizeof line, f))
			fail(path);
		fclose(f);
		unsigned long user, system;
		char *after = strrchr(line, ')');
		if (!after || sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
			fail(path);
		sum += user + system;
	}
	return sum;
}

static double own_cpu(void) {
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

// ---- connections

__attribute__((format(printf, 2, 3))) static void broken(struct conn *c, const char *format, ...) {
	if (!errors++) {
		va_list args;
		va_start(args, format);
		int n = snprintf(first_error, sizeof first_error, "connection %d, message %u: ", (int)(c - conns), c->messages);
		vsnprintf(first_error + n, sizeof first_error - n, format, args);
		va_end(args);
	}
	if (c->fd >= 0)
		close(c->fd);
	if (c->message)
		under_way--;
	c->fd = -1;
	c->message = NULL;
}

static void send_rest(struct conn *c) {
	while (c->message && c->sent < opt.size) {
		ssize_t n = send(c->fd, c->message + c->sent, opt.size - c->sent, MSG_NOSIGNAL);
		if (n >= 0)
			c->sent += n;
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			return broken(c, "send: %s", strerror(errno));
	}
}

// next_message sends bytes that are of this connection and this message.
static void next_message(struct conn *c, uint64_t began) {
	uint64_t mixed = ((uint64_t)(c - conns) << 32 | ++c->messages) * 0x9e3779b97f4a7c15;
	mixed = (mixed ^ mixed >> 29) * 0xbf58476d1ce4e5b9;
	c->message = pattern + (mixed >> 32) % PATTERNS;
	c->sent = c->got = 0;
	c->began = began;
	under_way++;
	send_rest(c);
}

static void came_back(struct conn *c) {
	uint64_t t = now();
	c->message = NULL;
	under_way--;
	if (phase == MEASURE)
		round_trips++;
	if (c->began >= measured_from && c->began < measured_to)
		record(t > c->began ? t - c->began : 0);
	if ((phase == WARM_UP || phase == MEASURE) && !opt.interval)
		next_message(c, t);
}

static void receive(struct conn *c) {
	static char buffer[READ];
	for (;;) {
		ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			return broken(c, "receive: %s", strerror(errno));
		if (n == 0)
			return broken(c, "closed by the server after %u bytes of %zu", c->got, opt.size);
		if (!c->message || c->got + n > c->sent)
			return broken(c, "%zd bytes came that were not sent", n);
		if (memcmp(buffer, c->message + c->got, n))
			return broken(c, "other bytes came back than were sent");
		c->got += n;
		if (c->got == opt.size)
			return came_back(c);
		if (n < READ)
			return; // that was all there was: the rest is a new edge
	}
}

static int connect_one(int i) {
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(opt.source + i % opt.sources)};
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) || setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one)
	    || bind(fd, (struct sockaddr *)&from, sizeof from))
		fail("socket");
	if (connect(fd, (struct sockaddr *)&opt.to, sizeof opt.to) && errno != EINPROGRESS)
		fail("connect");
	struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = &conns[i]};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e))
		fail("epoll_ctl");
	connecting++;
	return fd;
}

// decide looks, at the first event, whether the connection came about, and uses it.
static void decide(struct conn *c) {
	int err = 0;
	socklen_t len = sizeof err;
	c->decided = 1;
	connecting--;
	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len) || err)
		return broken(c, "connect: %s", strerror(err ? err : errno));
	next_message(c, now());
}

static int handle_ready(uint64_t until) {
	struct epoll_event ready[256];
	uint64_t t = now(), wait = until > t ? until - t : 0;
	struct timespec timeout = {.tv_sec = wait / second, .tv_nsec = wait % second};
	int n = epoll_pwait2(epoll, ready, sizeof ready / sizeof *ready, &timeout, NULL);
	if (n < 0 && errno != EINTR)
		fail("epoll_pwait2");
	for (int i = 0; i < n; i++) {
		struct conn *c = ready[i].data.ptr;
		if (!c->decided)
			decide(c);
		if (c->fd >= 0)
			send_rest(c);
		if (c->fd >= 0 && ready[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
			receive(c);
	}
	return n;
}

// connect_all sends a message on each connection at once: when it is back, the
// server has accepted, and its queue has room for another.
static void connect_all(void) {
	for (int i = 0; i < opt.conns; i++) {
		conns[i].fd = connect_one(i);
		while (connecting + under_way >= (i < opt.conns - 1 ? CONNECTING_AT_ONCE : 1))
			if (handle_ready(now() + patience) == 0) {
				errno = ETIMEDOUT;
				fail(connecting ? "connect" : "first message");
			}
	}
}

// ---- the run

// send_due starts messages that are due, one connection after the other, and
// returns when the next one is. A connection whose last message is not back has
// to wait for its next turn.
static uint64_t send_due(uint64_t start) {
	static uint64_t turn;
	double apart = opt.interval * second / opt.conns;
	for (int n = 0; n < 256; n++, turn++) { // and then look what is back
		uint64_t due = start + turn * apart;
		if (due > now())
			return due;
		struct conn *c = &conns[turn % opt.conns];
		if (c->fd < 0)
			continue;
		if (!c->message) {
			next_message(c, due);
			continue;
		}
		late++;
		if (now() > c->began + patience)
			broken(c, "not back after %.1f seconds", (now() - c->began) / 1e9);
	}
	return now();
}

static void drain(void) {
	phase = DRAIN;
	for (uint64_t until = now() + patience; under_way && now() < until;)
		handle_ready(until);
	for (int i = 0; i < opt.conns; i++)
		if (conns[i].message)
			broken(&conns[i], "%u bytes of %zu came back, and no more", conns[i].got, opt.size);
}

// run returns the processor time that the processes measured used.
static double run(void) {
	uint64_t start = now(), used = 0;
	phase = WARM_UP;
	measured_from = start + opt.warmup * second;
	measured_to = measured_from + opt.duration * second;
	for (int i = 0; i < opt.conns && !opt.interval; i++)
		if (conns[i].fd >= 0)
			next_message(&conns[i], now());
	for (uint64_t t; (t = now()) < measured_to;) {
		if (phase == WARM_UP && t >= measured_from) {
			phase = MEASURE;
			used = ticks();
		}
		uint64_t until = phase == WARM_UP ? measured_from : measured_to;
		if (opt.interval) {
			uint64_t due = send_due(start);
			until = due < until ? due : until;
		}
		handle_ready(until);
	}
	used = ticks() - used;
	drain();
	return (double)used / sysconf(_SC_CLK_TCK);
}

static void print_result(double took, double server, double own) {
	double rate = opt.duration > 0 ? round_trips / opt.duration : 0;
	if (!opt.json) {
		printf("%d connections x %zu bytes: %.0f round trips/s, p50 %.1f us, p99 %.1f us, p99.9 %.1f us, longest %.1f us\n", opt.conns, opt.size, rate,
		       quantile(.5) * 1e6, quantile(.99) * 1e6, quantile(.999) * 1e6, quantile(1) * 1e6);
		printf("connected in %.3f s, processor seconds: own %.2f", took, own);
		if (opt.npids)
			printf(", server's %.2f, %.2f for a million round trips", server, round_trips ? server * 1e6 / round_trips : 0);
		if (opt.interval)
			printf("\n%llu messages not sent, the last one not being back", (unsigned long long)late);
		printf("\n%llu errors%s%s\n", (unsigned long long)errors, errors ? ", the first: " : "", first_error);
		return;
	}
	printf("{\"connections\":%d,\"size\":%zu,\"duration_s\":%g,\"round_trips\":%llu,\"rate\":%.1f,\"connect_s\":%.6f,\"server_cpu_s\":%.2f,\"load_cpu_s\":%.2f,",
	       opt.conns, opt.size, opt.duration, (unsigned long long)round_trips, rate, took, server, own);
	printf("\"late\":%llu,\"errors\":%llu,\"first_error\":\"%s\",\"histogram\":[", (unsigned long long)late, (unsigned long long)errors, first_error);
	const char *comma = "";
	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
		if (steps[i]) {
			printf("%s[%llu,%llu]", comma, (unsigned long long)longest(i), (unsigned long long)steps[i]);
			comma = ",";
		}
	printf("]}\n");
}

static void parse(int argc, char **argv) {
	struct in_addr source = {0};
	inet_pton(AF_INET, "127.0.0.2", &source);
	int wrong = 0;
	for (int flag; (flag = getopt(argc, argv, "c:s:d:w:i:kf:n:p:j")) != -1;)
		switch (flag) {
		case 'c': opt.conns = atoi(optarg); break;
		case 's': opt.size = strtoul(optarg, NULL, 10); break;
		case 'd': opt.duration = atof(optarg); break;
		case 'w': opt.warmup = atof(optarg); break;
		case 'i': opt.interval = atof(optarg); break;
		case 'k': opt.keep = 1; break;
		case 'f': wrong |= inet_pton(AF_INET, optarg, &source) != 1; break;
		case 'n': opt.sources = atoi(optarg); break;
		case 'p': opt.npids < MAX_PIDS ? opt.pids[opt.npids++] = atoi(optarg) : (wrong = 1); break;
		case 'j': opt.json = 1; break;
		default: wrong = 1;
		}
	char *colon = optind == argc - 1 ? strchr(argv[optind], ':') : NULL;
	opt.to.sin_family = AF_INET;
	if (colon)
		*colon = 0;
	if (wrong || !colon || inet_pton(AF_INET, argv[optind], &opt.to.sin_addr) != 1 || opt.conns < 1 || opt.size < 1 || opt.size > 1 << 30 || opt.sources < 1) {
		fprintf(stderr, "usage: load [-c connections] [-s bytes] [-d seconds] [-w seconds] [-i seconds] [-k] [-f source] [-n sources] [-p pid] [-j] ADDRESS:PORT\n");
		exit(2);
	}
	opt.to.sin_port = htons(atoi(colon + 1));
	opt.source = ntohl(source.s_addr);
}

int main(int argc, char **argv) {
	parse(argc, argv);
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	conns = calloc(opt.conns, sizeof *conns);
	pattern = malloc(PATTERNS + opt.size);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (!conns || !pattern || epoll < 0)
		fail("start");
	for (size_t i = 0; i < PATTERNS + opt.size; i++)
		pattern[i] = random() >> 8;

	uint64_t start = now();
	connect_all();
	double took = (now() - start) / 1e9, server = 0, own = own_cpu();
	if (!opt.keep)
		server = run();
	print_result(took, server, own_cpu() - own);
	fflush(stdout);
	if (opt.keep)
		for (char c; read(0, &c, 1) > 0;)
			;
	return errors != 0;
}
