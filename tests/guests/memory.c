/* A guest that has memory plugged into it while it runs: it waits until it should have a block,
 * plugs it, writes and reads both of its ends, tries what it is not allowed, gives the block back
 * and plugs it again, which has zeros then. It says what it did, and goes on when it is sent a
 * byte (virtio 1.2, 5.15; the registers are where our transport has them). */

#include "guest.h"

#define ENTRIES 16
#define NOTIFY 0x3000
#define CONFIG 0x2000
#define BLOCK (128ull << 20)
#define FOUR_GIB (1ull << 32)
#define PRESENT 3
#define LARGE 0x80

enum { PLUG, UNPLUG, UNPLUG_ALL, STATE };
enum { ACK, NACK, BUSY, ERROR };

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct ring { u16 flags, index, slots[ENTRIES]; };
struct used { u16 flags, index; struct { u32 head, length; } slots[ENTRIES]; };

static struct {
    struct descriptor descriptors[ENTRIES] __attribute__((aligned(16)));
    struct ring available;
    volatile struct used used __attribute__((aligned(4)));
} queue;

static struct { u16 kind, pad[3]; u64 address; u16 count, end[3]; } request;
static volatile struct { u16 kind, pad[3], state; } answer;
static u64 directory[512] __attribute__((aligned(4096)));
static u64 registers;

static void find_device(void)
{
    for (u32 slot = 0; slot < 32; slot++) {
        u32 function = 1u << 31 | slot << 11;
        outl(0xcf8, function);
        if (inl(0xcfc) != 0x10581af4) continue;
        outl(0xcf8, function | 0x04);
        outl(0xcfc, 2);
        outl(0xcf8, function | 0x10);
        registers = inl(0xcfc) & ~15u;
    }
    holds("memory: found", registers != 0);
}

static void start_device(void)
{
    put8(registers + 20, 0);
    put8(registers + 20, 1 | 2);
    for (u32 select = 0; select < 2; select++) {
        put32(registers + 0, select);
        put32(registers + 8, select);
        u32 wanted = select ? 1 : 1 << 1;
        check("memory: offers", get32(registers + 4) & wanted, wanted);
        put32(registers + 12, wanted);
    }
    put8(registers + 20, 1 | 2 | 8);
    check("memory: features", get8(registers + 20), 1 | 2 | 8);
    put16(registers + 22, 0);
    put16(registers + 24, ENTRIES);
    put64(registers + 32, (u64)queue.descriptors);
    put64(registers + 40, (u64)&queue.available);
    put64(registers + 48, (u64)&queue.used);
    put16(registers + 28, 1);
    put8(registers + 20, 1 | 2 | 8 | 4);
}

/* The addresses from 4 GiB on, which the entry's page tables leave out. */
static void map(void)
{
    u64 root, *pointers;
    for (u64 at = 0; at < 512; at++) directory[at] = (FOUR_GIB + (at << 21)) | LARGE | PRESENT;
    asm volatile("movq %%cr3, %0" : "=r"(root));
    pointers = (u64 *)(*(u64 *)(root & ~4095ull) & ~4095ull);
    pointers[4] = (u64)directory | PRESENT;
    asm volatile("movq %0, %%cr3" : : "r"(root) : "memory");
}

static u16 ask(u16 kind, u64 address, u16 count)
{
    u16 slot = queue.available.index % ENTRIES;
    request.kind = kind, request.address = address, request.count = count;
    answer.kind = 0xffff, answer.state = 0xffff;
    queue.descriptors[0] = (struct descriptor){(u64)&request, sizeof request, 1, 1};
    queue.descriptors[1] = (struct descriptor){(u64)&answer, sizeof answer, 2, 0};
    queue.available.slots[slot] = 0;
    barrier();
    queue.available.index++;
    barrier();
    put32(registers + NOTIFY, 0);
    while (queue.used.index != queue.available.index) asm volatile("pause");
    return answer.kind;
}

static void did(const char *what)
{
    write_text(what);
    write_text("\n");
    while (!(inb(SERIAL + 5) & 1)) asm volatile("pause");
    inb(SERIAL);
}

static void wait_for_request(u64 size)
{
    while (get64(registers + CONFIG + 48) != size) asm volatile("pause");
}

void second_main(void)
{
    /* There is no second processor. */
}

void guest_main(u64 zero_page)
{
    (void)zero_page;
    find_device();
    start_device();
    map();
    u64 start = get64(registers + CONFIG + 16);
    check("memory: where", start, FOUR_GIB);
    check("memory: block", get64(registers + CONFIG), BLOCK);
    check("memory: not without a request", ask(PLUG, start, 1), NACK);
    did("started");
    wait_for_request(BLOCK);
    check("memory: plugged", ask(PLUG, start + BLOCK, 1), ACK);
    check("memory: not twice", ask(PLUG, start + BLOCK, 1), ERROR);
    check("memory: not more", ask(PLUG, start, 1), NACK);
    check("memory: how much", get64(registers + CONFIG + 40), BLOCK);
    u64 first = start + BLOCK, last = start + 2 * BLOCK - 8;
    check("memory: zero", get64(first) | get64(last), 0);
    put64(first, 0x1122334455667788ull);
    put64(last, 0x99aabbccddeeff00ull);
    did("plugged");
    check("memory: first", get64(first), 0x1122334455667788ull);
    check("memory: last", get64(last), 0x99aabbccddeeff00ull);
    check("memory: state", ask(STATE, start, 2) | answer.state, 2);
    wait_for_request(0);
    check("memory: given back", ask(UNPLUG, first, 1), ACK);
    did("unplugged");
    wait_for_request(BLOCK);
    check("memory: plugged again", ask(PLUG, first, 1), ACK);
    check("memory: zero again", get64(first) | get64(last), 0);
    check("memory: all given back", ask(UNPLUG_ALL, 0, 0), ACK);
    write_text("done\n");
    power_off();
}
