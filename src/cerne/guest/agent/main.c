/*
 * cerne-agent: does in a guest what its host asks for, over virtio-serial ports.
 *
 *     cerne-agent                  serve the ports named org.cerne.agent.0 to .7
 *     cerne-agent -p PATH ...      serve these ports instead
 *     cerne-agent --socket-fd N    serve one session on a socket (for tests)
 *     cerne-agent --version
 *
 * Called poweroff, halt or reboot, it asks the first process for that, as those commands do.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

static int usage(void)
{
	fputs("usage: cerne-agent [-p PATH]... | --socket-fd N | --version\n", stderr);
	return 2;
}

static int serve_socket(const char *text)
{
	int fd = atoi(text);

	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0 ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return usage();
	session_serve(fd, false);
	return EXIT_SUCCESS;
}

/* An init may start us with no descriptors at all; ours must not become 0, 1 or 2. */
static void open_standard_streams(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= 2);
	if (fd > 2)
		close(fd);
}

/* Which signal a command of this name sends to the first process; 0 for the agent's own name. */
static int signal_of(const char *path)
{
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;

	if (strcmp(name, "poweroff") == 0 || strcmp(name, "halt") == 0)
		return SIGUSR2;
	return strcmp(name, "reboot") == 0 ? SIGTERM : 0;
}

int main(int argc, char **argv)
{
	int count = 0;

	if (argc > 0 && signal_of(argv[0]))
		return kill(1, signal_of(argv[0])) < 0;

	if (getpid() == 1)
		init_prepare();
	open_standard_streams();
	if (argc == 2 && strcmp(argv[1], "--version") == 0)
		return puts("cerne-agent " AGENT_VERSION) < 0;
	if (argc == 3 && strcmp(argv[1], "--socket-fd") == 0)
		return serve_socket(argv[2]);
	/* Gather the paths at the front of argv itself. */
	for (int i = 1; getpid() != 1 && i < argc; i += 2) {
		if (strcmp(argv[i], "-p") != 0 || i + 1 == argc)
			return usage();
		argv[count++] = argv[i + 1];
	}
	if (chdir("/") < 0)
		return EXIT_FAILURE;
	return supervise((const char *const *)argv, count);
}
