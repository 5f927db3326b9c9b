/*
 * A shell on the guest's console, where the agent is the first process.
 *
 * It is started only when somebody presses Enter there: most machines are never looked at that way,
 * and none of them should pay for it.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define ACTIVE "/sys/class/tty/console/active"

/* /dev/console can be nobody's controlling terminal; the device behind it can. */
static bool find_device(char *path, size_t size)
{
	char names[256];
	const char *last;
	FILE *file = fopen(ACTIVE, "re");
	bool found = file && fgets(names, sizeof names, file);

	if (file)
		fclose(file);
	if (!found)
		return false;
	names[strcspn(names, "\n")] = 0;
	last = strrchr(names, ' ');
	return snprintf(path, size, "/dev/%s", last ? last + 1 : names) < (int)size;
}

static void run_shell(int terminal)
{
	char *const environment[] = {"HOME=/root", "USER=root", "LOGNAME=root", "TERM=vt102",
				     "PATH=" DEFAULT_PATH, library_settings(), NULL};
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		ioctl(terminal, TIOCSCTTY, 1);
		dup2(terminal, 0);
		dup2(terminal, 1);
		dup2(terminal, 2);
		if (chdir("/root") < 0 && chdir("/") < 0)
			_exit(126);
		execve("/bin/bash", (char *const[]){"-bash", NULL}, environment);
		execve("/bin/sh", (char *const[]){"-sh", NULL}, environment);
		_exit(127);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

static void serve(const char *path)
{
	static const char invitation[] = "\nPress Enter for a shell.\n";
	/* Not to wait for a carrier: what is there reads and writes without one. */
	int terminal = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

	if (terminal >= 0)
		fcntl(terminal, F_SETFL, O_RDWR);

	while (terminal >= 0) {
		struct pollfd line = {.fd = terminal, .events = POLLIN};

		if (write(terminal, invitation, sizeof invitation - 1) < 0)
			break;
		if (poll(&line, 1, -1) == 1 && !(line.revents & POLLIN))
			break;
		run_shell(terminal);
	}
}

void console_start(void)
{
	char path[PATH_MAX];
	sigset_t none;

	if (!find_device(path, sizeof path) || fork() != 0)
		return;
	prctl(PR_SET_NAME, "cerne-console");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	serve(path);
	_exit(0);
}
