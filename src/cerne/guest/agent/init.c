/* What the first process of a tiny guest must do: mount the kernel's file systems, raise lo. */

#define _GNU_SOURCE
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent.h"

static const struct {
	const char *type, *place, *options;
	unsigned long flags;
} mounts[] = {
	{"proc", "/proc", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
	{"sysfs", "/sys", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
	{"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
	{"devpts", "/dev/pts", "mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
	{"tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV},
	{"tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV},
};

static void raise_loopback(void)
{
	struct ifreq request = {.ifr_flags = IFF_UP};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	strcpy(request.ifr_name, "lo");
	ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
}

void init_prepare(void)
{
	struct utsname names;

	/* What is mounted already stays as it is: mount(2) then says EBUSY. */
	for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
		mkdir(mounts[i].place, 0755);
		mount(mounts[i].type, mounts[i].place, mounts[i].type, mounts[i].flags,
		      mounts[i].options);
	}
	if (uname(&names) == 0 && strcmp(names.nodename, "(none)") == 0)
		sethostname("cerne", 5);
	raise_loopback();
}
