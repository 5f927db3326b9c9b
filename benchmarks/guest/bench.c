/* What is measured from inside a guest, in ring 3. The command line is a word and numbers:
 *   port N          reads of a port that leads to the monitor
 *   mmio N          reads of an address where nobody answers
 *   bell N          requests to the entropy device, one after the other
 *   block OP SIZE DEPTH RANDOM N SECTORS   OP 0 reads, 1 writes
 *   send SIZE N GSO    frames to the network card
 *   receive N       frames from the network card
 * Answered on the serial port: "S", then "E" and the time stamp counter's ticks in between. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SERIAL 0x3f8
#define QUEUE_SIZE 256
#define ARENA 0x2000000ull

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u64 ticks(void) { u32 low, high; asm volatile("rdtsc" : "=a"(low), "=d"(high)); return (u64)high << 32 | low; }
static inline void relax(void) { asm volatile("pause" : : : "memory"); }
static inline void fence(void) { asm volatile("mfence" : : : "memory"); }

#define AT(type, address) (*(volatile type *)(address))

static void say(const char *text) { while (*text) outb(SERIAL, *text++); }

static void say_number(u64 value)
{
    for (int shift = 60; shift >= 0; shift -= 4) outb(SERIAL, "0123456789abcdef"[value >> shift & 15]);
}

static void give_up(const char *why) { say("X "); say(why); say("\n"); for (;;) relax(); }

static u64 number(const char **at)
{
    u64 value = 0;
    while (**at == ' ') ++*at;
    while (**at >= '0' && **at <= '9') value = value * 10 + *(*at)++ - '0';
    return value;
}

/* Virtio over PCI (virtio 1.2, section 4.1), found by the configuration ports. */

static u64 common, doorbell;
static u32 multiplier;

static u32 config(u32 slot, u32 offset) { outl(0xcf8, 1u << 31 | slot << 11 | offset); return inl(0xcfc); }
static void set_config(u32 slot, u32 offset, u32 value) { outl(0xcf8, 1u << 31 | slot << 11 | offset); outl(0xcfc, value); }

static u64 bar(u32 slot, u32 index)
{
    u32 low = config(slot, 0x10 + 4 * index);
    u64 address = low & ~15u;
    if ((low & 6) == 4) address |= (u64)config(slot, 0x14 + 4 * index) << 32;
    return address;
}

static void find(u32 type)
{
    u32 slot = 0;
    while (config(slot, 0) != ((0x1040 + type) << 16 | 0x1af4))
        if (++slot == 32) give_up("no such device");
    set_config(slot, 4, config(slot, 4) | 6);
    for (u32 at = config(slot, 0x34) & 0xfc; at; at = config(slot, at) >> 8 & 0xfc) {
        u32 head = config(slot, at);
        if ((head & 0xff) != 9) continue;
        u64 address = bar(slot, config(slot, at + 4) & 0xff) + config(slot, at + 8);
        if (head >> 24 == 1) common = address;
        if (head >> 24 == 2) { doorbell = address; multiplier = config(slot, at + 16); }
    }
    if (!common || common >> 32) give_up("its registers are out of reach");
}

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct used_element { u32 id, length; };

struct queue {
    u16 number, size;
    struct descriptor *descriptors;
    volatile u16 *available;    /* flags, index, ring */
    volatile u16 *used;
    u16 offered, taken;
    u64 bell;
};

static void negotiate(u64 wanted)
{
    AT(u8, common + 20) = 0;
    while (AT(u8, common + 20)) relax();
    AT(u8, common + 20) = 3;
    wanted |= 1ull << 32;
    for (u32 half = 0; half < 2; half++) {
        AT(u32, common) = half;
        if (~AT(u32, common + 4) & (u32)(wanted >> 32 * half)) give_up("a feature is not offered");
        AT(u32, common + 8) = half;
        AT(u32, common + 12) = (u32)(wanted >> 32 * half);
    }
    AT(u8, common + 20) = 11;
    if (!(AT(u8, common + 20) & 8)) give_up("the features are refused");
}

static void set_up(struct queue *queue, u16 index)
{
    u64 at = ARENA + 0x10000 * index;
    AT(u16, common + 22) = index;
    u16 size = AT(u16, common + 24);
    queue->number = index;
    queue->size = size < QUEUE_SIZE ? size : QUEUE_SIZE;
    queue->descriptors = (struct descriptor *)at;
    queue->available = (volatile u16 *)(at + 0x4000);
    queue->used = (volatile u16 *)(at + 0x8000);
    queue->offered = queue->taken = 0;
    queue->available[0] = 1;    /* no interrupts: it is looked for what is done */
    queue->available[1] = queue->used[0] = queue->used[1] = 0;
    AT(u16, common + 24) = queue->size;
    AT(u16, common + 26) = 0xffff;
    AT(u32, common + 32) = at; AT(u32, common + 36) = 0;
    AT(u32, common + 40) = at + 0x4000; AT(u32, common + 44) = 0;
    AT(u32, common + 48) = at + 0x8000; AT(u32, common + 52) = 0;
    queue->bell = doorbell + AT(u16, common + 30) * multiplier;
    AT(u16, common + 28) = 1;
}

static void offer(struct queue *queue, u16 head)
{
    queue->available[2 + queue->offered % queue->size] = head;
    asm volatile("" : : : "memory");
    queue->available[1] = ++queue->offered;
}

static void ring(struct queue *queue)
{
    fence();
    if (!(queue->used[0] & 1)) AT(u16, queue->bell) = queue->number;
}

/* The head of the next chain that was used. */
static u32 take(struct queue *queue)
{
    while (queue->used[1] == queue->taken) relax();
    asm volatile("" : : : "memory");
    volatile struct used_element *elements = (volatile struct used_element *)(queue->used + 2);
    return elements[queue->taken++ % queue->size].id;
}

static u64 begun;
static void begin(void) { say("S"); begun = ticks(); }
static void end(void) { u64 taken = ticks() - begun; say("E"); say_number(taken); say("\n"); }

static void read_port(u64 count)
{
    begin();
    while (count--) inb(SERIAL + 5);
    end();
}

static void read_memory(u64 count)
{
    begin();
    while (count--) AT(u32, 0xfd800000);
    end();
}

static void ring_the_bell(u64 count)
{
    struct queue queue;
    find(4);
    negotiate(0);
    set_up(&queue, 0);
    AT(u8, common + 20) = 15;
    queue.descriptors[0] = (struct descriptor){ARENA + 0x100000, 8, 2, 0};
    begin();
    while (count--) {
        offer(&queue, 0);
        ring(&queue);
        take(&queue);
    }
    end();
}

static u64 seed = 88172645463325252ull;
static u64 any(void) { seed ^= seed << 13; seed ^= seed >> 7; return seed ^= seed << 17; }

static void use_disk(u64 write, u64 size, u64 depth, u64 random, u64 count, u64 sectors)
{
    struct queue queue;
    u64 headers = ARENA + 0x100000, data = ARENA + 0x200000;
    u64 steps = sectors / (size / 512), step = 0, offered = 0;
    find(2);
    negotiate(0);
    set_up(&queue, 0);
    AT(u8, common + 20) = 15;
    for (u64 slot = 0; slot < depth; slot++) {
        u64 header = headers + 64 * slot;
        struct descriptor *first = queue.descriptors + 3 * slot;
        AT(u32, header) = write;
        AT(u32, header + 4) = 0;
        first[0] = (struct descriptor){header, 16, 1, 3 * slot + 1};
        first[1] = (struct descriptor){data + size * slot, size, write ? 1 : 3, 3 * slot + 2};
        first[2] = (struct descriptor){header + 16, 1, 2, 0};
    }
    begin();
    for (u64 done = 0; done < count; done++) {
        u64 slot = offered;
        if (offered >= depth) {
            slot = take(&queue) / 3;
            if (AT(u8, headers + 64 * slot + 16)) give_up("a request failed");
        }
        if (offered < count + depth) {
            AT(u64, headers + 64 * slot + 8) = (random ? any() % steps : step++ % steps) * (size / 512);
            AT(u8, headers + 64 * slot + 16) = 0xff;
            offer(&queue, 3 * slot);
            if (++offered >= depth) ring(&queue);
            if (offered < depth) done--;
        }
    }
    end();
}

/* Write and read blocks for ever, and tell, when asked by a byte, the longest time from one that
 * was done to the next since the last telling. */
static void never_rest(u64 sectors)
{
    struct queue queue;
    u64 header = ARENA + 0x100000, data = ARENA + 0x200000, longest = 0, write = 0;
    find(2);
    negotiate(0);
    set_up(&queue, 0);
    AT(u8, common + 20) = 15;
    say("S\n");
    for (u64 last = ticks();;) {
        write ^= 1;
        AT(u32, header) = write;
        AT(u32, header + 4) = 0;
        AT(u64, header + 8) = any() % (sectors / 8) * 8;
        AT(u8, header + 16) = 0xff;
        queue.descriptors[0] = (struct descriptor){header, 16, 1, 1};
        queue.descriptors[1] = (struct descriptor){data, 4096, write ? 1 : 3, 2};
        queue.descriptors[2] = (struct descriptor){header + 16, 1, 2, 0};
        offer(&queue, 0);
        ring(&queue);
        take(&queue);
        if (AT(u8, header + 16)) give_up("a request failed");
        u64 now = ticks();
        if (now - last > longest) longest = now - last;
        last = now;
        if (!(inb(SERIAL + 5) & 1)) continue;
        inb(SERIAL);
        say("E"); say_number(longest); say("\n");
        longest = 0;
        last = ticks();
    }
}

static void send(u64 size, u64 count, u64 gso)
{
    struct queue receive, transmit;
    u64 frames = ARENA + 0x200000;
    find(1);
    negotiate(gso ? 1ull | 1ull << 11 : 0);     /* checksums, and TCP segments */
    set_up(&receive, 0);
    set_up(&transmit, 1);
    AT(u8, common + 20) = 15;
    static const u8 head[] = {
        0x02, 0, 0, 0, 0, 0xfe, 0x02, 0, 0, 0, 0, 0xfd, 8, 0,
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 99, 0, 2, 10, 99, 0, 3,
        0x10, 0x92, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0,
    };
    for (u64 slot = 0; slot < 64; slot++) {
        volatile u8 *frame = (volatile u8 *)(frames + 0x11000 * slot);
        for (u32 at = 0; at < 12; at++) frame[at] = 0;
        if (gso) {
            frame[0] = 1; frame[1] = 1;
            *(volatile u16 *)(frame + 2) = 54;
            *(volatile u16 *)(frame + 4) = 1448;
            *(volatile u16 *)(frame + 6) = 34;
            *(volatile u16 *)(frame + 8) = 16;
        }
        for (u32 at = 0; at < sizeof head; at++) frame[12 + at] = head[at];
        frame[12 + 16] = (size - 14) >> 8;
        frame[12 + 17] = size - 14;
        transmit.descriptors[slot] = (struct descriptor){(u64)frame, 12 + size, 0, 0};
    }
    begin();
    u64 offered = 0;
    for (u64 done = 0; done < count; done++) {
        u32 slot = offered < 64 ? offered : take(&transmit);
        offer(&transmit, slot);
        ring(&transmit);
        if (++offered < 64) done--;
    }
    end();
}

static void receive(u64 count)
{
    struct queue queue;
    find(1);
    negotiate(0);
    set_up(&queue, 0);
    AT(u8, common + 20) = 15;
    for (u32 slot = 0; slot < queue.size; slot++) {
        queue.descriptors[slot] = (struct descriptor){ARENA + 0x200000 + 2048 * slot, 2048, 2, 0};
        offer(&queue, slot);
    }
    ring(&queue);
    say("R");
    u32 slot = take(&queue);
    begin();
    while (count--) {
        offer(&queue, slot);
        ring(&queue);
        slot = take(&queue);
    }
    end();
}

static int is(const char **at, const char *word)
{
    const char *here = *at;
    while (*word) if (*here++ != *word++) return 0;
    *at = here;
    return 1;
}

void bench_main(const char *line)
{
    if (is(&line, "port")) read_port(number(&line));
    else if (is(&line, "mmio")) read_memory(number(&line));
    else if (is(&line, "bell")) ring_the_bell(number(&line));
    else if (is(&line, "block")) {
        u64 write = number(&line), size = number(&line), depth = number(&line);
        u64 random = number(&line), count = number(&line);
        use_disk(write, size, depth, random, count, number(&line));
    } else if (is(&line, "send")) {
        u64 size = number(&line), count = number(&line);
        send(size, count, number(&line));
    } else if (is(&line, "stall")) never_rest(number(&line));
    else if (is(&line, "receive")) receive(number(&line));
    else give_up("nothing to measure");
    say("\n");
}
