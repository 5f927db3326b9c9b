/*
 * What a guest keeps of its source that is a clone of another machine's: machine-id, keys of SSH,
 * leases of DHCP. The host says whose guest this is; the disk says whose it was.
 *
 * A machine's own id is kept in /var/lib/cerne/machine. Where that is another machine's, this guest
 * is a clone: what follows here is done, and then each program in /etc/cerne/clone.d is run.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define DIRECTORY "/var/lib/cerne"
#define MACHINE DIRECTORY "/machine"
#define MACHINE_ID "/etc/machine-id"
#define HOOKS "/etc/cerne/clone.d"

enum { STEP_TIME = 20000 /* ms that one program may take */, LOOK_AGAIN = 20 /* ms */ };

/* What is another machine's, by what its files are named with: it is made again by itself. */
static const struct {
	const char *directory, *begin, *part;
} leftovers[] = {
	{"/var/lib/systemd", "random-seed", ""},
	{"/var/lib/dhcp", "", ".lease"},
	{"/var/lib/dhclient", "", ".lease"},
	{"/var/lib/dhcpcd", "", ".lease"},
	{"/var/lib/dhcpcd", "duid", ""},
	{"/var/lib/NetworkManager", "", ".lease"},
	{"/var/lib/NetworkManager", "secret_key", ""},
	{"/run/systemd/netif/leases", "", ""},
	{"/etc/ssh", "ssh_host_", "_key"},
};

static bool write_word(const char *path, const char *word)
{
	char fresh[PATH_MAX];
	FILE *file;
	bool written;

	snprintf(fresh, sizeof fresh, "%s.new", path);
	file = fopen(fresh, "we");
	written = file && fprintf(file, "%s\n", word) > 0;
	if (file && (fchmod(fileno(file), 0444) < 0 || fclose(file) != 0))
		written = false;
	if (written && rename(fresh, path) == 0)
		return true;
	unlink(fresh);
	return false;
}

static void remove_files(const char *place, const char *begin, const char *part)
{
	DIR *directory = opendir(place);
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		if (strncmp(entry->d_name, begin, strlen(begin)) == 0 &&
		    strstr(entry->d_name, part))
			unlinkat(dirfd(directory), entry->d_name, 0);
	if (directory)
		closedir(directory);
}

static void become(const char *const *argv, const char *name)
{
	char called[HOST_NAME_MAX + 16];
	char *const environment[] = {"PATH=" DEFAULT_PATH, "HOME=/root", called, NULL};
	sigset_t none;

	snprintf(called, sizeof called, "CERNE_NAME=%s", name);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	execve(argv[0], (char *const *)argv, environment);
	_exit(127);
}

/* Run a program to its end, which is not waited for longer than a step may take. */
static bool run(const char *const *argv, const char *name)
{
	const struct timespec pause = {.tv_nsec = LOOK_AGAIN * 1000000};
	int64_t end = now_milliseconds() + STEP_TIME;
	pid_t pid = fork();
	int status = 0;

	if (pid == 0)
		become(argv, name);
	while (pid > 0 && waitpid(pid, &status, WNOHANG) == 0) {
		if (now_milliseconds() >= end) {
			kill(-pid, SIGKILL);
			waitpid(pid, NULL, 0);
			return false;
		}
		nanosleep(&pause, NULL);
	}
	return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Add the name of a step that failed to what the host is told. */
static void note(char *failed, size_t size, const char *step)
{
	size_t length = strlen(failed);

	snprintf(failed + length, size - length, "%s\n", step);
}

static void renew_machine_id(const char *machine_id, char *failed, size_t size)
{
	char former[64];
	struct stat status;

	/* It is empty in an image that was made of a machine. */
	if (access(MACHINE_ID, F_OK) != 0 ||
	    (read_line(MACHINE_ID, former, sizeof former) && strcmp(former, machine_id) == 0))
		return;
	if (!write_word(MACHINE_ID, machine_id))
		note(failed, size, MACHINE_ID);
	if (lstat("/var/lib/dbus/machine-id", &status) == 0 && S_ISREG(status.st_mode))
		write_word("/var/lib/dbus/machine-id", machine_id);
}

/* New keys of the SSH server, if it is installed. */
static void make_ssh_keys(const char *name, char *failed, size_t size)
{
	static const char *const make[] = {"/usr/bin/ssh-keygen", "-q", "-A", NULL};

	if (access(make[0], X_OK) == 0 && access("/etc/ssh/sshd_config", F_OK) == 0 &&
	    !run(make, name))
		note(failed, size, "ssh-keygen -A");
}

/* Services that have read what was changed; the others of a name are not there. */
static void restart_services(const char *name)
{
	static const char *const running[] = {
		"/bin/systemctl", "--no-block", "try-restart", "systemd-journald.service",
		"systemd-networkd.service", "ssh.service", "sshd.service", NULL};
	/* At a boot it found no key. */
	static const char *const failed[] = {"/bin/sh", "-c",
					     "systemctl is-failed -q ssh.service && "
					     "systemctl --no-block restart ssh.service",
					     NULL};

	if (access("/run/systemd/system", F_OK) != 0)
		return;
	run(running, name);
	run(failed, name);
}

/* The hook whose name comes after this one, which it replaces. */
static bool next_hook(char name[NAME_MAX + 1])
{
	DIR *directory = opendir(HOOKS);
	char next[NAME_MAX + 1] = "";
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		if (entry->d_name[0] != '.' && !strpbrk(entry->d_name, "~\n") &&
		    strcmp(entry->d_name, name) > 0 &&
		    (!*next || strcmp(entry->d_name, next) < 0))
			strcpy(next, entry->d_name);
	if (directory)
		closedir(directory);
	strcpy(name, next);
	return *next != 0;
}

static void run_hooks(const char *name, char *failed, size_t size)
{
	char hook[NAME_MAX + 1] = "", path[sizeof HOOKS + 1 + sizeof hook];

	while (next_hook(hook)) {
		snprintf(path, sizeof path, HOOKS "/%s", hook);
		if (access(path, X_OK) == 0 && !run((const char *const[]){path, NULL}, name))
			note(failed, size, path);
	}
}

/* Whether the disk says that this guest was another machine's. */
static bool is_clone(const char *machine, const char *machine_id)
{
	char former[64];

	if (read_line(MACHINE, former, sizeof former))
		return strcmp(former, machine) != 0;
	/* At the first boot of an image there is none, and systemd has the id that it was given. */
	return read_line(MACHINE_ID, former, sizeof former) && strcmp(former, machine_id) != 0;
}

bool identity_renew(const char *name, const char *machine, const char *machine_id, char *failed,
		    size_t size)
{
	char former[64];
	bool clone;

	*failed = 0;
	if (read_line(MACHINE, former, sizeof former) && strcmp(former, machine) == 0)
		return false;
	clone = is_clone(machine, machine_id);
	if (clone) {
		renew_machine_id(machine_id, failed, size);
		for (size_t i = 0; i < sizeof leftovers / sizeof *leftovers; i++)
			remove_files(leftovers[i].directory, leftovers[i].begin,
				     leftovers[i].part);
		make_ssh_keys(name, failed, size);
		restart_services(name);
		run_hooks(name, failed, size);
	}
	mkdir("/var", 0755);
	mkdir("/var/lib", 0755);
	mkdir(DIRECTORY, 0755);
	if (!write_word(MACHINE, machine))
		note(failed, size, MACHINE);
	return clone;
}
