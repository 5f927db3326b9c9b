/* One port's process: greets a host, does what it asks, one thing at a time, and cleans up. */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

enum { MAX_POLLED = 2 + 3 };

struct session {
	struct wire wire;
	struct process process;
	struct push push;
	struct system_state system;
	bool greeted;
	uint8_t nonce[NONCE_SIZE];
	bool arguments_too_long;
	size_t arguments_length;
	char arguments[MAX_ARGUMENTS];
};

static void end_work(struct session *session)
{
	process_hang_up(&session->process);
	push_abandon(&session->push);
	session->arguments_length = 0;
	session->arguments_too_long = false;
}

static void greet(struct session *session, const struct frame *frame)
{
	struct hello hello;

	if (frame->length != sizeof hello)
		return;
	memcpy(&hello, frame->payload, sizeof hello);
	if (memcmp(hello.magic, PROTOCOL_MAGIC, MAGIC_SIZE) != 0)
		return;
	/* A host that waits long says the same again: its session goes on. */
	if (!session->greeted || memcmp(session->nonce, hello.nonce, NONCE_SIZE) != 0) {
		end_work(session);
		wire_forget_output(&session->wire);
	}
	session->greeted = true;
	memcpy(session->nonce, hello.nonce, NONCE_SIZE);
	/* The newest that both know; a host of before version 2 takes its own alone. */
	if (hello.version > PROTOCOL_VERSION)
		hello.version = PROTOCOL_VERSION;
	session->wire.protocol = hello.version;
	wire_send(&session->wire, FRAME_WELCOME, &hello, sizeof hello);
}

static void take_arguments(struct session *session, const struct frame *frame)
{
	if (frame->length > MAX_ARGUMENTS - session->arguments_length) {
		session->arguments_too_long = true;
		return;
	}
	memcpy(session->arguments + session->arguments_length, frame->payload, frame->length);
	session->arguments_length += frame->length;
}

static void begin(struct session *session, const struct frame *frame)
{
	struct wire *wire = &session->wire;
	size_t length = session->arguments_length;
	bool too_long = session->arguments_too_long;

	session->arguments_length = 0;
	session->arguments_too_long = false;
	if (session->process.pid || session->push.active)
		wire_error(wire, EBUSY, "this session has something to do");
	else if (too_long)
		wire_error(wire, E2BIG, "cannot take the request");
	else if (frame->type == FRAME_EXEC)
		process_start(&session->process, wire, frame, session->arguments, length);
	else if (frame->type == FRAME_PUSH)
		push_start(&session->push, wire, session->arguments, length);
	else if (frame->type == FRAME_PULL)
		pull(wire, session->arguments, length);
	else if (system_takes(frame->type))
		system_frame(&session->system, wire, frame);
	else
		wire_error(wire, ENOSYS, "request %u", frame->type);
}

static void take(struct session *session, const struct frame *frame)
{
	bool of_a_copy = frame->type == FRAME_ENTRY || frame->type == FRAME_DATA ||
			 frame->type == FRAME_HOLE || frame->type == FRAME_FILE_END ||
			 frame->type == FRAME_END;

	if (frame->type == FRAME_HELLO) {
		greet(session, frame);
	} else if (!session->greeted) {
		return;
	} else if (frame->type == FRAME_ARGUMENTS) {
		take_arguments(session, frame);
	} else if (of_a_copy) {
		if (session->push.active)
			push_frame(&session->push, &session->wire, frame);
	} else if (process_takes(frame->type)) {
		process_frame(&session->process, &session->wire, frame);
	} else {
		begin(session, frame);
	}
}

static void take_all(struct session *session)
{
	struct frame frame;

	while (wire_room(&session->wire) >= ANSWER_ROOM && wire_next(&session->wire, &frame))
		take(session, &frame);
}

/* No host is there: whatever was cut off is void. */
static void host_left(struct session *session)
{
	end_work(session);
	wire_forget_output(&session->wire);
	session->wire.in_start = session->wire.in_end = 0;
	session->wire.lost = false;
	session->wire.host_left = false;
	session->greeted = false;
}

static void reap(struct session *session, int signals)
{
	struct signalfd_siginfo ignored;
	pid_t pid;
	int status;

	while (read(signals, &ignored, sizeof ignored) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		process_reaped(&session->process, pid, status);
}

static bool has_work(struct session *session)
{
	struct wire *wire = &session->wire;

	if (wire_has_frame(wire))
		return wire_room(wire) >= ANSWER_ROOM;
	return wire->readable || wire->host_left || wire->closed;
}

static void wait_for_work(struct session *session, int signals)
{
	struct pollfd fds[MAX_POLLED] = {
		{.fd = session->wire.edges, .events = POLLIN},
		{.fd = signals, .events = POLLIN},
	};
	int count = 2 + process_poll(&session->process, &session->wire, fds + 2);
	int timeout = sooner(process_timeout(&session->process), system_timeout(&session->system));

	timeout = sooner(timeout, wire_timeout(&session->wire));
	poll(fds, (nfds_t)count, timeout);
}

static int watch_children(void)
{
	sigset_t children;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_SETMASK, &children, NULL);
	return signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
}

void session_serve(int fd, bool is_port)
{
	static struct session session;
	int signals = watch_children();

	session.process.in = session.process.out = -1;
	session.process.err = session.process.slave = -1;
	session.push.file = -1;
	wire_open(&session.wire, fd, is_port);
	while (!session.wire.closed) {
		wire_transfer(&session.wire);
		take_all(&session);
		if (session.wire.host_left)
			host_left(&session);
		reap(&session, signals);
		process_pump(&session.process, &session.wire);
		system_tick(&session.system);
		wire_transfer(&session.wire);
		if (!has_work(&session))
			wait_for_work(&session, signals);
	}
	end_work(&session);
}
