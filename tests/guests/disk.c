/* A guest that writes sectors and reads them back, many times, and looks that they are what it wrote.
 * It looks for answers in the used ring alone. A dot is written for each round. */

#include "virtio.h"

#define ROUNDS 60
#define SECTORS 64
#define HEADER 0x400000ull
#define DATA 0x401000ull
#define ANSWER 0x402000ull

enum { READ_BLOCK = 0, WRITE_BLOCK = 1 };

static struct device devices[32];

static u8 request(struct device *disk, u32 kind, u64 sector)
{
    u16 before = used_index(0);
    put32(HEADER, kind);
    put32(HEADER + 4, 0);
    put64(HEADER + 8, sector);
    put8(ANSWER, 0xff);
    describe(0, 0, HEADER, 16, NEXT, 1);
    describe(0, 1, DATA, 512, kind == READ_BLOCK ? NEXT | WRITE : NEXT, 2);
    describe(0, 2, ANSWER, 1, WRITE, 0);
    offer(0, 0);
    doorbell(disk, 0);
    while (used_index(0) == before) asm volatile("pause");
    return get8(ANSWER);
}

static void round_of(struct device *disk, u64 number)
{
    u64 wrong = 0, sector = number % SECTORS;
    for (u32 at = 0; at < 512; at += 8) put64(DATA + at, number << 32 | at);
    wrong += request(disk, WRITE_BLOCK, sector);
    for (u32 at = 0; at < 512; at += 8) put64(DATA + at, 0);
    wrong += request(disk, READ_BLOCK, sector);
    for (u32 at = 0; at < 512; at += 8) wrong += get64(DATA + at) != (number << 32 | at);
    if (wrong) check("a round", wrong, 0);
    write_text(".");
}

void second_main(void)
{
    /* There is no second processor. */
}

void guest_main(u64 zero_page)
{
    (void)zero_page;
    u32 count = find_devices(devices, 32), found = count;
    for (u32 at = 0; at < count; at++)
        if (devices[at].type == 2) found = at;
    if (found == count) { write_text("no disk\n"); for (;;) asm volatile("hlt"); }
    bring_up(&devices[found]);
    for (u64 number = 1; number <= ROUNDS; number++) {
        round_of(&devices[found], number);
        for (volatile u32 wait = 0; wait < 2000; wait++) ;
    }
    write_text("done\n");
    for (;;) asm volatile("hlt");
}
