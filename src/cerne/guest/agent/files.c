/*
 * Trees of files, into the guest and out of it, as a stream of entries.
 *
 * An entry names one component, never a path: a directory's entry enters it, and a LEAVE entry sets
 * its mode and time and goes back up. A file is written beside its place and renamed into it, so
 * that it is replaced whole or not at all. Sockets, FIFOs and devices are left out: they mean
 * nothing on another machine.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

enum { TEMPORARY_TRIES = 100 };

/* Setuid and setgid are not kept: the owner changes. */
static const mode_t MODE_KEPT = 01777;

static bool ends(const char *text, size_t length)
{
	return length > 0 && text[length - 1] == 0;
}

static bool is_component(const char *name)
{
	return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static bool is_directory(const char *path)
{
	struct stat status;

	return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

/* ---- into the guest ---- */

static void forget_file(struct push *push)
{
	if (push->file >= 0)
		close(push->file);
	push->file = -1;
	if (*push->temporary)
		unlink(push->temporary);
	*push->temporary = 0;
	push->left = 0;
}

static void fail(struct push *push, struct wire *wire, int error, const char *what,
		 const char *path)
{
	wire_error(wire, error, "%s %s", what, path);
	forget_file(push);
	push->failed = true;
}

void push_abandon(struct push *push)
{
	if (push->active)
		forget_file(push);
	push->active = false;
}

void push_start(struct push *push, struct wire *wire, const char *arguments, size_t length)
{
	const char *base;
	size_t path_length;

	memset(push, 0, sizeof *push);
	push->file = -1;
	push->active = true;
	if (!ends(arguments, length) || (path_length = strlen(arguments)) + 1 >= length ||
	    path_length == 0) {
		fail(push, wire, EINVAL, "a copy into the guest", "names no place");
		return;
	}
	base = arguments + path_length + 1;
	if (is_directory(arguments)) {
		if (!is_component(base))
			fail(push, wire, EINVAL, "not a file's name:", base);
		else if (snprintf(push->path, PATH_MAX, "%s/%s", arguments, base) >= PATH_MAX)
			fail(push, wire, ENAMETOOLONG, "cannot write", arguments);
	} else if (arguments[path_length - 1] == '/') {
		fail(push, wire, 0, "there is no directory", arguments);
	} else if (snprintf(push->path, PATH_MAX, "%s", arguments) >= PATH_MAX) {
		fail(push, wire, ENAMETOOLONG, "cannot write", arguments);
	}
}

static int name_temporary(struct push *push, const char *path, unsigned int number)
{
	const char *slash = strrchr(path, '/');
	int directory = slash ? (int)(slash - path + 1) : 0;
	int length = snprintf(push->temporary, PATH_MAX, "%.*s.cerne-%d-%u", directory, path,
			      (int)getpid(), number);

	if (length < PATH_MAX)
		return 0;
	*push->temporary = 0;
	return ENAMETOOLONG;
}

/* Make a file (target is NULL) or a symbolic link of a name that nobody else has. */
static int make_temporary(struct push *push, const char *path, const char *target)
{
	int error = EEXIST;

	for (unsigned int i = 0; error == EEXIST && i < TEMPORARY_TRIES; i++) {
		error = name_temporary(push, path, i);
		if (error)
			return error;
		if (target) {
			error = symlink(target, push->temporary) < 0 ? errno : 0;
		} else {
			push->file = open(push->temporary,
					  O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
					  0600);
			error = push->file < 0 ? errno : 0;
		}
	}
	if (error)
		*push->temporary = 0;
	return error;
}

static void times_of(const struct entry *entry, struct timespec times[2])
{
	times[0].tv_sec = 0;
	times[0].tv_nsec = UTIME_OMIT;
	times[1].tv_sec = entry->seconds;
	times[1].tv_nsec = entry->nanoseconds < 1000000000 ? (long)entry->nanoseconds : 0;
}

static int put_in_place(struct push *push, const char *path)
{
	if (rename(push->temporary, path) < 0)
		return errno;
	*push->temporary = 0;
	return 0;
}

static int finish_file(struct push *push, const char *path)
{
	struct timespec times[2];
	struct stat before;

	/* Whose file it was stays so; a new one is the agent's. */
	if (lstat(path, &before) == 0 && S_ISREG(before.st_mode) &&
	    fchown(push->file, before.st_uid, before.st_gid) < 0)
		return errno;
	times_of(&push->entry, times);
	if (fchmod(push->file, push->entry.mode & MODE_KEPT) < 0 ||
	    futimens(push->file, times) < 0)
		return errno;
	/* Some file systems tell of a full disk only here. */
	int error = close(push->file) < 0 ? errno : 0;
	push->file = -1;
	return error ? error : put_in_place(push, path);
}

static int make_symlink(struct push *push, const char *path, const char *target)
{
	struct timespec times[2];
	int error = make_temporary(push, path, target);

	if (error)
		return error;
	times_of(&push->entry, times);
	utimensat(AT_FDCWD, push->temporary, times, AT_SYMLINK_NOFOLLOW);
	return put_in_place(push, path);
}

static int enter_directory(struct push *push)
{
	/* Ours alone until its own mode is set, when all is in it. */
	if (mkdir(push->path, 0700) < 0 && (errno != EEXIST || !is_directory(push->path)))
		return errno == EEXIST ? ENOTDIR : errno;
	push->depth++;
	return 0;
}

static int leave_directory(struct push *push)
{
	struct timespec times[2];

	times_of(&push->entry, times);
	if (chmod(push->path, push->entry.mode & MODE_KEPT) < 0 ||
	    utimensat(AT_FDCWD, push->path, times, 0) < 0)
		return errno;
	if (--push->depth > 0)
		*strrchr(push->path, '/') = 0;
	return 0;
}

/* Append an entry's name to the path; the root's is there already. */
static int append(struct push *push, const char *name)
{
	size_t length = strlen(push->path);

	if (!push->root_seen) {
		push->root_seen = true;
		return 0;
	}
	if (push->depth == 0 || push->depth >= MAX_DEPTH || !is_component(name))
		return EINVAL;
	if (length + 1 + strlen(name) >= PATH_MAX)
		return ENAMETOOLONG;
	snprintf(push->path + length, PATH_MAX - length, "/%s", name);
	return 0;
}

static void take_last_off(struct push *push)
{
	if (push->depth > 0)
		*strrchr(push->path, '/') = 0;
}

/* Whether a file ends by a frame of its own, and not with the last byte that was announced. */
static bool says_where_it_ends(const struct wire *wire)
{
	return wire->protocol >= HOLES_VERSION;
}

static int take_file(struct push *push, const struct wire *wire)
{
	int error = make_temporary(push, push->path, NULL);

	push->left = push->entry.size;
	/* A size of 0 may be that of a file which is made as it is read, as in /proc. */
	if (says_where_it_ends(wire) && push->left == 0)
		push->left = INT64_MAX;
	else if (!error && push->left == 0)
		error = finish_file(push, push->path);
	return error;
}

static void take_entry(struct push *push, struct wire *wire, const struct frame *frame)
{
	char name[NAME_MAX + 1], target[PATH_MAX];
	struct entry *entry = &push->entry;
	size_t rest = frame->length - sizeof *entry;
	int error;

	if (frame->length < sizeof *entry || push->file >= 0)
		rest = 0;
	else
		memcpy(entry, frame->payload, sizeof *entry);
	if (frame->length < sizeof *entry || push->file >= 0 || entry->name_length > rest ||
	    entry->name_length > NAME_MAX || rest - entry->name_length >= sizeof target) {
		fail(push, wire, EINVAL, "an entry makes no sense in", push->path);
		return;
	}
	memcpy(name, frame->payload + sizeof *entry, entry->name_length);
	name[entry->name_length] = 0;
	rest -= entry->name_length;
	memcpy(target, frame->payload + sizeof *entry + entry->name_length, rest);
	target[rest] = 0;

	if (entry->kind == ENTRY_LEAVE) {
		error = push->depth > 0 ? leave_directory(push) : EINVAL;
		if (error)
			fail(push, wire, error, "cannot finish", push->path);
		return;
	}
	error = append(push, name);
	if (!error && entry->kind == ENTRY_DIRECTORY)
		error = enter_directory(push);
	else if (!error && entry->kind == ENTRY_FILE)
		error = take_file(push, wire);
	else if (!error && entry->kind == ENTRY_SYMLINK)
		error = make_symlink(push, push->path, target);
	else if (!error)
		error = EINVAL;
	if (error)
		fail(push, wire, error, "cannot write", push->path);
	else if (entry->kind != ENTRY_DIRECTORY && push->file < 0)
		take_last_off(push);
}

static int write_all(int fd, const uint8_t *data, size_t length)
{
	while (length) {
		ssize_t done = write(fd, data, length);

		if (done < 0 && errno != EINTR)
			return errno;
		if (done > 0) {
			data += done;
			length -= (size_t)done;
		}
	}
	return 0;
}

static void take_data(struct push *push, struct wire *wire, const struct frame *frame)
{
	int error;

	if (push->file < 0 || frame->length > push->left) {
		fail(push, wire, EINVAL, "more came than was announced for", push->path);
		return;
	}
	error = write_all(push->file, frame->payload, frame->length);
	push->left -= frame->length;
	if (!error && push->left == 0 && !says_where_it_ends(wire))
		error = finish_file(push, push->path);
	if (error)
		fail(push, wire, error, "cannot write", push->path);
	else if (push->file < 0)
		take_last_off(push);
}

static void take_hole(struct push *push, struct wire *wire, const struct frame *frame)
{
	uint64_t length;

	if (frame->length == sizeof length)
		memcpy(&length, frame->payload, sizeof length);
	if (frame->length != sizeof length || push->file < 0 || length > push->left) {
		fail(push, wire, EINVAL, "a hole makes no sense in", push->path);
		return;
	}
	push->left -= length;
	if (lseek(push->file, (off_t)length, SEEK_CUR) < 0)
		fail(push, wire, errno, "cannot write", push->path);
}

static void take_file_end(struct push *push, struct wire *wire)
{
	off_t size = push->file < 0 ? -1 : lseek(push->file, 0, SEEK_CUR);
	int error = EINVAL;

	/* It may end in a hole. */
	if (size >= 0)
		error = ftruncate(push->file, size) < 0 ? errno : finish_file(push, push->path);
	if (error)
		fail(push, wire, error, "cannot write", push->path);
	else
		take_last_off(push);
}

void push_frame(struct push *push, struct wire *wire, const struct frame *frame)
{
	if (frame->type == FRAME_END) {
		if (!push->failed && (push->file >= 0 || push->depth || !push->root_seen))
			fail(push, wire, 0, "the host gave up copying", push->path);
		if (!push->failed)
			wire_send(wire, FRAME_DONE, NULL, 0);
		push_abandon(push);
	} else if (push->failed) {
		return;
	} else if (frame->type == FRAME_ENTRY) {
		take_entry(push, wire, frame);
	} else if (frame->type == FRAME_HOLE) {
		take_hole(push, wire, frame);
	} else if (frame->type == FRAME_FILE_END) {
		take_file_end(push, wire);
	} else {
		take_data(push, wire, frame);
	}
}

/* ---- out of the guest ---- */

struct walk {
	struct wire *wire;
	char path[PATH_MAX]; /* for words alone: files are opened by directory and name */
};

static bool stop(struct walk *walk, int error, const char *what)
{
	wire_error(walk->wire, error, "%s %s", what, walk->path);
	return false;
}

static bool send_entry(struct walk *walk, enum entry_kind kind, const struct stat *status,
		       const char *name, const char *target)
{
	struct entry entry = {
		.kind = (uint8_t)kind,
		.mode = status->st_mode & 07777,
		.seconds = status->st_mtim.tv_sec,
		.nanoseconds = (uint32_t)status->st_mtim.tv_nsec,
		.name_length = (uint32_t)strlen(name),
		.size = kind == ENTRY_FILE ? (uint64_t)status->st_size : 0,
	};
	size_t target_length = strlen(target);
	size_t length = sizeof entry + entry.name_length + target_length;
	uint8_t *place;

	if (!wire_wait_room(walk->wire, HEADER_SIZE + length + CONTROL_ROOM))
		return false;
	place = wire_reserve(walk->wire, length);
	memcpy(place, &entry, sizeof entry);
	memcpy(place + sizeof entry, name, entry.name_length);
	memcpy(place + sizeof entry + entry.name_length, target, target_length);
	wire_commit(walk->wire, FRAME_ENTRY, length);
	return true;
}

/* Send what can be read, at most so many bytes; how many, or -1 where it is told what is wrong. */
static int64_t send_data(struct walk *walk, int fd, uint64_t most)
{
	uint64_t sent = 0;

	while (sent < most) {
		size_t piece = most - sent < MAX_PAYLOAD ? (size_t)(most - sent) : MAX_PAYLOAD;
		ssize_t got;

		if (!wire_wait_room(walk->wire, HEADER_SIZE + MAX_PAYLOAD + CONTROL_ROOM))
			return -1;
		got = read(fd, wire_reserve(walk->wire, piece), piece);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			stop(walk, errno, "cannot read");
			return -1;
		}
		if (got == 0)
			break;
		wire_commit(walk->wire, FRAME_DATA, (size_t)got);
		sent += (uint64_t)got;
	}
	return (int64_t)sent;
}

static bool send_small(struct walk *walk, enum frame_type type, const void *payload, size_t length)
{
	if (!wire_wait_room(walk->wire, HEADER_SIZE + length + CONTROL_ROOM))
		return false;
	wire_send(walk->wire, type, payload, length);
	return true;
}

/* A file has ended before its size: it was shortened, unless it still tells of more than can be
 * read, as files do that are made as they are read. */
static bool ended(struct walk *walk, int fd, uint64_t at)
{
	struct stat status;

	if (fstat(fd, &status) == 0 && (uint64_t)status.st_size > at)
		return true;
	return stop(walk, 0, "the guest shortened, while it was read,");
}

/* Where the next data are, or the next hole; `otherwise` where the file does not tell. */
static uint64_t seek(int fd, uint64_t offset, int whence, uint64_t size, uint64_t otherwise)
{
	off_t found = lseek(fd, (off_t)offset, whence);

	if (found < 0 && errno == ENXIO)
		return size;
	if (found < 0)
		return otherwise;
	return (uint64_t)found < size ? (uint64_t)found : size;
}

/* Send a sparse file: its data, and how long its holes are. */
static bool send_pieces(struct walk *walk, int fd, uint64_t size)
{
	uint64_t data, end;

	for (uint64_t offset = 0; offset < size; offset = end) {
		int64_t sent;

		data = seek(fd, offset, SEEK_DATA, size, offset);
		end = data < size ? seek(fd, data, SEEK_HOLE, size, size) : size;
		uint64_t hole = data - offset;
		if (hole && !send_small(walk, FRAME_HOLE, &hole, sizeof hole))
			return false;
		/* What cannot be sought in tells of no holes, and is where it was. */
		if (lseek(fd, (off_t)data, SEEK_SET) < 0 && errno != ESPIPE)
			return stop(walk, errno, "cannot read");
		sent = send_data(walk, fd, end - data);
		if (sent < 0)
			return false;
		if ((uint64_t)sent < end - data)
			return ended(walk, fd, data + (uint64_t)sent);
	}
	/* A file that was shortened looks like one whose end is a hole. */
	return ended(walk, fd, size - 1);
}

static bool send_content(struct walk *walk, int fd, const struct stat *status)
{
	uint64_t size = (uint64_t)status->st_size;
	int64_t sent;

	if (says_where_it_ends(walk->wire) && (uint64_t)status->st_blocks * 512 < size)
		return send_pieces(walk, fd, size);
	/* A size of 0 may be no size: such a file is read to its end. */
	sent = send_data(walk, fd, size || !says_where_it_ends(walk->wire) ? size : INT64_MAX);
	if (sent >= 0 && (uint64_t)sent < size)
		return stop(walk, 0, "the guest shortened, while it was read,");
	return sent >= 0;
}

static bool send_file(struct walk *walk, int fd, const char *name)
{
	struct stat status;

	if (fstat(fd, &status) < 0)
		return stop(walk, errno, "cannot read");
	return send_entry(walk, ENTRY_FILE, &status, name, "") &&
	       send_content(walk, fd, &status) &&
	       (!says_where_it_ends(walk->wire) || send_small(walk, FRAME_FILE_END, NULL, 0));
}

static bool send_symlink(struct walk *walk, int parent, const char *name,
			 const struct stat *status)
{
	char target[PATH_MAX];
	ssize_t length = readlinkat(parent, name, target, sizeof target - 1);

	if (length < 0)
		return stop(walk, errno, "cannot read");
	target[length] = 0;
	return send_entry(walk, ENTRY_SYMLINK, status, name, target);
}

static bool send_any(struct walk *walk, int parent, const char *name, int depth);

static bool send_directory(struct walk *walk, int fd, const char *name, int depth)
{
	struct stat status;
	struct dirent *child;
	size_t length = strlen(walk->path);
	bool going;
	DIR *directory;

	if (depth >= MAX_DEPTH || fstat(fd, &status) < 0 || !(directory = fdopendir(fd))) {
		int error = depth >= MAX_DEPTH ? ELOOP : errno;
		close(fd);
		return stop(walk, error, "cannot read");
	}
	going = send_entry(walk, ENTRY_DIRECTORY, &status, name, "");
	while (going && (errno = 0, child = readdir(directory))) {
		if (!is_component(child->d_name))
			continue;
		snprintf(walk->path + length, PATH_MAX - length, "/%s", child->d_name);
		going = send_any(walk, dirfd(directory), child->d_name, depth + 1);
		walk->path[length] = 0;
	}
	if (going && errno)
		going = stop(walk, errno, "cannot read");
	closedir(directory);
	return going && send_entry(walk, ENTRY_LEAVE, &status, "", "");
}

static bool send_opened(struct walk *walk, int fd, const char *name, int depth)
{
	struct stat status;
	bool going;

	if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode))
		return send_directory(walk, fd, name, depth);
	going = send_file(walk, fd, name);
	close(fd);
	return going;
}

static bool send_any(struct walk *walk, int parent, const char *name, int depth)
{
	struct stat status;
	int fd;

	if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT || stop(walk, errno, "cannot read");
	if (S_ISLNK(status.st_mode))
		return send_symlink(walk, parent, name, &status);
	if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))
		return true;
	fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT || stop(walk, errno, "cannot read");
	return send_opened(walk, fd, name, depth);
}

void pull(struct wire *wire, const char *arguments, size_t length)
{
	static struct walk walk;
	struct stat status;
	int fd;

	walk.wire = wire;
	if (!ends(arguments, length) || strlen(arguments) >= PATH_MAX) {
		wire_error(wire, EINVAL, "a copy out of the guest names no file");
		return;
	}
	strcpy(walk.path, arguments);
	if (stat(walk.path, &status) < 0) {
		stop(&walk, errno, "cannot read");
		return;
	}
	if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
		stop(&walk, 0, "not a file or a directory:");
		return;
	}
	fd = open(walk.path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		stop(&walk, errno, "cannot read");
	else if (send_opened(&walk, fd, "", 0))
		wire_send(wire, FRAME_DONE, NULL, 0);
}
