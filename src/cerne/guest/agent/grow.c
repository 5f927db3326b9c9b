/*
 * Grows the root file system to the size of its disk, which may be larger than its image's.
 *
 * ext4 grows while it is mounted (Documentation/admin-guide/ext4.rst, EXT4_IOC_RESIZE_FS).
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent.h"

#define EXT4_MAGIC 0xef53
#define EXT4_RESIZE _IOW('f', 16, uint64_t)

/* A number in a file about a block device below /sys; 0 where there is none. */
static unsigned long long number_of(dev_t device, const char *name)
{
	char path[PATH_MAX], text[32] = "";
	FILE *file;

	snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s", major(device), minor(device), name);
	file = fopen(path, "re");
	if (file && !fgets(text, sizeof text, file))
		*text = 0;
	if (file)
		fclose(file);
	return strtoull(text, NULL, 10);
}

/* The bytes of the disk behind a partition that are neither its own nor before it. */
static unsigned long long left_behind(dev_t partition)
{
	unsigned long long end = number_of(partition, "start") + number_of(partition, "size");
	unsigned long long disk = number_of(partition, "../size");

	return disk > end ? (disk - end) * 512 : 0;
}

static void grow_ext4(struct wire *wire, uint64_t bytes, uint64_t block)
{
	uint64_t blocks = bytes / block;
	int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int error = root < 0 || ioctl(root, EXT4_RESIZE, &blocks) < 0 ? errno : 0;

	if (root >= 0)
		close(root);
	if (error)
		wire_error(wire, error, "growing the root file system failed");
	else
		wire_send(wire, FRAME_DONE, NULL, 0);
}

void grow_root(struct wire *wire)
{
	enum { MIB = 1 << 20, SPARE = 32 * MIB };
	struct stat root;
	struct statfs system;
	unsigned long long bytes;

	if (stat("/", &root) < 0 || statfs("/", &system) < 0) {
		wire_error(wire, errno, "looking at the root file system failed");
		return;
	}
	bytes = number_of(root.st_dev, "size") * 512;
	if (number_of(root.st_dev, "partition") && left_behind(root.st_dev) > SPARE)
		wire_error(wire, 0, "the root file system is on partition %llu, behind which %llu "
				    "MiB of the disk are free; grow the partition in the guest, "
				    "then its file system",
			   number_of(root.st_dev, "partition"), left_behind(root.st_dev) / MIB);
	else if ((unsigned long)system.f_type == EXT4_MAGIC && bytes)
		grow_ext4(wire, bytes, (uint64_t)system.f_bsize);
	else
		wire_error(wire, 0, "the root file system is of a kind that the agent does not grow "
				    "(type %lx)", (unsigned long)system.f_type);
}
