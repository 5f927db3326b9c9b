/* The guest as a whole: what it is, its clock, its entropy, its file systems, its end. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

/* From linux/fs.h and linux/random.h, which musl's compiler does not find. */
#ifndef FIFREEZE
#define FIFREEZE _IOWR('X', 119, int)
#define FITHAW _IOWR('X', 120, int)
#endif
#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)

enum {
	SHUTDOWN_POWEROFF = 1,
	SHUTDOWN_REBOOT = 2,
	MAX_ENTROPY = 512,
	MAX_MOUNTS = 64,
	PVPANIC_SHUTDOWN = 4,
	TERM_WAIT = 3000, /* ms that processes have to end by themselves */
	LOOK_AGAIN = 20,  /* ms */
};

static void read_system_name(char *name, size_t size)
{
	static const char key[] = "PRETTY_NAME=";
	FILE *file = fopen("/etc/os-release", "re");
	char line[256];

	snprintf(name, size, "Linux");
	while (file && fgets(line, sizeof line, file)) {
		char *value = line + sizeof key - 1;

		if (strncmp(line, key, sizeof key - 1) != 0)
			continue;
		value += *value == '"' || *value == '\'';
		value[strcspn(value, "\"'\n")] = 0;
		snprintf(name, size, "%s", value);
	}
	if (file)
		fclose(file);
}

static void tell_info(struct wire *wire)
{
	struct utsname names;
	char text[2048], system[256], boot_id[64], uptime[64];
	int length;

	uname(&names);
	read_system_name(system, sizeof system);
	read_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
	read_line("/proc/uptime", uptime, sizeof uptime);
	uptime[strcspn(uptime, " ")] = 0;
	length = snprintf(text, sizeof text,
			  "hostname=%s\nkernel=%s\narchitecture=%s\nsystem=%s\nboot_id=%s\n"
			  "uptime=%s\nagent_version=%s\n",
			  names.nodename, names.release, names.machine, system, boot_id, uptime,
			  AGENT_VERSION);
	wire_send(wire, FRAME_DONE, text, (size_t)length);
}

static int put_time(int64_t seconds, uint32_t nanoseconds)
{
	struct timespec now = {.tv_sec = seconds, .tv_nsec = nanoseconds};

	return clock_settime(CLOCK_REALTIME, &now) < 0 ? errno : 0;
}

static void answer(struct wire *wire, int error, const char *what)
{
	if (error)
		wire_error(wire, error, "%s", what);
	else
		wire_send(wire, FRAME_DONE, NULL, 0);
}

static void set_time(struct wire *wire, const struct frame *frame)
{
	int64_t seconds;
	uint32_t nanoseconds;

	if (frame->length != 12) {
		wire_error(wire, EINVAL, "cannot set the clock");
		return;
	}
	memcpy(&seconds, frame->payload, 8);
	memcpy(&nanoseconds, frame->payload + 8, 4);
	answer(wire, put_time(seconds, nanoseconds), "cannot set the clock");
}

static int put_entropy(const uint8_t *data, size_t length)
{
	struct {
		int bits;
		int size;
		uint8_t data[MAX_ENTROPY];
	} pool;
	int fd, error = 0;

	if (length == 0 || length > MAX_ENTROPY)
		return EINVAL;
	pool.bits = (int)length * 8;
	pool.size = (int)length;
	memcpy(pool.data, data, length);
	fd = open("/dev/random", O_RDWR | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0)
		error = errno;
	else
		ioctl(fd, RNDRESEEDCRNG); /* before 4.14 there is none; the next reseed takes it */
	if (fd >= 0)
		close(fd);
	return error;
}

static void add_entropy(struct wire *wire, const struct frame *frame)
{
	answer(wire, put_entropy(frame->payload, frame->length), "cannot add entropy");
}

/* A root that cannot be written keeps the name until the next boot alone. */
static void keep_hostname(const char *name, size_t length)
{
	static const char fresh[] = "/etc/.hostname.cerne";
	FILE *file = fopen(fresh, "we");
	bool written = file && fprintf(file, "%.*s\n", (int)length, name) > 0;

	if (file && fclose(file) != 0)
		written = false;
	if (!written || rename(fresh, "/etc/hostname") < 0)
		unlink(fresh);
}

static int put_hostname(const char *name, size_t length)
{
	if (length == 0)
		return EINVAL;
	if (sethostname(name, length) < 0)
		return errno;
	keep_hostname(name, length);
	return 0;
}

static bool has_device(const char *card)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "/sys/class/net/%s/device", card);
	return access(path, F_OK) == 0;
}

/*
 * Has the kernel tell the network of a card's new address (ip-sysctl, arp_notify): whoever sends to
 * the former one would wait in vain. It tells by IPv6 by itself.
 */
static void announce_changes(const char *card)
{
	char path[PATH_MAX];
	FILE *file;

	snprintf(path, sizeof path, "/proc/sys/net/ipv4/conf/%s/arp_notify", card);
	/* Where it cannot be had, the network learns the address from the guest's next frame. */
	file = fopen(path, "we");
	if (!file)
		return;
	fputs("1", file);
	fclose(file);
}

/*
 * The first network card gets this address while it is up, as virtio-net allows: taken down, it
 * would lose its other addresses and its routes.
 */
static int put_mac(const uint8_t mac[6])
{
	struct if_nameindex *cards = if_nameindex();
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int error = cards && fd >= 0 ? ENODEV : errno;

	for (struct if_nameindex *card = cards; fd >= 0 && card && card->if_index; card++) {
		struct ifreq request = {0};

		strncpy(request.ifr_name, card->if_name, IFNAMSIZ - 1);
		if (!has_device(card->if_name) || ioctl(fd, SIOCGIFHWADDR, &request) < 0 ||
		    request.ifr_hwaddr.sa_family != ARPHRD_ETHER)
			continue;
		announce_changes(card->if_name);
		memcpy(request.ifr_hwaddr.sa_data, mac, 6);
		error = ioctl(fd, SIOCSIFHWADDR, &request) < 0 ? errno : 0;
		break;
	}
	if (fd >= 0)
		close(fd);
	if (cards)
		if_freenameindex(cards);
	return error;
}

/* The strings after a renewal: one, without an end, before version 3. */
static bool take_names(const struct wire *wire, const char *text, size_t length,
		       char names[3][HOST_NAME_MAX + 1])
{
	const char *end = text + length;

	memset(names, 0, 3 * (HOST_NAME_MAX + 1));
	if (wire->protocol < IDENTITY_VERSION) {
		if (length > HOST_NAME_MAX)
			return false;
		memcpy(names[0], text, length);
		return true;
	}
	for (int i = 0; i < 3; i++) {
		size_t size = strnlen(text, (size_t)(end - text));

		if (text + size == end || size > HOST_NAME_MAX)
			return false;
		memcpy(names[i], text, size);
		text += size + 1;
	}
	return text == end;
}

/* Say whether this guest was a clone, and which steps failed. */
static void become(struct wire *wire, char names[3][HOST_NAME_MAX + 1])
{
	char text[1024] = "clone\n";
	const size_t said = strlen(text);

	if (*names[1] && identity_renew(names[0], names[1], names[2], text + said,
					sizeof text - said))
		wire_send(wire, FRAME_DONE, text, strlen(text));
	else
		wire_send(wire, FRAME_DONE, NULL, 0);
}

static void renew(struct wire *wire, const struct frame *frame)
{
	const size_t name_at = offsetof(struct renewal, entropy) + RENEWED_ENTROPY;
	char names[3][HOST_NAME_MAX + 1];
	struct renewal new;
	int error;

	if (frame->length < name_at ||
	    !take_names(wire, (const char *)frame->payload + name_at, frame->length - name_at,
			names)) {
		wire_error(wire, EINVAL, "cannot renew this guest");
		return;
	}
	memcpy(&new, frame->payload, name_at);
	/* The entropy first: nothing after it must be guessed from what others know. */
	if ((error = put_entropy(new.entropy, RENEWED_ENTROPY)))
		wire_error(wire, error, "cannot add entropy");
	else if ((error = put_time(new.seconds, new.nanoseconds)))
		wire_error(wire, error, "cannot set the clock");
	else if ((error = put_hostname(names[0], strlen(names[0]))))
		wire_error(wire, error, "cannot set the host name");
	else if (new.has_mac && (error = put_mac(new.mac)))
		wire_error(wire, error, "cannot set the network card's address");
	else
		become(wire, names);
}

/* The file systems that live on a device of this guest, in the order in which they were mounted. */
static int open_mounts(int fds[MAX_MOUNTS])
{
	FILE *mounts = setmntent("/proc/self/mounts", "re");
	struct mntent *mount;
	int count = 0;

	while (mounts && count < MAX_MOUNTS && (mount = getmntent(mounts))) {
		if (strncmp(mount->mnt_fsname, "/dev/", 5) != 0)
			continue;
		fds[count] = open(mount->mnt_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		count += fds[count] >= 0;
	}
	if (mounts)
		endmntent(mounts);
	return count;
}

static uint32_t thaw_all(void)
{
	int fds[MAX_MOUNTS];
	int count = open_mounts(fds);
	uint32_t thawed = 0;

	for (int i = 0; i < count; i++) {
		thawed += ioctl(fds[i], FITHAW, 0) == 0;
		close(fds[i]);
	}
	return thawed;
}

static bool cannot_freeze(int error)
{
	/* EBUSY: frozen already, as the same file system mounted a second time is. */
	return error == EOPNOTSUPP || error == ENOTTY || error == EINVAL || error == EBUSY;
}

static void freeze(struct system_state *state, struct wire *wire, const struct frame *frame)
{
	int fds[MAX_MOUNTS];
	int count, error = 0;
	uint32_t frozen = 0, milliseconds;

	if (frame->length != sizeof milliseconds) {
		wire_error(wire, EINVAL, "cannot freeze the file systems");
		return;
	}
	memcpy(&milliseconds, frame->payload, sizeof milliseconds);
	sync();
	count = open_mounts(fds);
	/* Backwards: what lies on another file system comes before the one below it. */
	for (int i = count - 1; i >= 0; i--) {
		if (!error && ioctl(fds[i], FIFREEZE, 0) == 0)
			frozen++;
		else if (!error && !cannot_freeze(errno))
			error = errno;
		close(fds[i]);
	}
	if (error) {
		thaw_all();
		wire_error(wire, error, "cannot freeze the file systems");
		return;
	}
	if (frozen)
		state->thaw_at = now_milliseconds() + milliseconds;
	wire_send(wire, FRAME_DONE, &frozen, sizeof frozen);
}

static void thaw(struct system_state *state, struct wire *wire)
{
	uint32_t thawed = thaw_all();

	state->thaw_at = 0;
	wire_send(wire, FRAME_DONE, &thawed, sizeof thawed);
}

/* For the first process: whether any process is left, as it inherits those that lose their parents. */
static bool has_children(void)
{
	pid_t ended;

	do
		ended = waitpid(-1, NULL, WNOHANG);
	while (ended > 0);
	return ended == 0;
}

/* Whether any process but the first and ourselves is left (kernel threads have no command line). */
static bool others_run(void)
{
	DIR *processes;
	struct dirent *process;
	bool found = false;

	if (getpid() == 1)
		return has_children();
	processes = opendir("/proc");
	while (processes && !found && (process = readdir(processes))) {
		char path[64], text[8];
		int pid = atoi(process->d_name);

		if (pid <= 1 || pid == getpid())
			continue;
		snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
		read_line(path, text, sizeof text);
		found = *text != 0;
	}
	if (processes)
		closedir(processes);
	return found;
}

static void end_all_processes(void)
{
	const struct timespec pause = {.tv_nsec = LOOK_AGAIN * 1000000};
	int64_t end = now_milliseconds() + TERM_WAIT;

	kill(-1, SIGTERM);
	kill(-1, SIGCONT);
	while (others_run() && now_milliseconds() < end) {
		nanosleep(&pause, NULL);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	kill(-1, SIGKILL);
}

static void run(const char *const *argv)
{
	pid_t pid = vfork();

	if (pid == 0) {
		execv(argv[0], (char *const *)argv);
		_exit(127);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

/* The name of the first process's program; empty if it is not known. */
static void name_init(char *name, size_t size)
{
	char path[PATH_MAX];
	ssize_t length = readlink("/proc/1/exe", path, sizeof path - 1);

	path[length < 0 ? 0 : length] = 0;
	snprintf(name, size, "%s", strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
}

static bool init_is_agent(void)
{
	char name[NAME_MAX];

	name_init(name, sizeof name);
	return strncmp(name, "cerne-agent", 11) == 0;
}

/* Whether the first process is one that has no shutdown of its own worth waiting for. */
static bool init_is_simple(void)
{
	char name[NAME_MAX];

	name_init(name, sizeof name);
	return !*name || strncmp(name, "busybox", 7) == 0 || strcmp(name, "init") == 0 ||
	       strcmp(name, "sh") == 0 || strcmp(name, "dash") == 0;
}

static unsigned long long device_number(const char *device, const char *name)
{
	char path[PATH_MAX], line[64];

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", device, name);
	read_line(path, line, sizeof line);
	return strtoull(line, NULL, 16);
}

/* The register of a PCI device whose first range of memory holds nothing else; NULL without one. */
static volatile uint8_t *map_register(const char *device)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	/* The line begins with where the range does, which is mapped from its page's beginning on. */
	size_t offset = device_number(device, "resource") & (page - 1);
	char path[PATH_MAX];
	uint8_t *mapped;
	int fd;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource0", device);
	fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	mapped = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return mapped == MAP_FAILED ? NULL : mapped + offset;
}

/*
 * Tells the host that we have shut down, by the panic notifier (QEMU's docs/specs/pvpanic.rst), where
 * there is one that listens for this; the machine ends with that.
 */
static void tell_shutdown(void)
{
	DIR *devices = opendir("/sys/bus/pci/devices");
	struct dirent *entry;

	while (devices && (entry = readdir(devices))) {
		volatile uint8_t *events;

		if (device_number(entry->d_name, "vendor") != 0x1b36 ||
		    device_number(entry->d_name, "device") != 0x0011)
			continue;
		events = map_register(entry->d_name);
		if (events && *events & PVPANIC_SHUTDOWN)
			*events = PVPANIC_SHUTDOWN;
	}
	if (devices)
		closedir(devices);
}

void system_shut_down(bool again)
{
	if (access("/run/systemd/system", F_OK) == 0) {
		run((const char *const[]){"/bin/systemctl", "--no-block",
					  again ? "reboot" : "poweroff", NULL});
		return;
	}
	if (!init_is_agent() && !init_is_simple()) {
		run((const char *const[]){again ? "/sbin/reboot" : "/sbin/poweroff", NULL});
		return;
	}
	end_all_processes();
	sync();
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	if (again || access("/sys/firmware/acpi", F_OK) == 0) {
		reboot(again ? RB_AUTOBOOT : RB_POWER_OFF);
		return;
	}
	/* Without ACPI a machine has no switch, and would halt for ever: some end by a reset, too. */
	tell_shutdown();
	reboot(RB_AUTOBOOT);
}

static void take_shutdown(struct wire *wire, const struct frame *frame)
{
	uint8_t how = frame->length == 1 ? frame->payload[0] : 0;

	if (how != SHUTDOWN_POWEROFF && how != SHUTDOWN_REBOOT) {
		wire_error(wire, EINVAL, "cannot shut down");
		return;
	}
	wire_send(wire, FRAME_DONE, NULL, 0);
	wire_wait_flushed(wire, 1000);
	/*
	 * The first process sees by itself that all others have ended. From here it takes all of /proc,
	 * which an emulated kernel reads in seconds, and in tens of them on a busy host.
	 */
	if (init_is_agent())
		kill(1, how == SHUTDOWN_REBOOT ? SIGTERM : SIGUSR2);
	else
		system_shut_down(how == SHUTDOWN_REBOOT);
}

bool system_takes(uint8_t type)
{
	return (type >= FRAME_INFO && type <= FRAME_RENEW) || type == FRAME_GROW;
}

void system_frame(struct system_state *state, struct wire *wire, const struct frame *frame)
{
	/* On a socket we serve a test on a host, whose clock and power are not ours. */
	if (!wire->is_port && frame->type != FRAME_INFO) {
		wire_error(wire, EPERM, "this agent does not serve a guest");
		return;
	}
	switch (frame->type) {
	case FRAME_INFO:
		tell_info(wire);
		break;
	case FRAME_SHUTDOWN:
		take_shutdown(wire, frame);
		break;
	case FRAME_SET_TIME:
		set_time(wire, frame);
		break;
	case FRAME_ENTROPY:
		add_entropy(wire, frame);
		break;
	case FRAME_RENEW:
		renew(wire, frame);
		break;
	case FRAME_GROW:
		grow_root(wire);
		break;
	case FRAME_FREEZE:
		freeze(state, wire, frame);
		break;
	case FRAME_THAW:
		thaw(state, wire);
		break;
	}
}

void system_tick(struct system_state *state)
{
	if (state->thaw_at && now_milliseconds() >= state->thaw_at) {
		state->thaw_at = 0;
		thaw_all();
	}
}

int system_timeout(const struct system_state *state)
{
	return state->thaw_at ? milliseconds_until(state->thaw_at) : -1;
}
