/* The guest agent: what its parts offer one another. The protocol is described in docs/agent.md. */

#ifndef CERNE_AGENT_H
#define CERNE_AGENT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the protocol is little-endian");

#define AGENT_VERSION "4"
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define PROTOCOL_VERSION 3u
#define HOLES_VERSION 2u /* since when a file has holes, and says where it ends */
#define IDENTITY_VERSION 3u /* since when a renewal says whose guest it is */
#define PROTOCOL_MAGIC "cerne\0ag"

enum {
	MAGIC_SIZE = 8,
	NONCE_SIZE = 16,
	HEADER_SIZE = 8,
	MAX_PAYLOAD = 32 * 1024,
	MAX_ARGUMENTS = 1024 * 1024, /* bytes of all strings of one request */
	WINDOW = 256 * 1024,	     /* credit that each stream begins with */
	CONTROL_ROOM = 4096,	     /* kept free in the output for frames that are not data */
	ANSWER_ROOM = 2048,	     /* of which so much must be left for a frame to be taken */
	LEAVING_TIME = 200,	     /* ms without a host after which its session is over */
	MAX_DEPTH = 256,	     /* of directories in a tree that is copied */
};

enum frame_type {
	/* from the host */
	FRAME_HELLO = 1,
	FRAME_ARGUMENTS = 2,
	FRAME_EXEC = 3,
	FRAME_STDIN = 4,
	FRAME_STDIN_END = 5,
	FRAME_RESIZE = 6,
	FRAME_SIGNAL = 7,
	FRAME_CREDIT = 8, /* both ways */
	FRAME_PUSH = 9,
	FRAME_ENTRY = 10, /* both ways */
	FRAME_DATA = 11,  /* both ways */
	FRAME_END = 12,
	FRAME_PULL = 13,
	FRAME_INFO = 14,
	FRAME_SHUTDOWN = 15,
	FRAME_SET_TIME = 16,
	FRAME_ENTROPY = 17,
	FRAME_FREEZE = 18,
	FRAME_THAW = 19,
	FRAME_RENEW = 20,
	FRAME_HOLE = 21,     /* both ways */
	FRAME_FILE_END = 22, /* both ways */
	FRAME_GROW = 23,
	/* from the guest */
	FRAME_WELCOME = 65,
	FRAME_STARTED = 66,
	FRAME_STDOUT = 67,
	FRAME_STDERR = 68,
	FRAME_EXITED = 69,
	FRAME_ERROR = 70,
	FRAME_DONE = 71,
	FRAME_RESTARTED = 72,
};

enum {
	RENEWED_ENTROPY = 64,
};

/*
 * What a guest that was forked or restored must not share with others; its host name follows. Since
 * version 3 it ends with a zero, and after it come the machine's id and the guest's machine-id, each
 * with a final zero; they are empty where the guest is to stay a true copy.
 */
struct renewal {
	int64_t seconds;
	uint32_t nanoseconds;
	uint8_t has_mac;
	uint8_t zero;
	uint8_t mac[6];
	uint8_t entropy[RENEWED_ENTROPY];
};

enum entry_kind { ENTRY_FILE = 1, ENTRY_DIRECTORY = 2, ENTRY_LEAVE = 3, ENTRY_SYMLINK = 4 };

struct header {
	uint8_t type;
	uint8_t zero[3];
	uint32_t length;
};

struct hello {
	uint8_t magic[MAGIC_SIZE];
	uint32_t version;
	uint8_t nonce[NONCE_SIZE];
};

struct exec_request {
	uint8_t terminal;
	uint8_t zero;
	uint16_t rows;
	uint16_t columns;
	uint16_t argument_count;
	uint32_t environment_count;
};

struct entry {
	uint8_t kind;
	uint8_t zero[3];
	uint32_t mode;
	int64_t seconds;
	uint32_t nanoseconds;
	uint32_t name_length; /* the name follows, and after it a symbolic link's target */
	uint64_t size;
};

_Static_assert(sizeof(struct header) == HEADER_SIZE, "no padding");
_Static_assert(sizeof(struct hello) == 28, "no padding");
_Static_assert(sizeof(struct exec_request) == 12, "no padding");
_Static_assert(sizeof(struct entry) == 32, "no padding");
_Static_assert(offsetof(struct renewal, entropy) == 20, "no padding");

struct frame {
	uint8_t type;
	uint32_t length;
	const uint8_t *payload; /* valid until the wire is next touched */
};

/* wire.c: frames over a port or a socket that never blocks. */

struct wire {
	int fd;
	int edges; /* an epoll of fd, edge-triggered: a port without a host reports HUP for ever */
	bool is_port;
	bool readable;
	bool writable;
	bool closed;	/* a socket's other end is gone for good */
	bool host_left; /* no host has been there for a while */
	uint32_t protocol; /* the version that both sides speak */
	bool lost;	/* out of step: only a HELLO counts */
	int64_t left_at; /* when the host closed its side of the port; 0: it did not */
	size_t in_start, in_end;
	size_t out_start, out_end;
	uint8_t in[2 * (HEADER_SIZE + MAX_PAYLOAD)];
	uint8_t out[4 * (HEADER_SIZE + MAX_PAYLOAD)];
};

void wire_open(struct wire *wire, int fd, bool is_port);
int wire_timeout(const struct wire *wire);
void wire_update(struct wire *wire);   /* take note of what the kernel reports */
void wire_transfer(struct wire *wire); /* write and read what is possible now */
bool wire_next(struct wire *wire, struct frame *frame);
bool wire_has_frame(struct wire *wire);
size_t wire_room(struct wire *wire);
uint8_t *wire_reserve(struct wire *wire, size_t length); /* where to put a frame's payload */
void wire_commit(struct wire *wire, enum frame_type type, size_t length);
void wire_send(struct wire *wire, enum frame_type type, const void *payload, size_t length);
void wire_error(struct wire *wire, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void wire_forget_output(struct wire *wire);
/* Wait until so much output fits; false once the host says anything, or is gone. */
bool wire_wait_room(struct wire *wire, size_t size);
void wire_wait_flushed(struct wire *wire, int milliseconds);

/* user.c: users and groups of this guest. */

struct user {
	uid_t uid;
	gid_t gid;
	gid_t groups[64];
	int group_count;
	char name[64];
	char home[PATH_MAX];
	char shell[PATH_MAX];
};

/* Resolve NAME, UID, NAME:GROUP or UID:GID; false where there is no such user or group. */
bool user_find(const char *passwd, const char *group, const char *text, struct user *user);

/* exec.c: one process of a session. */

/* What the kernel's command line says to the C library of every program (GLIBC_TUNABLES), as a
 * variable of its environment; NULL where it says nothing. */
char *library_settings(void);

struct process {
	pid_t pid; /* 0: none */
	bool terminal;
	int in, out, err; /* on a terminal, out is its master, and in is -1 */
	int slave;	  /* held open so that the master reports no hang-up before the end */
	bool in_ends;	  /* close in when what is buffered is written */
	bool in_gone;	  /* nobody reads it any more */
	size_t in_start, in_length;
	uint32_t in_written; /* not yet given back as credit */
	uint64_t out_credit;
	bool exited;
	int status;
	int64_t drain_until; /* for a terminal: when to stop waiting for its last output */
	uint8_t in_buffer[WINDOW];
};

void process_start(struct process *process, struct wire *wire, const struct frame *frame,
		   char *arguments, size_t arguments_length);
bool process_takes(uint8_t frame_type);
void process_frame(struct process *process, struct wire *wire, const struct frame *frame);
void process_reaped(struct process *process, pid_t pid, int status);
void process_hang_up(struct process *process);
void process_pump(struct process *process, struct wire *wire);
struct pollfd;
int process_poll(const struct process *process, struct wire *wire, struct pollfd *fds);
int process_timeout(const struct process *process);

/* files.c: trees of files, in and out. */

struct push {
	bool active;
	bool failed;	/* the error is told; what is still on its way is dropped */
	int depth;	/* of open directories */
	bool root_seen; /* the first entry has come */
	char path[PATH_MAX];
	int file;      /* -1: none is on its way */
	uint64_t left; /* bytes of the file that may still come */
	struct entry entry;
	char temporary[PATH_MAX];
};

void push_start(struct push *push, struct wire *wire, const char *arguments, size_t length);
void push_frame(struct push *push, struct wire *wire, const struct frame *frame);
void push_abandon(struct push *push);
void pull(struct wire *wire, const char *arguments, size_t length);

/* system.c: the guest as a whole. */

struct system_state {
	int64_t thaw_at; /* 0: nothing is frozen by us */
};

bool system_takes(uint8_t frame_type);
void system_shut_down(bool again);
void system_frame(struct system_state *state, struct wire *wire, const struct frame *frame);
void system_tick(struct system_state *state);
int system_timeout(const struct system_state *state);

/* identity.c: what a clone must not keep of its source. */

/*
 * Make this guest the machine's of this id; whether it was another's. The names of the steps that
 * failed, each with a line's end, are in failed.
 */
bool identity_renew(const char *name, const char *machine, const char *machine_id, char *failed,
		    size_t size);

/* grow.c: the root file system, after its disk has grown; answers the host. */

void grow_root(struct wire *wire);

/* session.c: requests from one port, one after another, for ever (or until a socket ends). */

void session_serve(int fd, bool is_port);

/* supervisor.c: finds the ports; gives each one that is spoken to a process of its own. */

int supervise(const char *const *paths, int count);

/* init.c: what the first process of a guest must do before all else. */

void init_prepare(void);

/* console.c: a shell on the console, for whoever presses Enter there. */

void console_start(void);

/* line.c */
/* Read the first line of a file; false, and an empty text, where there is none. */
bool read_line(const char *path, char *text, size_t size);

/* clock.c */

int64_t now_milliseconds(void);
/* The shorter of two poll(2) time limits, of which -1 is the longest. */
int sooner(int one, int other);
int milliseconds_until(int64_t moment);

#endif
