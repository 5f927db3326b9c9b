/*
 * One process of a session: started by vfork(2), its streams carried with credit both ways.
 *
 * The host may send as much input as it has credit for, so that what cannot be written yet always
 * fits in our buffer, and signals and resizes get past it. We read as much output as we have credit
 * for, so that a host that does not read stops the process and not the port.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"


#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

enum { LAST_OUTPUT_WAIT = 200 /* ms */, OWN_VARIABLES = 7, MAX_STRINGS = 65536 };

/* What a child needs, made ready before vfork(2): it may only make system calls. */
struct launch {
	char program[PATH_MAX];
	char *const *argv;
	char **envp;
	const char *directory;
	struct user user;
	int in, out, err;
	bool terminal;
};

struct request {
	struct exec_request fixed;
	const char *directory;
	const char *user;
	char **argv; /* ends with NULL */
	char **environment;
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* Point at the strings of a request; false where there are not as many as it says. */
static bool parse_request(const struct frame *frame, char *arguments, size_t length,
			  struct request *request, char **pointers)
{
	char *end = arguments + length;
	size_t strings;

	if (frame->length != sizeof request->fixed || length == 0 || end[-1] != 0)
		return false;
	memcpy(&request->fixed, frame->payload, sizeof request->fixed);
	strings = 2 + (size_t)request->fixed.argument_count + request->fixed.environment_count;
	if (request->fixed.argument_count == 0 || strings > MAX_STRINGS)
		return false;
	request->directory = arguments;
	request->argv = pointers;
	for (size_t i = 0; i < strings; i++, arguments += strlen(arguments) + 1) {
		if (arguments >= end)
			return false;
		if (i == 1)
			request->user = arguments;
		if (i < 2)
			continue;
		if (i == 2 + (size_t)request->fixed.argument_count)
			*pointers++ = NULL;
		*pointers++ = arguments;
	}
	if (request->fixed.environment_count == 0)
		*pointers++ = NULL;
	request->environment = request->argv + request->fixed.argument_count + 1;
	return arguments == end;
}

static bool same_variable(const char *one, const char *other)
{
	size_t length = strcspn(one, "=");

	return strncmp(one, other, length) == 0 && other[length] == '=';
}

static void set_variable(char **variables, size_t *count, char *text)
{
	for (size_t i = 0; i < *count; i++) {
		if (same_variable(text, variables[i])) {
			variables[i] = text;
			return;
		}
	}
	variables[(*count)++] = text;
}

char *library_settings(void)
{
	for (char **variable = environ; *variable; variable++)
		if (same_variable("GLIBC_TUNABLES=", *variable))
			return *variable;
	return NULL;
}

/* The user's own variables, and over them the request's. */
static char **make_environment(const struct request *request, const struct user *user)
{
	static char home[PATH_MAX + 8], shell[PATH_MAX + 8], name[80], login[80];
	static char path[] = "PATH=" DEFAULT_PATH, terminal[] = "TERM=xterm";
	size_t wanted = request->fixed.environment_count, count = 0;
	char **variables = calloc(OWN_VARIABLES + wanted + 1, sizeof *variables);

	if (!variables)
		return NULL;
	snprintf(home, sizeof home, "HOME=%s", user->home);
	snprintf(shell, sizeof shell, "SHELL=%s", user->shell);
	snprintf(name, sizeof name, "USER=%s", user->name);
	snprintf(login, sizeof login, "LOGNAME=%s", user->name);
	variables[count++] = path;
	variables[count++] = home;
	variables[count++] = shell;
	variables[count++] = name;
	variables[count++] = login;
	if (request->fixed.terminal)
		variables[count++] = terminal;
	if (library_settings())
		variables[count++] = library_settings();
	for (size_t i = 0; i < wanted; i++)
		set_variable(variables, &count, request->environment[i]);
	return variables;
}

/* Find the program as execvp(3) would, with the PATH that it is going to have. */
static int find_program(const char *name, char *const *envp, char found[PATH_MAX])
{
	const char *path = "", *end;
	int error = ENOENT;

	if (strchr(name, '/'))
		return (size_t)snprintf(found, PATH_MAX, "%s", name) < PATH_MAX ? 0 : ENAMETOOLONG;
	for (; *envp; envp++)
		if (same_variable("PATH=", *envp))
			path = *envp + 5;
	for (; *path; path = *end ? end + 1 : end) {
		struct stat status;

		end = strchrnul(path, ':');
		if (snprintf(found, PATH_MAX, "%.*s/%s", (int)(end - path), path, name) >= PATH_MAX)
			continue;
		if (stat(found, &status) < 0 || !S_ISREG(status.st_mode))
			continue;
		if (access(found, X_OK) == 0)
			return 0;
		error = EACCES;
	}
	return error;
}

/* Runs between vfork(2) and execve(2), on the parent's memory: system calls alone. */
static int become(const struct launch *launch)
{
	const struct user *user = &launch->user;
	sigset_t none;

	setsid();
	if (launch->terminal && ioctl(launch->in, TIOCSCTTY, 0) < 0)
		return errno;
	if (dup2(launch->in, 0) < 0 || dup2(launch->out, 1) < 0 || dup2(launch->err, 2) < 0)
		return errno;
	/* The system calls themselves: the library's wrappers speak to threads, and we have none. */
	if (geteuid() == 0 || user->uid != geteuid() || user->gid != getegid()) {
		if (syscall(SYS_setgroups, user->group_count, user->groups) < 0 ||
		    syscall(SYS_setgid, user->gid) < 0 || syscall(SYS_setuid, user->uid) < 0)
			return errno;
	}
	if (chdir(launch->directory) < 0)
		return errno;
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(launch->program, launch->argv, launch->envp);
	return errno;
}

static pid_t spawn(const struct launch *launch, int *error)
{
	/* A child of vfork(2) shares our memory, so its error needs no pipe. */
	volatile int failure = 0;
	pid_t pid = vfork();

	if (pid == 0) {
		failure = become(launch);
		_exit(127);
	}
	if (pid < 0) {
		*error = errno;
		return -1;
	}
	*error = failure;
	if (failure) {
		waitpid(pid, NULL, 0);
		return -1;
	}
	return pid;
}

static void set_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void set_size(int master, uint16_t rows, uint16_t columns)
{
	struct winsize size = {.ws_row = rows, .ws_col = columns};

	ioctl(master, TIOCSWINSZ, &size);
}

static int open_terminal(struct process *process, struct launch *launch,
			 const struct exec_request *fixed)
{
	int unlock = 0;
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

	if (master < 0)
		return errno;
	process->out = master;
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
		return errno;
	process->slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (process->slave < 0)
		return errno;
	if (fchown(process->slave, launch->user.uid, (gid_t)-1) < 0 && geteuid() == 0)
		return errno;
	set_size(master, fixed->rows, fixed->columns);
	launch->in = launch->out = launch->err = process->slave;
	return 0;
}

static int open_pipes(struct process *process, struct launch *launch)
{
	int in[2], out[2], err[2];

	if (pipe2(in, O_CLOEXEC) < 0)
		return errno;
	launch->in = in[0];
	process->in = in[1];
	if (pipe2(out, O_CLOEXEC) < 0)
		return errno;
	process->out = out[0];
	launch->out = out[1];
	if (pipe2(err, O_CLOEXEC) < 0)
		return errno;
	process->err = err[0];
	launch->err = err[1];
	/* Our ends alone: the flag belongs to an end of a pipe, and programs expect it off. */
	set_nonblocking(process->in);
	set_nonblocking(process->out);
	set_nonblocking(process->err);
	return 0;
}

static void close_streams(struct process *process)
{
	close_fd(&process->in);
	close_fd(&process->out);
	close_fd(&process->err);
	close_fd(&process->slave);
}

static void clear(struct process *process)
{
	memset(process, 0, offsetof(struct process, in_buffer));
	process->in = process->out = process->err = process->slave = -1;
	process->out_credit = WINDOW;
}

static bool is_directory(const char *path)
{
	struct stat status;

	return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static void start(struct process *process, struct wire *wire, const struct request *request)
{
	static struct launch launch;
	const char *name = request->argv[0];
	int error;

	memset(&launch, 0, sizeof launch);
	launch.in = launch.out = launch.err = -1;
	launch.terminal = process->terminal = request->fixed.terminal != 0;
	launch.argv = request->argv;
	if (!user_find("/etc/passwd", "/etc/group", *request->user ? request->user : "root",
		       &launch.user)) {
		wire_error(wire, 0, "there is no user %s in the guest", request->user);
		return;
	}
	launch.directory = *request->directory ? request->directory : launch.user.home;
	if (!*request->directory && !is_directory(launch.directory))
		launch.directory = "/";
	if (!is_directory(launch.directory)) {
		wire_error(wire, ENOTDIR, "cannot start in %s", launch.directory);
		return;
	}
	launch.envp = make_environment(request, &launch.user);
	error = launch.envp ? find_program(name, launch.envp, launch.program) : ENOMEM;
	if (!error)
		error = launch.terminal ? open_terminal(process, &launch, &request->fixed)
					: open_pipes(process, &launch);
	if (!error)
		process->pid = spawn(&launch, &error);
	free(launch.envp);
	if (!launch.terminal) {
		close_fd(&launch.in);
		close_fd(&launch.out);
		close_fd(&launch.err);
	}
	if (error) {
		close_streams(process);
		process->pid = 0;
		wire_error(wire, error, "cannot run %s", name);
		return;
	}
	uint32_t pid = (uint32_t)process->pid;
	wire_send(wire, FRAME_STARTED, &pid, sizeof pid);
}

void process_start(struct process *process, struct wire *wire, const struct frame *frame,
		   char *arguments, size_t arguments_length)
{
	struct request request = {0};
	char **pointers = calloc(MAX_STRINGS + 2, sizeof *pointers);

	clear(process);
	if (!pointers)
		wire_error(wire, ENOMEM, "cannot run a command");
	else if (!parse_request(frame, arguments, arguments_length, &request, pointers))
		wire_error(wire, EINVAL, "a request to run a command makes no sense");
	else
		start(process, wire, &request);
	free(pointers);
}

bool process_takes(uint8_t type)
{
	return (type >= FRAME_STDIN && type <= FRAME_SIGNAL) || type == FRAME_CREDIT;
}

static void buffer_input(struct process *process, const struct frame *frame)
{
	size_t begin = (process->in_start + process->in_length) % WINDOW;
	size_t length = frame->length;
	size_t first;

	/* More than the credit: the host is out of order, and its excess is lost. */
	if (length > WINDOW - process->in_length)
		length = WINDOW - process->in_length;
	first = length < WINDOW - begin ? length : WINDOW - begin;
	memcpy(process->in_buffer + begin, frame->payload, first);
	memcpy(process->in_buffer, frame->payload + first, length - first);
	process->in_length += length;
}

static void send_signal(struct process *process, uint32_t number)
{
	pid_t foreground = process->terminal ? tcgetpgrp(process->out) : -1;

	if (process->exited || number == 0 || number >= (uint32_t)_NSIG)
		return;
	kill(-process->pid, (int)number);
	if (foreground > 0 && foreground != process->pid)
		kill(-foreground, (int)number);
}

void process_frame(struct process *process, struct wire *wire, const struct frame *frame)
{
	uint32_t number = 0;
	uint16_t size[2];

	if (!process->pid)
		return; /* sent before the host knew of the end */
	if (frame->length >= sizeof number)
		memcpy(&number, frame->payload, sizeof number);
	switch (frame->type) {
	case FRAME_STDIN:
		buffer_input(process, frame);
		break;
	case FRAME_STDIN_END:
		process->in_ends = true;
		break;
	case FRAME_RESIZE:
		memcpy(size, &number, sizeof size);
		if (process->terminal)
			set_size(process->out, size[0], size[1]);
		break;
	case FRAME_SIGNAL:
		send_signal(process, number);
		break;
	case FRAME_CREDIT:
		process->out_credit += number;
		break;
	}
	process_pump(process, wire);
}

void process_reaped(struct process *process, pid_t pid, int status)
{
	if (pid != process->pid)
		return;
	process->exited = true;
	process->status = status;
	process->drain_until = now_milliseconds() + LAST_OUTPUT_WAIT;
	process->in_length = 0;
	process->in_gone = true;
	close_fd(&process->in);
	close_fd(&process->slave);
}

void process_hang_up(struct process *process)
{
	if (process->pid && !process->exited) {
		kill(-process->pid, SIGHUP);
		kill(-process->pid, SIGCONT);
	}
	close_streams(process);
	process->pid = 0;
}

static int input_fd(const struct process *process)
{
	return process->terminal ? process->out : process->in;
}

static void end_input(struct process *process)
{
	static const uint8_t end_of_file = 4; /* Ctrl-D, in every terminal's default settings */

	process->in_ends = false;
	if (process->terminal) {
		process->in_buffer[process->in_start] = end_of_file;
		process->in_length = 1;
		return;
	}
	process->in_gone = true;
	close_fd(&process->in);
}

static void drop_input(struct process *process)
{
	process->in_written += (uint32_t)process->in_length;
	process->in_length = 0;
	process->in_gone = true;
	close_fd(&process->in);
}

static void pump_input(struct process *process, struct wire *wire)
{
	while (process->in_length && !process->in_gone) {
		size_t run = WINDOW - process->in_start;
		ssize_t done;

		if (run > process->in_length)
			run = process->in_length;
		done = write(input_fd(process), process->in_buffer + process->in_start, run);
		if (done < 0 && errno == EAGAIN)
			break;
		if (done < 0 && errno != EINTR)
			drop_input(process);
		if (done <= 0)
			continue;
		process->in_start = (process->in_start + (size_t)done) % WINDOW;
		process->in_length -= (size_t)done;
		process->in_written += (uint32_t)done;
	}
	if (process->in_gone && process->in_length)
		drop_input(process);
	if (process->in_ends && !process->in_length && !process->in_gone)
		end_input(process);
	/* A quarter at a time: few frames, and the host never runs dry. */
	if (process->in_written >= WINDOW / 4) {
		wire_send(wire, FRAME_CREDIT, &process->in_written, sizeof process->in_written);
		process->in_written = 0;
	}
}

static size_t output_room(const struct process *process, struct wire *wire)
{
	size_t room = wire_room(wire);
	size_t most = MAX_PAYLOAD;

	if (room < HEADER_SIZE + MAX_PAYLOAD + CONTROL_ROOM)
		return 0;
	return process->out_credit < most ? (size_t)process->out_credit : most;
}

/* Read a stream as far as room and credit go; true when it has nothing more for now. */
static bool pump_output(struct process *process, struct wire *wire, int *fd, enum frame_type type)
{
	while (*fd >= 0) {
		size_t room = output_room(process, wire);
		ssize_t got;

		if (!room)
			return false;
		got = read(*fd, wire_reserve(wire, room), room);
		if (got > 0) {
			process->out_credit -= (uint64_t)got;
			wire_commit(wire, type, (size_t)got);
		} else if (got < 0 && errno == EAGAIN) {
			return !(process->terminal && process->exited &&
				 now_milliseconds() < process->drain_until);
		} else if (got == 0 || errno != EINTR) {
			/* A terminal's end is EIO. */
			close_fd(fd);
		}
	}
	return true;
}

static void tell_end(struct process *process, struct wire *wire)
{
	uint32_t end[2] = {0, (uint32_t)WEXITSTATUS(process->status)};

	if (WIFSIGNALED(process->status)) {
		end[0] = 1;
		end[1] = (uint32_t)WTERMSIG(process->status);
	}
	wire_send(wire, FRAME_EXITED, end, sizeof end);
	close_streams(process);
	process->pid = 0;
}

void process_pump(struct process *process, struct wire *wire)
{
	bool quiet;

	if (!process->pid)
		return;
	pump_input(process, wire);
	quiet = pump_output(process, wire, &process->out, FRAME_STDOUT);
	quiet = pump_output(process, wire, &process->err, FRAME_STDERR) && quiet;
	/* Its children may hold the streams for ever: what it wrote itself is here by now. */
	if (process->exited && quiet)
		tell_end(process, wire);
}

int process_poll(const struct process *process, struct wire *wire, struct pollfd *fds)
{
	bool reads = process->pid && output_room(process, wire) > 0;
	bool writes = process->in_length > 0 && !process->in_gone;
	int count = 0;

	if (!process->pid)
		return 0;
	if (process->out >= 0 && (reads || (writes && process->terminal)))
		fds[count++] = (struct pollfd){
			.fd = process->out,
			.events = (short)((reads ? POLLIN : 0) |
					  (writes && process->terminal ? POLLOUT : 0))};
	if (process->err >= 0 && reads)
		fds[count++] = (struct pollfd){.fd = process->err, .events = POLLIN};
	if (process->in >= 0 && writes)
		fds[count++] = (struct pollfd){.fd = process->in, .events = POLLOUT};
	return count;
}

int process_timeout(const struct process *process)
{
	if (!process->pid || !process->exited || !process->terminal)
		return -1;
	return milliseconds_until(process->drain_until);
}
