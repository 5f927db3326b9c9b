/* A guest that never lets its disk rest, and looks that each sector is what it wrote. Meanwhile it
 * answers on its serial port: each byte with itself, after it has done this:
 *   e   asks the entropy device, and waits for the answer
 *   s   reads the disk's status
 *   r   asks for a reset of the disk; when it is done, which it looks for meanwhile, it says R and
 *       goes on with the disk
 *   v   reads all sectors, looks that each has what was written last, and says V
 * A dot is written for every 16 rounds. */

#include "virtio.h"

#define SECTORS 64
#define HEADER 0x400000ull
#define DATA 0x401000ull
#define ANSWER 0x402000ull
#define ENTROPY 0x403000ull
#define DISK_QUEUE 1

enum { READ_BLOCK = 0, WRITE_BLOCK = 1, UNTIL_THEN = 0xff };

static struct device devices[32];
static struct device *disk, *entropy;
static u64 number;          /* the round: what is written, and where */
static u32 kind;
static u16 before;
static int resetting;

static struct device *find(u32 type, u32 count)
{
    for (u32 at = 0; at < count; at++)
        if (devices[at].type == type) return &devices[at];
    write_text("a device is missing\n");
    for (;;) asm volatile("hlt");
}

static void ask(u32 what, u64 sector)
{
    kind = what;
    before = used_index(DISK_QUEUE);
    put32(HEADER, what);
    put32(HEADER + 4, 0);
    put64(HEADER + 8, sector);
    put8(ANSWER, UNTIL_THEN);
    describe(DISK_QUEUE, 0, HEADER, 16, NEXT, 1);
    describe(DISK_QUEUE, 1, DATA, 512, what == READ_BLOCK ? NEXT | WRITE : NEXT, 2);
    describe(DISK_QUEUE, 2, ANSWER, 1, WRITE, 0);
    offer(DISK_QUEUE, 0);
    doorbell(disk, DISK_QUEUE);
}

static void write_next(void)
{
    number++;
    for (u32 at = 0; at < 512; at += 64) put64(DATA + at, number << 32 | at);
    ask(WRITE_BLOCK, number % SECTORS);
}

static void look_at(const char *what, u64 wanted)
{
    u64 wrong = get8(ANSWER);
    for (u32 at = 0; at < 512; at += 64) wrong += get64(DATA + at) != (wanted << 32 | at);
    if (wrong) check(what, get64(DATA) >> 32, wanted);
}

/* The next step of the round, if the disk has answered. */
static void go_on(void)
{
    if (used_index(DISK_QUEUE) == before) return;
    if (kind == WRITE_BLOCK) {
        if (get8(ANSWER)) check("a write", get8(ANSWER), 0);
        for (u32 at = 0; at < 512; at += 64) put64(DATA + at, 0);
        ask(READ_BLOCK, number % SECTORS);
        return;
    }
    look_at("a read", number);
    if (number % 16 == 0) write_text(".");
    write_next();
}

static void start_disk(void)
{
    negotiate(disk, offered(disk) & ~F_EVENT_INDEX);
    set_up_queue(disk, DISK_QUEUE);
    set_status(disk, RUNNING);
    write_next();
}

static void ask_entropy(void)
{
    u16 last = used_index(0);
    describe(0, 0, ENTROPY, 64, WRITE, 0);
    offer(0, 0);
    doorbell(entropy, 0);
    while (used_index(0) == last) asm volatile("pause");
}

static void wait_for_disk(void)
{
    while (used_index(DISK_QUEUE) == before) asm volatile("pause");
}

static void verify(void)
{
    wait_for_disk();
    for (u64 last = number; last > 0 && last + SECTORS > number; last--) {
        ask(READ_BLOCK, last % SECTORS);
        wait_for_disk();
        look_at("a sector", last);
    }
    write_text("V");
    write_next();
}

static void obey(u8 byte)
{
    if (byte == 'e') ask_entropy();
    if (byte == 's') status(disk);
    if (byte == 'v' && !resetting) verify();
    if (byte == 'r') {
        resetting = 1;
        set_status(disk, 0);
    }
    outb(SERIAL, byte);
}

void second_main(void)
{
    /* There is no second processor. */
}

void guest_main(u64 zero_page)
{
    (void)zero_page;
    u32 count = find_devices(devices, 32);
    disk = find(2, count);
    entropy = find(4, count);
    bring_up(entropy);
    start_disk();
    for (;;) {
        if (!resetting) go_on();
        else if (!status(disk)) {
            resetting = 0;
            write_text("R");
            /* The reset may have come before the disk had seen the round's request. */
            number--;
            start_disk();
        }
        if (inb(SERIAL + 5) & 1) obey(inb(SERIAL));
    }
}
