// The echo server that the races measure the others against: edge-triggered
// epoll, one thread for each processor, each with a listener of its own on one
// port (SO_REUSEPORT).
//
//	echo ADDRESS:PORT
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

// What the peer of a connection did not take yet; nothing more is read until it did.
struct unsent {
	size_t at, len;
	char bytes[];
};

static struct unsent **unsent; // by descriptor

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static int listen_on(struct sockaddr_in *at) {
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof *at;
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one)
	    || bind(fd, (struct sockaddr *)at, len) || listen(fd, 4096) || getsockname(fd, (struct sockaddr *)at, &len))
		fail("listen");
	return fd;
}

static void watch(int epoll, int fd, unsigned events) {
	struct epoll_event e = {.events = events, .data.fd = fd};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e))
		fail("epoll_ctl");
}

static void accept_all(int epoll, int listener) {
	int one = 1, fd;
	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0 || errno == ECONNABORTED || errno == EINTR) {
		if (fd < 0)
			continue;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
	}
	if (errno != EAGAIN)
		fail("accept");
}

static void drop(int fd) {
	free(unsent[fd]);
	unsent[fd] = NULL;
	close(fd);
}

// put sends what the peer takes at once: less than len if it takes no more now,
// -1 if the connection is gone.
static ssize_t put(int fd, const char *bytes, size_t len) {
	size_t done = 0;
	while (done < len) {
		ssize_t n = send(fd, bytes + done, len - done, MSG_NOSIGNAL);
		if (n >= 0)
			done += n;
		else if (errno == EAGAIN)
			break;
		else if (errno != EINTR)
			return -1;
	}
	return done;
}

static int keep(int fd, const char *bytes, size_t len) {
	struct unsent *u = malloc(sizeof *u + len);
	if (!u)
		return -1;
	u->at = 0;
	u->len = len;
	memcpy(u->bytes, bytes, len);
	unsent[fd] = u;
	return 0;
}

// flush returns 1 once nothing is unsent, 0 if something still is, -1 if the
// connection is gone.
static int flush(int fd) {
	struct unsent *u = unsent[fd];
	ssize_t n = put(fd, u->bytes + u->at, u->len - u->at);
	if (n < 0)
		return -1;
	u->at += n;
	if (u->at < u->len)
		return 0;
	free(u);
	unsent[fd] = NULL;
	return 1;
}

static void echo(int fd, unsigned events, char *buffer, size_t size) {
	if (unsent[fd]) {
		int done = flush(fd);
		if (done < 0)
			drop(fd);
		if (done <= 0)
			return;
		events |= EPOLLRDHUP; // what the edges since then told was not looked at
	}
	for (;;) {
		ssize_t n = recv(fd, buffer, size, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0)
			return drop(fd);
		ssize_t sent = put(fd, buffer, n);
		if (sent < 0 || (sent < n && keep(fd, buffer + sent, n - sent)))
			return drop(fd);
		// Less than asked for is all there was: the next byte is a new edge. The
		// end of the stream may have come with this one.
		if (sent < n || ((size_t)n < size && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))))
			return;
	}
}

static void *loop(void *arg) {
	static __thread char buffer[64 << 10];
	struct epoll_event ready[256];
	int listener = (int)(long)arg, epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		fail("epoll_create1");
	watch(epoll, listener, EPOLLIN | EPOLLET);
	for (;;) {
		int n = epoll_wait(epoll, ready, sizeof ready / sizeof *ready, -1);
		for (int i = 0; i < n; i++)
			if (ready[i].data.fd == listener)
				accept_all(epoll, listener);
			else
				echo(ready[i].data.fd, ready[i].events, buffer, sizeof buffer);
	}
	return NULL;
}

int main(int argc, char **argv) {
	struct sockaddr_in at = {.sin_family = AF_INET};
	char *colon = argc == 2 ? strchr(argv[1], ':') : NULL;
	if (!colon || (*colon = 0, inet_pton(AF_INET, argv[1], &at.sin_addr) != 1)) {
		fprintf(stderr, "usage: echo ADDRESS:PORT\n");
		return 2;
	}
	at.sin_port = htons(atoi(colon + 1));
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files))
		fail("getrlimit");
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	unsent = calloc(files.rlim_cur, sizeof *unsent);
	cpu_set_t cpus;
	if (!unsent || sched_getaffinity(0, sizeof cpus, &cpus))
		fail("start");
	for (int n = CPU_COUNT(&cpus); n > 0; n--) {
		pthread_t t;
		if (pthread_create(&t, NULL, loop, (void *)(long)listen_on(&at)))
			fail("pthread_create");
	}
	fprintf(stderr, "listening on tcp %s:%d\n", argv[1], ntohs(at.sin_port));
	pause();
}
