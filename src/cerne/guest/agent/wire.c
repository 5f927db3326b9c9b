/*
 * Frames over a virtio-serial port, or over a socket in tests.
 *
 * A port whose host side is closed reports POLLHUP for ever, and its read(2) returns 0. So it is
 * watched edge-triggered: the kernel's driver wakes its waiters when data comes, when room comes,
 * and when the host opens or closes its side, and in between we sleep.
 *
 * Between frames zero bytes are skipped. A client that takes over from one that died in the middle
 * of a frame sends more zeros than a frame can hold, and then its HELLO: whatever was cut off is
 * complete by then.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent.h"

/* Of an error's text: what was to be done, and why it cannot be. */
enum { MOST_WORDS = 768, MOST_REASON = 128 };

void wire_open(struct wire *wire, int fd, bool is_port)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};

	memset(wire, 0, offsetof(struct wire, in));
	wire->fd = fd;
	wire->is_port = is_port;
	wire->edges = epoll_create1(EPOLL_CLOEXEC);
	if (wire->edges < 0 || epoll_ctl(wire->edges, EPOLL_CTL_ADD, fd, &event) < 0)
		wire->closed = true;
	wire->readable = wire->writable = true;
}

/*
 * The kernel tells of a host's leaving and coming apart from data, and later: by then the next host
 * may have spoken. So a host has left only when none is there after a while; one that came instead
 * has said HELLO, which ends the former session by itself.
 */
static void look_whether_host_left(struct wire *wire)
{
	struct pollfd port = {.fd = wire->fd};

	if (!wire->left_at || now_milliseconds() < wire->left_at + LEAVING_TIME)
		return;
	wire->left_at = 0;
	poll(&port, 1, 0);
	wire->host_left = port.revents & POLLHUP;
}

int wire_timeout(const struct wire *wire)
{
	return wire->left_at ? milliseconds_until(wire->left_at + LEAVING_TIME) : -1;
}

void wire_update(struct wire *wire)
{
	struct epoll_event event;

	look_whether_host_left(wire);
	if (epoll_wait(wire->edges, &event, 1, 0) != 1)
		return;
	if (event.events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP | EPOLLERR))
		wire->readable = true;
	if (event.events & (EPOLLOUT | EPOLLERR))
		wire->writable = true;
}

static void write_out(struct wire *wire)
{
	while (wire->writable && wire->out_start < wire->out_end) {
		ssize_t done = write(wire->fd, wire->out + wire->out_start,
				     wire->out_end - wire->out_start);
		if (done > 0) {
			wire->out_start += (size_t)done;
		} else if (errno == EAGAIN) {
			wire->writable = false;
		} else if (errno != EINTR) {
			wire->closed = true;
			return;
		}
	}
	if (wire->out_start == wire->out_end)
		wire->out_start = wire->out_end = 0;
}

static void read_in(struct wire *wire)
{
	if (wire->in_start == wire->in_end)
		wire->in_start = wire->in_end = 0;
	if (wire->in_start > 0 && sizeof wire->in - wire->in_end < HEADER_SIZE + MAX_PAYLOAD) {
		memmove(wire->in, wire->in + wire->in_start, wire->in_end - wire->in_start);
		wire->in_end -= wire->in_start;
		wire->in_start = 0;
	}
	/* What comes now is the next host's, and waits until the former session is cleaned up. */
	while (wire->readable && !wire->host_left && wire->in_end < sizeof wire->in) {
		ssize_t got = read(wire->fd, wire->in + wire->in_end,
				   sizeof wire->in - wire->in_end);
		if (got > 0) {
			wire->in_end += (size_t)got;
			wire->left_at = 0;
		} else if (got == 0) {
			wire->readable = false;
			if (!wire->is_port)
				wire->closed = true;
			else if (!wire->left_at)
				wire->left_at = now_milliseconds();
		} else if (errno == EAGAIN) {
			wire->readable = false;
		} else if (errno != EINTR) {
			wire->closed = true;
			return;
		}
	}
}

void wire_transfer(struct wire *wire)
{
	wire_update(wire);
	write_out(wire);
	read_in(wire);
}

/* Out of step: find the next HELLO, and keep what may be the beginning of one. */
static void find_hello(struct wire *wire)
{
	static const uint8_t pattern[HEADER_SIZE + MAGIC_SIZE + 1] =
		"\x01\0\0\0\x1c\0\0\0" PROTOCOL_MAGIC;
	const size_t length = HEADER_SIZE + MAGIC_SIZE;
	size_t held = wire->in_end - wire->in_start;
	uint8_t *found = memmem(wire->in + wire->in_start, held, pattern, length);

	if (found) {
		wire->in_start = (size_t)(found - wire->in);
		wire->lost = false;
	} else if (held >= length) {
		wire->in_start = wire->in_end - (length - 1);
	}
}

/* The header of the frame that is next, if all of the frame is here. */
static bool whole_frame(struct wire *wire, struct header *header)
{
	if (wire->lost)
		find_hello(wire);
	while (!wire->lost) {
		while (wire->in_start < wire->in_end && wire->in[wire->in_start] == 0)
			wire->in_start++;
		if (wire->in_end - wire->in_start < HEADER_SIZE)
			return false;
		memcpy(header, wire->in + wire->in_start, HEADER_SIZE);
		if (header->length <= MAX_PAYLOAD)
			return wire->in_end - wire->in_start >= HEADER_SIZE + header->length;
		wire->lost = true;
		find_hello(wire);
	}
	return false;
}

bool wire_has_frame(struct wire *wire)
{
	struct header header;

	return whole_frame(wire, &header);
}

bool wire_next(struct wire *wire, struct frame *frame)
{
	struct header header;

	if (!whole_frame(wire, &header))
		return false;
	frame->type = header.type;
	frame->length = header.length;
	frame->payload = wire->in + wire->in_start + HEADER_SIZE;
	wire->in_start += HEADER_SIZE + header.length;
	return true;
}

size_t wire_room(struct wire *wire)
{
	if (wire->out_start > 0) {
		memmove(wire->out, wire->out + wire->out_start, wire->out_end - wire->out_start);
		wire->out_end -= wire->out_start;
		wire->out_start = 0;
	}
	return sizeof wire->out - wire->out_end;
}

uint8_t *wire_reserve(struct wire *wire, size_t length)
{
	return wire_room(wire) >= HEADER_SIZE + length ? wire->out + wire->out_end + HEADER_SIZE
						       : NULL;
}

void wire_commit(struct wire *wire, enum frame_type type, size_t length)
{
	struct header header = {.type = (uint8_t)type, .length = (uint32_t)length};

	memcpy(wire->out + wire->out_end, &header, HEADER_SIZE);
	wire->out_end += HEADER_SIZE + length;
}

void wire_send(struct wire *wire, enum frame_type type, const void *payload, size_t length)
{
	uint8_t *place = wire_reserve(wire, length);

	/* Callers make sure of the room; a host that does not read loses frames, not our memory. */
	if (!place)
		return;
	if (length)
		memcpy(place, payload, length);
	wire_commit(wire, type, length);
}

void wire_error(struct wire *wire, int error, const char *format, ...)
{
	char text[4 + MOST_WORDS + MOST_REASON];
	int32_t number = error;
	va_list list;
	int length;

	memcpy(text, &number, 4);
	va_start(list, format);
	length = vsnprintf(text + 4, MOST_WORDS, format, list);
	va_end(list);
	if (length < 0)
		length = 0;
	if (length >= MOST_WORDS)
		length = MOST_WORDS - 1;
	if (error) {
		int more = snprintf(text + 4 + length, sizeof text - 4 - (size_t)length, ": %s",
				    strerror(error));
		if (more > 0 && more < (int)sizeof text - 4 - length)
			length += more;
	}
	wire_send(wire, FRAME_ERROR, text, 4 + (size_t)length);
}

void wire_forget_output(struct wire *wire)
{
	wire->out_start = wire->out_end = 0;
}

static void wait_edge(struct wire *wire, int milliseconds)
{
	struct pollfd edge = {.fd = wire->edges, .events = POLLIN};

	poll(&edge, 1, milliseconds);
}

bool wire_wait_room(struct wire *wire, size_t size)
{
	for (;;) {
		wire_transfer(wire);
		if (wire->closed || wire->host_left || wire_has_frame(wire))
			return false;
		if (wire_room(wire) >= size)
			return true;
		wait_edge(wire, wire_timeout(wire));
	}
}

void wire_wait_flushed(struct wire *wire, int milliseconds)
{
	int64_t end = now_milliseconds() + milliseconds;

	for (;;) {
		wire_update(wire);
		write_out(wire);
		if (wire->closed || wire->out_start == wire->out_end || now_milliseconds() >= end)
			return;
		wait_edge(wire, milliseconds_until(end));
	}
}
