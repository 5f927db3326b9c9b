/*
 * Users and groups, from passwd(5) and group(5).
 *
 * Read here rather than by getpwnam(3): a static program has no name service modules to load.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

enum { FIELDS = 7 };

/* Split a line at its colons, in place; the number of fields. */
static int split(char *line, char *fields[FIELDS])
{
	int count = 0;

	line[strcspn(line, "\n")] = 0;
	while (line && count < FIELDS)
		fields[count++] = strsep(&line, ":");
	return count;
}

static bool number(const char *text, uint32_t *value)
{
	char *end;
	unsigned long long parsed;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	parsed = strtoull(text, &end, 10);
	/* The last id means "leave as it is" to the kernel. */
	if (*end || errno || parsed >= UINT32_MAX)
		return false;
	*value = (uint32_t)parsed;
	return true;
}

static void copy(char *target, size_t size, const char *text)
{
	snprintf(target, size, "%s", text);
}

static bool read_passwd_line(char *line, const char *name, bool by_id, uint32_t id,
			     struct user *user)
{
	char *fields[FIELDS];
	uint32_t uid, gid;

	if (split(line, fields) != FIELDS || !number(fields[2], &uid) || !number(fields[3], &gid))
		return false;
	if (strcmp(fields[0], name) != 0 && !(by_id && uid == id))
		return false;
	user->uid = uid;
	user->gid = gid;
	copy(user->name, sizeof user->name, fields[0]);
	copy(user->home, sizeof user->home, fields[5]);
	copy(user->shell, sizeof user->shell, *fields[6] ? fields[6] : "/bin/sh");
	return true;
}

static bool find_passwd(const char *path, const char *name, struct user *user)
{
	FILE *file = fopen(path, "re");
	uint32_t id = 0;
	bool by_id = number(name, &id);
	bool found = false;
	char *line = NULL;
	size_t size = 0;

	while (file && !found && getline(&line, &size, file) > 0)
		found = read_passwd_line(line, name, by_id, id, user);
	free(line);
	if (file)
		fclose(file);
	if (found)
		return true;
	/* An id needs no name; root needs no passwd file. */
	if (!by_id && strcmp(name, "root") != 0)
		return false;
	user->uid = user->gid = id;
	copy(user->name, sizeof user->name, id == 0 ? "root" : name);
	copy(user->home, sizeof user->home, id == 0 ? "/root" : "/");
	copy(user->shell, sizeof user->shell, "/bin/sh");
	return true;
}

static bool is_member(char *members, const char *name)
{
	char *member;

	while ((member = strsep(&members, ",")))
		if (strcmp(member, name) == 0)
			return true;
	return false;
}

static void add_group(struct user *user, gid_t gid)
{
	const int most = sizeof user->groups / sizeof *user->groups;

	for (int i = 0; i < user->group_count; i++)
		if (user->groups[i] == gid)
			return;
	if (user->group_count < most)
		user->groups[user->group_count++] = gid;
}

/* Gather the groups that the user is a member of, or find the one that was asked for. */
static bool read_groups(const char *path, const char *wanted, struct user *user)
{
	FILE *file = fopen(path, "re");
	uint32_t id = 0, gid;
	bool by_id = wanted && number(wanted, &id);
	bool found = !wanted;
	char *line = NULL, *fields[FIELDS];
	size_t size = 0;

	while (file && getline(&line, &size, file) > 0) {
		if (split(line, fields) != 4 || !number(fields[2], &gid))
			continue;
		if (!wanted) {
			if (is_member(fields[3], user->name))
				add_group(user, gid);
		} else if (!found && strcmp(fields[0], wanted) == 0) {
			user->gid = gid;
			found = true;
		}
	}
	free(line);
	if (file)
		fclose(file);
	if (!found && by_id) {
		user->gid = id;
		found = true;
	}
	return found;
}

bool user_find(const char *passwd, const char *group, const char *text, struct user *user)
{
	char name[sizeof user->name];
	const char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : strlen(text);

	memset(user, 0, sizeof *user);
	if (length == 0 || length >= sizeof name)
		return false;
	memcpy(name, text, length);
	name[length] = 0;
	if (!find_passwd(passwd, name, user))
		return false;
	if (!read_groups(group, colon ? colon + 1 : NULL, user))
		return false;
	add_group(user, user->gid);
	return true;
}
