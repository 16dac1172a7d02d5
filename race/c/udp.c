// The load of UDP forwarders: clients that send datagrams at a fixed rate, whatever
// becomes of them, and the sink that counts what arrives.
//
//	udp -c CLIENTS -s BYTES [-t] [-p PROCESSOR]
//
// It says "sink 127.0.0.1:PORT", reads the ADDRESS:PORT to which the clients are to
// send, and says "ready" when each of them has had an answer from the sink. Then it
// makes a trial for each line "RATE SECONDS", and prints JSON.
//
// Packet by packet the clients take turns; with -t there is one, which sends trains of
// datagrams (UDP_SEGMENT of udp(7)), as programs that speak QUIC do. The sink compares every byte and knows
// which datagrams it has seen. One thread is all clients and the sink: it sends what
// is due, takes what has arrived and sleeps until a tenth of a millisecond's worth is
// due. What fell due while it did not run for more than 2 ms is not sent at all, for
// the burst would be its own fault: "sent" tells.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, MAX_SIZE = 65507, MAX_TRAIN = 65000, PATTERNS = 1 << 12, SINK_BUFFER = 32 << 20 };
static const uint64_t second = 1000000000, tick = 100000, debt = 2000000, quiet = 50000000;

// The first bytes of a datagram. The rest is the pattern from (sequence % PATTERNS) on.
struct head {
	uint32_t trial;  // 0: the sink answers
	uint32_t client;
	uint64_t sequence;
};

static int clients, trains, processor = -1, sink, *sockets;
static size_t size;
static char *pattern; // PATTERNS + size random bytes
static uint32_t trial;

// Of the trial under way.
static uint64_t sent, delivered, duplicates, corrupt, stale;
static unsigned char *seen; // a bit for each sequence number
static uint64_t most;       // sequence numbers that seen has room for

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * second + t.tv_nsec;
}

static void fail(const char *what) {
	fprintf(stderr, "udp: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void fill(char *datagram, uint32_t of_trial, uint32_t client, uint64_t sequence) {
	struct head h = {of_trial, client, sequence};
	memcpy(datagram, &h, sizeof h);
	memcpy(datagram + sizeof h, pattern + sequence % PATTERNS, size - sizeof h);
}

static int is_whole(const char *datagram, size_t len) {
	struct head h;
	memcpy(&h, datagram, sizeof h);
	return len == size && !memcmp(datagram + sizeof h, pattern + h.sequence % PATTERNS, size - sizeof h);
}

// ---- the sink

static void open_sink(void) {
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof at;
	int buffer = SINK_BUFFER;
	sink = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (sink < 0 || bind(sink, (struct sockaddr *)&at, len) || getsockname(sink, (struct sockaddr *)&at, &len))
		fail("sink");
	// An ordinary user has no more than net.core.rmem_max; "dropped" tells.
	if (setsockopt(sink, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) && setsockopt(sink, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer))
		fail("SO_RCVBUF");
	printf("sink 127.0.0.1:%d\n", ntohs(at.sin_port));
	fflush(stdout);
}

// dropped is how many datagrams found the buffer of the sink full.
static uint32_t dropped(void) {
	uint32_t info[SK_MEMINFO_VARS];
	socklen_t len = sizeof info;
	if (getsockopt(sink, SOL_SOCKET, SO_MEMINFO, info, &len))
		fail("SO_MEMINFO");
	return info[SK_MEMINFO_DROPS];
}

static void count(const char *datagram, size_t len, struct sockaddr_in *from) {
	struct head h;
	if (len < sizeof h) {
		corrupt++;
		return;
	}
	memcpy(&h, datagram, sizeof h);
	if (!is_whole(datagram, len))
		corrupt++;
	else if (h.trial == 0)
		sendto(sink, datagram, len, 0, (struct sockaddr *)from, sizeof *from); // asked for again if lost
	else if (h.trial != trial || h.sequence >= most)
		stale++;
	else if (seen[h.sequence / 8] & 1 << h.sequence % 8)
		duplicates++;
	else {
		seen[h.sequence / 8] |= 1 << h.sequence % 8;
		delivered++;
	}
}

// take takes all that has arrived at the sink, and says whether that was anything.
static int take(void) {
	static char buffers[BATCH][MAX_SIZE];
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	static struct sockaddr_in from[BATCH];
	int any = 0;
	for (;;) {
		for (int i = 0; i < BATCH; i++) {
			vectors[i] = (struct iovec){buffers[i], MAX_SIZE};
			messages[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &vectors[i], .msg_iovlen = 1};
		}
		int n = recvmmsg(sink, messages, BATCH, MSG_DONTWAIT, NULL);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			fail("receive");
		for (int i = 0; i < n; i++)
			count(buffers[i], messages[i].msg_len, &from[i]);
		any |= n > 0;
		if (n < BATCH)
			return any;
	}
}

// ---- the clients

static void open_clients(const char *address, int port) {
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
		fail("address");
	for (int i = 0; i < clients; i++) {
		sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (sockets[i] < 0 || connect(sockets[i], (struct sockaddr *)&to, sizeof to))
			fail("client");
	}
}

// greet has each client ask the sink until it answers, and that client alone.
static void greet(void) {
	char datagram[MAX_SIZE], answer[MAX_SIZE];
	for (int i = 0; i < clients; i++) {
		fill(datagram, 0, i, i);
		for (uint64_t until = now() + 5 * second, next = 0;;) {
			uint64_t t = now();
			if (t > until) {
				fprintf(stderr, "udp: client %d has no answer within 5 seconds\n", i);
				exit(1);
			}
			if (t >= next) {
				send(sockets[i], datagram, size, 0); // an ICMP error of an earlier one, too, is overcome by the next
				next = t + second / 5;
			}
			struct pollfd wait[2] = {{sink, POLLIN, 0}, {sockets[i], POLLIN, 0}};
			poll(wait, 2, 20);
			take();
			ssize_t n = recv(sockets[i], answer, sizeof answer, MSG_DONTWAIT);
			if (n < 0)
				continue;
			if ((size_t)n != size || memcmp(answer, datagram, size)) {
				fprintf(stderr, "udp: client %d has an answer that is not its own\n", i);
				exit(1);
			}
			break;
		}
	}
}

// send_train sends datagrams as one, as many of n as a packet holds.
static int send_train(struct iovec *vectors, int n) {
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(uint16_t))];
	} control = {.head = {CMSG_LEN(sizeof(uint16_t)), SOL_UDP, UDP_SEGMENT}};
	uint16_t segment = size;
	memcpy(CMSG_DATA(&control.head), &segment, sizeof segment);
	if ((size_t)n > MAX_TRAIN / size)
		n = MAX_TRAIN / size;
	struct msghdr m = {.msg_iov = vectors, .msg_iovlen = n, .msg_control = &control, .msg_controllen = sizeof control};
	if (sendmsg(sockets[0], &m, 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
		fail("send a train");
	return n;
}

// send_some sends so many datagrams, at most BATCH, and returns how many it could.
static int send_some(int n) {
	static char datagrams[BATCH][MAX_SIZE];
	static struct mmsghdr messages[BATCH];
	static struct iovec vectors[BATCH];
	for (int i = 0; i < n; i++)
		fill(datagrams[i], trial, (sent + i) % clients, sent + i);
	if (clients > 1) {
		for (int i = 0; i < n; i++)
			if (send(sockets[(sent + i) % clients], datagrams[i], size, 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
				fail("send");
		return n;
	}
	for (int i = 0; i < n; i++) {
		vectors[i] = (struct iovec){datagrams[i], size};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
	}
	if (trains)
		return send_train(vectors, n);
	int done = sendmmsg(sockets[0], messages, n, 0);
	if (done < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
		fail("send");
	return done < 0 ? n : done; // what was refused counts as lost
}

// ---- trials

static void sleep_until(uint64_t t) {
	struct timespec at = {t / second, t % second};
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

static void run(double rate, double seconds) {
	most = rate * seconds + BATCH;
	seen = calloc(most / 8 + 1, 1);
	if (!seen)
		fail("memory");
	trial++;
	sent = delivered = duplicates = corrupt = stale = 0;
	uint32_t before = dropped();
	uint64_t apart = rate * tick / second > 1 ? tick : second / rate; // of looks
	uint64_t start = now(), until = start + seconds * second;
	double due_from = start, owed = 0; // datagrams due since then, and those of them sent
	for (uint64_t t; (t = now()) < until;) {
		if (t - due_from > debt + owed / rate * second) {
			due_from = t;
			owed = 0;
		}
		int due = (t - due_from) * rate / second - owed;
		if (due > 0 && sent < most - BATCH) {
			int n = send_some(due < BATCH ? due : BATCH);
			sent += n;
			owed += n;
		}
		take();
		if (due <= BATCH)
			sleep_until(t + apart);
	}
	for (uint64_t last = now(), t; (t = now()) < last + quiet && t < until + second; sleep_until(t + 10 * tick))
		if (take())
			last = t;
	printf("{\"sent\":%llu,\"delivered\":%llu,\"duplicates\":%llu,\"corrupt\":%llu,\"stale\":%llu,\"dropped\":%u}\n", (unsigned long long)sent,
	       (unsigned long long)delivered, (unsigned long long)duplicates, (unsigned long long)corrupt, (unsigned long long)stale, dropped() - before);
	fflush(stdout);
	free(seen);
}

int main(int argc, char **argv) {
	int wrong = 0;
	for (int flag; (flag = getopt(argc, argv, "c:s:tp:")) != -1;)
		switch (flag) {
		case 'c': clients = atoi(optarg); break;
		case 's': size = strtoul(optarg, NULL, 10); break;
		case 't': trains = 1; break;
		case 'p': processor = atoi(optarg); break;
		default: wrong = 1;
		}
	if (wrong || optind != argc || clients < 1 || (trains && (clients > 1 || size > MAX_TRAIN)) || size < sizeof(struct head) || size > MAX_SIZE) {
		fprintf(stderr, "usage: udp -c clients -s bytes [-t] [-p processor]\n");
		return 2;
	}
	cpu_set_t only;
	CPU_ZERO(&only);
	CPU_SET(processor < 0 ? 0 : processor, &only);
	if (processor >= 0 && sched_setaffinity(0, sizeof only, &only))
		fail("sched_setaffinity");
	prctl(PR_SET_TIMERSLACK, 1UL); // ns
	sockets = calloc(clients, sizeof *sockets);
	pattern = malloc(PATTERNS + size);
	if (!sockets || !pattern)
		fail("memory");
	for (size_t i = 0; i < PATTERNS + size; i++)
		pattern[i] = random() >> 8;
	open_sink();
	char address[64], *colon;
	if (scanf("%63s", address) != 1 || !(colon = strchr(address, ':')))
		fail("no address");
	*colon = 0;
	open_clients(address, atoi(colon + 1));
	greet();
	printf("ready\n");
	fflush(stdout);
	for (double rate, seconds; scanf("%lf %lf", &rate, &seconds) == 2 && rate > 0;)
		run(rate, seconds);
}
