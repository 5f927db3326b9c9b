/*
 * Finds the ports, and gives each one that a host speaks on a process of its own.
 *
 * A session that waits for a slow disk, or dies, then hinders no other; and a port that nobody uses
 * costs no process. Ports that come later are told of by the kernel's uevents.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

/* From linux/netlink.h, which musl's compiler does not find. */
#define NETLINK_KOBJECT_UEVENT 15
struct netlink_address {
	sa_family_t family;
	unsigned short zero;
	uint32_t port;
	uint32_t groups;
};

#define PORTS "/sys/class/virtio-ports"
#define PORT_NAME "org.cerne.agent."

enum { MAX_PORTS = 8, FROM_SIGNALS = 100, FROM_KERNEL = 101, LOOK_AGAIN = 200 /* ms */ };

struct port {
	int fd;
	pid_t worker;
	char path[64];
};

static struct port ports[MAX_PORTS];
static int port_count;
static int events;

static void watch(int fd, uint32_t what, uint32_t source)
{
	struct epoll_event event = {.events = what, .data.u32 = source};

	epoll_ctl(events, EPOLL_CTL_ADD, fd, &event);
}

/* Tell a host that is in the middle of a session that this is the end of it. */
static void announce(int fd)
{
	const struct header header = {.type = FRAME_RESTARTED};

	if (write(fd, &header, sizeof header) < 0)
		return; /* no host is there */
}

static bool is_known(const char *path)
{
	for (int i = 0; i < port_count; i++)
		if (strcmp(ports[i].path, path) == 0)
			return true;
	return false;
}

static void add_port(const char *path)
{
	struct port *port = &ports[port_count];

	if (port_count == MAX_PORTS || strlen(path) >= sizeof port->path || is_known(path))
		return;
	port->fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (port->fd < 0)
		return;
	strcpy(port->path, path);
	port->worker = 0;
	announce(port->fd);
	watch(port->fd, EPOLLIN | EPOLLET, (uint32_t)port_count++);
}

static bool has_our_name(const char *entry)
{
	char path[PATH_MAX], name[64];
	ssize_t length;
	int fd;

	snprintf(path, sizeof path, PORTS "/%s/name", entry);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, name, sizeof name - 1);
	close(fd);
	if (length <= 0)
		return false;
	name[length] = 0;
	return strncmp(name, PORT_NAME, strlen(PORT_NAME)) == 0;
}

static void find_ports(void)
{
	DIR *directory = opendir(PORTS);
	struct dirent *entry;
	char path[sizeof "/dev/" + NAME_MAX];

	while (directory && (entry = readdir(directory))) {
		if (entry->d_name[0] == '.' || !has_our_name(entry->d_name))
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		add_port(path);
	}
	if (directory)
		closedir(directory);
}

static int open_uevents(void)
{
	struct netlink_address address = {.family = AF_NETLINK, .groups = 1};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
			NETLINK_KOBJECT_UEVENT);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

static void serve(struct port *port)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		prctl(PR_SET_NAME, "cerne-session");
		close(events);
		session_serve(port->fd, true);
		_exit(0);
	}
	if (pid < 0)
		return; /* the host asks again, and then there may be memory */
	port->worker = pid;
	epoll_ctl(events, EPOLL_CTL_DEL, port->fd, NULL);
}

static void reap(void)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
		for (int i = 0; i < port_count; i++) {
			if (ports[i].worker != pid)
				continue;
			ports[i].worker = 0;
			announce(ports[i].fd);
			watch(ports[i].fd, EPOLLIN | EPOLLET, (uint32_t)i);
		}
	}
}

static void drain(int fd)
{
	char scratch[8192];

	while (read(fd, scratch, sizeof scratch) > 0)
		;
}

/* Children that ended; and for the first process what poweroff, halt and reboot send it. */
static int watch_signals(void)
{
	sigset_t signals;
	int fd;

	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	if (getpid() == 1) {
		sigaddset(&signals, SIGUSR1);
		sigaddset(&signals, SIGUSR2);
		sigaddset(&signals, SIGTERM);
		sigaddset(&signals, SIGINT);
	}
	sigprocmask(SIG_BLOCK, &signals, NULL);
	fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	watch(fd, EPOLLIN, FROM_SIGNALS);
	return fd;
}

static void take_signals(int fd)
{
	struct signalfd_siginfo signal;

	while (read(fd, &signal, sizeof signal) == sizeof signal)
		if (signal.ssi_signo != SIGCHLD)
			system_shut_down(signal.ssi_signo == SIGTERM || signal.ssi_signo == SIGINT);
	reap();
}

int supervise(const char *const *paths, int count)
{
	bool console = getpid() == 1;
	int signals, kernel = -1;

	events = epoll_create1(EPOLL_CLOEXEC);
	if (events < 0)
		return EXIT_FAILURE;
	signals = watch_signals();
	if (count == 0) {
		kernel = open_uevents();
		if (kernel >= 0)
			watch(kernel, EPOLLIN, FROM_KERNEL);
		find_ports();
	}
	for (int i = 0; i < count; i++)
		add_port(paths[i]);
	if (count > 0 && port_count < count) {
		fprintf(stderr, "cerne-agent: cannot open all ports: %s\n", strerror(errno));
		return EXIT_FAILURE;
	}
	for (;;) {
		bool deaf = count == 0 && kernel < 0 && port_count == 0;
		struct epoll_event event;
		int got = epoll_wait(events, &event, 1, console ? 0 : deaf ? LOOK_AGAIN : -1);

		if (got == 0 && console) {
			/* Now that no host waits for it. */
			console = false;
			console_start();
		} else if (got == 0) {
			find_ports();
		} else if (got == 1 && event.data.u32 == FROM_SIGNALS) {
			take_signals(signals);
		} else if (got == 1 && event.data.u32 == FROM_KERNEL) {
			drain(kernel);
			find_ports();
		} else if (got == 1 && event.events & EPOLLIN && !(event.events & EPOLLHUP)) {
			/* With HUP no host is there, and IN says no more than that. */
			serve(&ports[event.data.u32]);
		}
	}
}
