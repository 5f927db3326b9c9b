/* Joins its standard streams to a stream socket of AF_VSOCK (vsock(7)), as nc(1) does to others:
 *
 *     vsock PORT        wait for one connection to this port
 *     vsock -h PORT     connect to this port of the host
 *
 * It ends when its peer will send no more and has been sent all of standard input. */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* As <linux/vm_sockets.h> has them, which musl's headers do not go with. */
#define CID_ANY 0xFFFFFFFFu
#define CID_HOST 2u

struct vsock_address {
	sa_family_t family;
	uint16_t reserved;
	uint32_t port;
	uint32_t cid;
	uint8_t zero[4];
};

static char buffer[65536];

static void check(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static int carry(int from, int to)
{
	long length = read(from, buffer, sizeof buffer);
	check(length, "read");
	for (long done = 0; done < length;) {
		long written = write(to, buffer + done, length - done);
		check(written, "write");
		done += written;
	}
	return length > 0;
}

static int connected(int to_host, unsigned port)
{
	struct vsock_address address = {
		.family = AF_VSOCK,
		.port = port,
		.cid = to_host ? CID_HOST : CID_ANY,
	};
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

	check(listener, "socket");
	if (to_host) {
		check(connect(listener, (void *)&address, sizeof address), "connect");
		return listener;
	}
	check(bind(listener, (void *)&address, sizeof address), "bind");
	check(listen(listener, 1), "listen");
	int peer = accept(listener, 0, 0);
	check(peer, "accept");
	close(listener);
	return peer;
}

int main(int count, char **words)
{
	if (count < 2)
		return 2;
	int peer = connected(count > 2, atoi(words[count - 1]));
	struct pollfd wait[2] = {{peer, POLLIN, 0}, {0, POLLIN, 0}};

	while (wait[0].fd >= 0 || wait[1].fd >= 0) {
		check(poll(wait, 2, -1), "poll");
		if (wait[1].revents && !carry(0, peer)) {
			shutdown(peer, SHUT_WR);
			wait[1].fd = -1;
		}
		if (wait[0].revents && !carry(peer, 1))
			wait[0].fd = -1;
	}
	return 0;
}
