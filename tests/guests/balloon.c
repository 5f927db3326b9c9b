/* A guest that gives its memory back: it fills 8 MiB, puts them into the balloon, takes them out
 * again, fills them once more, and reports them as free. It says what it did, and goes on when it
 * is sent a byte. The device's registers are where our transport has them (virtio 1.2, 4.1). */

#include "guest.h"

#define FIRST (4ull << 20)
#define LENGTH (8ull << 20)
#define PAGE 4096ull
#define ENTRIES 16

#define NOTIFY 0x3000
#define CONFIG 0x2000

enum { INFLATE = 0, DEFLATE = 1, REPORTING = 4 };

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct ring { u16 flags, index, slots[ENTRIES]; };
struct used { u16 flags, index; struct { u32 head, length; } slots[ENTRIES]; };

static struct queue {
    struct descriptor descriptors[ENTRIES] __attribute__((aligned(16)));
    struct ring available;
    volatile struct used used __attribute__((aligned(4)));
} queues[5];

static u32 numbers[LENGTH / PAGE];
static u64 registers;

static void find_balloon(void)
{
    for (u32 slot = 0; slot < 32; slot++) {
        u32 function = 1u << 31 | slot << 11;
        outl(0xcf8, function);
        if (inl(0xcfc) != 0x10451af4) continue;
        outl(0xcf8, function | 0x04);
        outl(0xcfc, 2);
        outl(0xcf8, function | 0x10);
        registers = inl(0xcfc) & ~15u;
    }
    holds("balloon: found", registers != 0);
}

static void start_balloon(void)
{
    put8(registers + 20, 0);
    put8(registers + 20, 1 | 2);
    for (u32 select = 0; select < 2; select++) {
        put32(registers + 0, select);
        put32(registers + 8, select);
        /* Statistics, deflating on demand, reporting; version 1. */
        u32 wanted = select ? 1 : 1 << 1 | 1 << 2 | 1 << 5;
        check("balloon: offers", get32(registers + 4) & wanted, wanted);
        put32(registers + 12, wanted);
    }
    put8(registers + 20, 1 | 2 | 8);
    check("balloon: features", get8(registers + 20), 1 | 2 | 8);
    for (u16 index = 0; index < 5; index++) {
        put16(registers + 22, index);
        put16(registers + 24, ENTRIES);
        put64(registers + 32, (u64)queues[index].descriptors);
        put64(registers + 40, (u64)&queues[index].available);
        put64(registers + 48, (u64)&queues[index].used);
        put16(registers + 28, 1);
    }
    put8(registers + 20, 1 | 2 | 8 | 4);
}

static void give(u16 index, void *buffer, u32 length, u16 flags)
{
    struct queue *queue = &queues[index];
    u16 slot = queue->available.index % ENTRIES;
    queue->descriptors[slot] = (struct descriptor){(u64)buffer, length, flags, 0};
    queue->available.slots[slot] = slot;
    barrier();
    queue->available.index++;
    barrier();
    put32(registers + NOTIFY + 4 * index, index);
    while (queue->used.index != queue->available.index) asm volatile("pause");
}

static void touch(void)
{
    for (u64 at = FIRST; at < FIRST + LENGTH; at += PAGE) put8(at, 1);
}

static u64 left(void)
{
    u64 found = 0;
    for (u64 at = FIRST; at < FIRST + LENGTH; at += PAGE) found += get8(at);
    return found;
}

static void did(const char *what)
{
    write_text(what);
    write_text("\n");
    while (!(inb(SERIAL + 5) & 1)) asm volatile("pause");
    inb(SERIAL);
}

void second_main(void)
{
    /* There is no second processor. */
}

void guest_main(u64 zero_page)
{
    (void)zero_page;
    for (u64 page = 0; page < LENGTH / PAGE; page++) numbers[page] = FIRST / PAGE + page;
    find_balloon();
    start_balloon();
    did("started");
    touch();
    did("filled");
    give(INFLATE, numbers, sizeof numbers, 0);
    put32(registers + CONFIG + 4, LENGTH / PAGE);
    did("inflated");
    give(DEFLATE, numbers, sizeof numbers, 0);
    put32(registers + CONFIG + 4, 0);
    check("balloon: zero again", left(), 0);
    touch();
    check("balloon: its own again", left(), LENGTH / PAGE);
    did("deflated");
    give(REPORTING, (void *)FIRST, LENGTH, 2);
    did("reported");
    check("balloon: zero after a report", left(), 0);
    /* Pages that are not its memory: the device wants to be reset, and nothing happens. */
    numbers[0] = 0xffffffff;
    queues[DEFLATE].available.slots[queues[DEFLATE].available.index % ENTRIES] = 0;
    queues[DEFLATE].descriptors[0] = (struct descriptor){(u64)numbers, 4, 0, 0};
    barrier();
    queues[DEFLATE].available.index++;
    put32(registers + NOTIFY + 4 * DEFLATE, DEFLATE);
    while (!(get8(registers + 20) & 64)) asm volatile("pause");
    check("balloon: its size is forgotten", get32(registers + CONFIG + 4), 0);
    write_text("done\n");
    power_off();
}
