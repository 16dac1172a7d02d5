// The load of short connections: each sends one byte, waits until it is back and
// closes; then the next one begins. Several are in flight.
//
//	short [flags] ADDRESS:PORT
//	  -c N        in flight (32)
//	  -d SECONDS  how long it measures (1)
//	  -w SECONDS  how long it warms up first (0.2)
//
// Connections come from 16,384 addresses in turn, from 127.64.0.0 on, so that the
// ports of none run out although each closed connection keeps its own for a minute
// (TIME_WAIT). It prints JSON.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SOURCES = 1 << 14, FIRST_SOURCE = 127 << 24 | 64 << 16, PATIENCE_MS = 10000 };
static const uint64_t second = 1000000000;

struct conn {
	int fd;
	int sent; // the byte
	unsigned char byte;
};

static struct sockaddr_in to;
static int epoll, in_flight = 32;
static double duration = 1, warmup = 0.2;
static uint64_t begun, ended, errors;
static char first_error[200];

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * second + t.tv_nsec;
}

static void fail(const char *what) {
	fprintf(stderr, "short: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void broken(const char *what, int err) {
	if (!errors++)
		snprintf(first_error, sizeof first_error, "connection %llu: %s: %s", (unsigned long long)begun, what, strerror(err));
}

static void begin(struct conn *c) {
	int one = 1;
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(FIRST_SOURCE + begun % SOURCES)};
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)
	    || setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one) || bind(c->fd, (struct sockaddr *)&from, sizeof from))
		fail("socket");
	if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
		fail("connect");
	c->sent = 0;
	c->byte = begun++ * 167 + 1;
	struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e))
		fail("epoll_ctl");
}

// over says whether the connection has its byte back, or failed.
static int over(struct conn *c) {
	unsigned char got;
	if (!c->sent) {
		int err = 0;
		socklen_t len = sizeof err;
		if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &len) || err)
			return broken("connect", err), 1;
		if (send(c->fd, &c->byte, 1, MSG_NOSIGNAL) != 1)
			return broken("send", errno), 1;
		c->sent = 1;
	}
	ssize_t n = recv(c->fd, &got, 1, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0)
		broken("receive", errno);
	else if (n == 0)
		broken("closed without an answer", 0);
	else if (got != c->byte)
		broken("another byte came back than was sent", 0);
	return 1;
}

// run returns how many connections ended in the time measured.
static uint64_t run(struct conn *conns) {
	struct epoll_event ready[64];
	for (int i = 0; i < in_flight; i++)
		begin(&conns[i]);
	uint64_t start = now(), from = start + warmup * second, until = from + duration * second, before = 0, t;
	int warm = 0, active = in_flight;
	while (active > 0) {
		int n = epoll_wait(epoll, ready, sizeof ready / sizeof *ready, PATIENCE_MS);
		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		if (n == 0) {
			broken("no answer within 10 seconds", ETIMEDOUT);
			break;
		}
		t = now();
		if (!warm && t >= from)
			warm = 1, before = ended;
		for (int i = 0; i < n; i++) {
			struct conn *c = ready[i].data.ptr;
			if (!over(c))
				continue;
			close(c->fd);
			if (t < until)
				ended++, begin(c);
			else
				active--;
		}
	}
	return ended - before;
}

int main(int argc, char **argv) {
	int wrong = 0;
	for (int flag; (flag = getopt(argc, argv, "c:d:w:")) != -1;)
		switch (flag) {
		case 'c': in_flight = atoi(optarg); break;
		case 'd': duration = atof(optarg); break;
		case 'w': warmup = atof(optarg); break;
		default: wrong = 1;
		}
	char *colon = optind == argc - 1 ? strchr(argv[optind], ':') : NULL;
	if (colon)
		*colon = 0;
	if (wrong || !colon || inet_pton(AF_INET, argv[optind], &to.sin_addr) != 1 || in_flight < 1) {
		fprintf(stderr, "usage: short [-c in flight] [-d seconds] [-w seconds] ADDRESS:PORT\n");
		return 2;
	}
	to.sin_family = AF_INET;
	to.sin_port = htons(atoi(colon + 1));
	struct conn *conns = calloc(in_flight, sizeof *conns);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (!conns || epoll < 0)
		fail("start");
	uint64_t connections = run(conns);
	printf("{\"connections\":%llu,\"all\":%llu,\"rate\":%.1f,\"errors\":%llu,\"first_error\":\"%s\"}\n", (unsigned long long)connections,
	       (unsigned long long)begun, connections / duration, (unsigned long long)errors, first_error);
	return errors != 0;
}
