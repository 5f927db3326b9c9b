/* Unit tests of the agent's parts that need no other process: frames, users, time limits. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

#define CHECK(condition)                                                                  \
	do {                                                                              \
		if (!(condition)) {                                                       \
			fprintf(stderr, "%s:%d: not so: %s\n", __func__, __LINE__, #condition); \
			exit(EXIT_FAILURE);                                               \
		}                                                                         \
	} while (0)

static struct wire wire;
static int far;

static void open_pair(void)
{
	int ends[2];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
	wire_open(&wire, ends[0], false);
	far = ends[1];
}

static void close_pair(void)
{
	close(wire.fd);
	close(wire.edges);
	close(far);
}

static void say(const void *data, size_t length)
{
	CHECK(write(far, data, length) == (ssize_t)length);
	wire_transfer(&wire);
}

static void say_frame(uint8_t type, uint32_t length)
{
	static uint8_t bytes[HEADER_SIZE + MAX_PAYLOAD];
	struct header header = {.type = type, .length = length};

	memcpy(bytes, &header, HEADER_SIZE);
	memset(bytes + HEADER_SIZE, type, length);
	say(bytes, HEADER_SIZE + length);
}

static void say_hello(void)
{
	struct header header = {.type = FRAME_HELLO, .length = sizeof(struct hello)};
	struct hello hello = {.version = 1, .nonce = "fifteen letters"};

	memcpy(hello.magic, PROTOCOL_MAGIC, MAGIC_SIZE);
	say(&header, sizeof header);
	say(&hello, sizeof hello);
}

static void frames_come_whole(void)
{
	struct frame frame;
	struct header header = {.type = FRAME_STDIN, .length = 3};

	open_pair();
	say(&header, 5);
	CHECK(!wire_next(&wire, &frame));
	say((uint8_t *)&header + 5, 3);
	CHECK(!wire_has_frame(&wire));
	say("abc", 3);
	CHECK(wire_next(&wire, &frame));
	CHECK(frame.type == FRAME_STDIN && frame.length == 3);
	CHECK(memcmp(frame.payload, "abc", 3) == 0);
	CHECK(!wire_next(&wire, &frame));
	close_pair();
}

static void largest_frames_fit(void)
{
	struct frame frame;

	open_pair();
	for (uint8_t i = 1; i <= 20; i++) {
		say_frame(i, MAX_PAYLOAD);
		CHECK(wire_next(&wire, &frame));
		CHECK(frame.type == i && frame.length == MAX_PAYLOAD);
		CHECK(frame.payload[MAX_PAYLOAD - 1] == i);
	}
	close_pair();
}

static void zeros_between_frames_are_skipped(void)
{
	static const uint8_t zeros[12345];
	struct frame frame;

	open_pair();
	say(zeros, sizeof zeros);
	say_frame(FRAME_INFO, 0);
	CHECK(wire_next(&wire, &frame) && frame.type == FRAME_INFO);
	close_pair();
}

static void zeros_complete_what_was_cut_off(void)
{
	static const uint8_t zeros[HEADER_SIZE + MAX_PAYLOAD];
	const struct header cut = {.type = FRAME_DATA, .length = MAX_PAYLOAD};
	struct frame frame;

	for (size_t said = 1; said <= sizeof cut; said++) {
		open_pair();
		say(&cut, said);
		say(zeros, sizeof zeros);
		/* However much was said, a frame of data, perhaps an empty one, comes first. */
		CHECK(wire_next(&wire, &frame) && frame.type == FRAME_DATA);
		say_hello();
		CHECK(wire_next(&wire, &frame) && frame.type == FRAME_HELLO);
		CHECK(frame.length == sizeof(struct hello));
		close_pair();
	}
}

static void nonsense_is_passed_over_until_hello(void)
{
	const struct header huge = {.type = FRAME_DATA, .length = MAX_PAYLOAD + 1};
	struct frame frame;

	open_pair();
	say(&huge, sizeof huge);
	CHECK(!wire_next(&wire, &frame));
	for (int i = 0; i < 10; i++) {
		say_frame(FRAME_INFO, 30000);
		CHECK(!wire_next(&wire, &frame));
	}
	say_hello();
	CHECK(wire_next(&wire, &frame) && frame.type == FRAME_HELLO);
	close_pair();
}

static void output_is_bounded(void)
{
	static uint8_t payload[MAX_PAYLOAD];
	size_t most = sizeof wire.out;

	open_pair();
	for (int i = 0; i < 100; i++)
		wire_send(&wire, FRAME_STDOUT, payload, sizeof payload);
	CHECK(wire.out_end <= most);
	CHECK(wire_room(&wire) < HEADER_SIZE + MAX_PAYLOAD);
	wire_forget_output(&wire);
	CHECK(wire_room(&wire) == most);
	close_pair();
}

static void errors_are_words(void)
{
	char answer[2048];
	ssize_t length;

	open_pair();
	wire_error(&wire, 28, "cannot write %s", "/a");
	wire_transfer(&wire);
	length = read(far, answer, sizeof answer);
	CHECK(length > HEADER_SIZE + 4 && answer[0] == FRAME_ERROR);
	answer[length] = 0;
	CHECK(strncmp(answer + HEADER_SIZE + 4, "cannot write /a: No space left", 30) == 0);
	memset(answer, 'x', sizeof answer);
	answer[sizeof answer - 1] = 0;
	wire_error(&wire, 28, "%s", answer);
	wire_transfer(&wire);
	length = read(far, answer, sizeof answer);
	CHECK(length > 500 && length < 1024);
	CHECK(memmem(answer, (size_t)length, "xx: No space left", 17));
	close_pair();
}

static void the_other_end_closes(void)
{
	open_pair();
	close(far);
	wire_transfer(&wire);
	CHECK(wire.closed);
	far = open("/dev/null", O_RDONLY);
	close_pair();
}

static char passwd_path[] = "/tmp/cerne-passwd-XXXXXX";
static char group_path[] = "/tmp/cerne-group-XXXXXX";

static void write_file(char *path, const char *text)
{
	int fd = mkstemp(path);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static bool find(const char *text, struct user *user)
{
	return user_find(passwd_path, group_path, text, user);
}

static void users_are_found(void)
{
	struct user user;

	write_file(passwd_path, "root:x:0:0:root:/root:/bin/bash\n"
				"broken:x:zz:1:::\nshort\n"
				"ann:x:1000:100:Ann:/home/ann:\n"
				"evil:x:4294967295:0::/:/bin/sh\n");
	write_file(group_path, "users:x:100:\ndisk:x:6:bob,ann\nwheel:x:10:ann\nbad:x\nx:x:7:annx\n");
	CHECK(find("ann", &user));
	CHECK(user.uid == 1000 && user.gid == 100 && strcmp(user.home, "/home/ann") == 0);
	CHECK(strcmp(user.shell, "/bin/sh") == 0);
	CHECK(user.group_count == 3 && user.groups[0] == 6 && user.groups[1] == 10);
	CHECK(find("1000", &user) && strcmp(user.name, "ann") == 0);
	CHECK(find("ann:disk", &user) && user.gid == 6 && user.group_count == 1);
	CHECK(find("ann:77", &user) && user.gid == 77);
	CHECK(find("4242", &user) && user.uid == 4242 && strcmp(user.home, "/") == 0);
	CHECK(find("0:0", &user) && user.uid == 0);
	CHECK(!find("nobody", &user));
	CHECK(!find("broken", &user));
	CHECK(!find("evil", &user));
	CHECK(!find("4294967295", &user));
	CHECK(!find("-1", &user));
	CHECK(!find("", &user));
	CHECK(!find(":disk", &user));
	CHECK(!find("ann:nogroup", &user));
	CHECK(!find("a name that is very much longer than any name of a user ever ought to be", &user));
	unlink(passwd_path);
	unlink(group_path);
	CHECK(find("root", &user) && user.uid == 0);
	CHECK(!find("ann", &user));
}

static void the_sooner_limit_wins(void)
{
	CHECK(sooner(-1, -1) == -1);
	CHECK(sooner(-1, 5) == 5 && sooner(5, -1) == 5);
	CHECK(sooner(3, 5) == 3 && sooner(5, 3) == 3);
	CHECK(milliseconds_until(now_milliseconds() - 1000) == 0);
	CHECK(milliseconds_until(INT64_MAX / 2) == INT_MAX);
}

int main(void)
{
	frames_come_whole();
	largest_frames_fit();
	zeros_between_frames_are_skipped();
	zeros_complete_what_was_cut_off();
	nonsense_is_passed_over_until_hello();
	output_is_bounded();
	errors_are_words();
	the_other_end_closes();
	users_are_found();
	the_sooner_limit_wins();
	puts("ok");
	return EXIT_SUCCESS;
}
