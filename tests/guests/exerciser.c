/* A driver that keeps to no rule, on every virtio device that there is. After each case the device
 * works again once it was reset, and memory that was not lent to it is as it was. */

#include "virtio.h"

#define DATA 0x500000ull
#define CANARY 0x600000ull
#define CANARY_SIZE 4096
#define MEMORY (16ull << 20)

static struct device devices[16], *device;
static u32 count;
static u32 queue;                   /* the one that cases are tried on */
static u64 bad;                     /* what went wrong, in all */

static void say(const char *what, int is)
{
    if (!is) bad++;
    write_text(is ? "ok " : "WRONG ");
    write_hex(device->type);
    write_text(" ");
    write_text(what);
    write_text("\n");
}

static u64 serve(u64 room)
{
    u16 before = used_index(queue);
    offer(queue, 0);
    doorbell(device, queue);
    if (!settles(device, queue, before) || used_index(queue) == before) return -1ull;
    return room;
}

/* What each kind of device does when it works, and the queue that it looks at when it is kicked. Of
 * a kind that is not here it is only seen that it can be brought up after each case. */

static int entropy_works(void)
{
    put64(DATA, 0), put64(DATA + 8, 0);
    describe(queue, 0, DATA, 16, WRITE, 0);
    return serve(1) == 1 && get32(USED_OF(queue) + 8) == 16 && (get64(DATA) | get64(DATA + 8));
}

static int disk_works(void)
{
    put64(DATA, 0), put64(DATA + 8, 1);
    put64(DATA + 512, 0), put8(DATA + 1024, 0xff);
    describe(queue, 0, DATA, 16, NEXT, 1);
    describe(queue, 1, DATA + 512, 512, NEXT | WRITE, 2);
    describe(queue, 2, DATA + 1024, 1, WRITE, 0);
    return serve(1) == 1 && !get8(DATA + 1024) && get64(DATA + 512) == 0x726f746365732061ull;
}

static int card_works(void)
{
    fill((void *)DATA, 0, 76);
    describe(queue, 0, DATA, 76, 0, 0);
    return serve(1) == 1;
}

static int console_works(void)
{
    describe(2, 0, DATA + 64, 64, WRITE, 0);
    offer(2, 0);
    put32(DATA, 0), put32(DATA + 4, 1 << 16);
    describe(queue, 0, DATA, 8, 0, 0);
    return serve(1) == 1 && settles(device, 2, 0) && get16(DATA + 68) == 1;
}

static int balloon_works(void)
{
    fill((void *)0x700000, 0xff, 4096);
    put32(DATA, 0x700);
    describe(queue, 0, DATA, 4, 0, 0);
    return serve(1) == 1 && !get64(0x700000) && !get64(0x700ff8);
}

/* A connection to a port of the host that nobody serves is refused. */
static int sockets_work(void)
{
    fill((void *)DATA, 0, 128);
    put64(DATA, 3), put64(DATA + 8, 2), put32(DATA + 16, 1), put32(DATA + 20, 7);
    put16(DATA + 28, 1), put16(DATA + 30, 1);
    describe(0, 0, DATA + 64, 64, WRITE, 0);
    offer(0, 0);
    describe(queue, 0, DATA, 44, 0, 0);
    return serve(1) == 1 && settles(device, 0, 0) && get16(DATA + 64 + 30) == 3;
}

static const struct { u32 type, queue; int (*works)(void); } kinds[] = {
    {1, 1, card_works},
    {2, 0, disk_works},
    {3, 3, console_works},
    {4, 0, entropy_works},
    {5, 0, balloon_works},
    {19, 1, sockets_work},
};

static int (*works)(void);

static void choose(struct device *chosen)
{
    device = chosen;
    queue = 0;
    works = 0;
    for (u32 index = 0; index < sizeof kinds / sizeof *kinds; index++) {
        if (kinds[index].type != device->type) continue;
        queue = kinds[index].queue;
        works = kinds[index].works;
    }
}

static int canary_lives(void)
{
    for (u64 at = CANARY; at < CANARY + CANARY_SIZE; at += 64)
        if (get64(at) != 0x5a5a5a5a5a5a5a5aull) return 0;
    return 1;
}

/* The device goes on after a reset, whatever was done to it. */
static void recovered(const char *what, int is)
{
    bring_up(device);
    int fine = status(device) == RUNNING && (!works || works()) && canary_lives();
    reset(device);
    say(what, is && fine);
}

/* The status machine. */

static void walk_status(void)
{
    static const u8 steps[] = {0, 1, 3, 11, 15};
    int right = 1;
    for (u32 last = 0; last < sizeof steps; last++) {
        reset(device);
        for (u32 step = 0; step <= last; step++) {
            if (steps[step] == 11) take_features(device, F_VERSION_1);
            if (steps[step]) set_status(device, steps[step]);
            right &= status(device) == steps[step];
        }
        reset(device);
        right &= status(device) == 0;
    }
    recovered("reset at each step", right);

    reset(device);
    set_status(device, DRIVER_OK);
    recovered("driver-ok at once is refused", !(status(device) & DRIVER_OK));
    set_status(device, 0xff);
    recovered("all bits at once", !(status(device) & (NEEDS_RESET | FEATURES_OK)));
    bring_up(device);
    for (u32 value = 1; value < 256; value++) set_status(device, value);
    recovered("every status while it runs", 1);
}

static void choose_features(void)
{
    u64 all = offered(device);
    say("offers version 1", !!(all & F_VERSION_1));
    negotiate(device, all);
    recovered("all that is offered", !!(status(device) & FEATURES_OK));
    negotiate(device, F_VERSION_1);
    recovered("only version 1", !!(status(device) & FEATURES_OK));
    negotiate(device, 0);
    recovered("nothing is refused", !(status(device) & FEATURES_OK));
    int right = 1;
    for (u32 bit = 0; bit < 64; bit += 5) {
        if (all >> bit & 1) continue;
        negotiate(device, all | 1ull << bit);
        right &= !(status(device) & FEATURES_OK);
    }
    recovered("what is not offered is refused", right);
    negotiate(device, all);
    take_features(device, ~0ull);
    put32(device->common + DRIVER_SELECT, 1);
    right = get32(device->common + DRIVER_FEATURES) == all >> 32;
    put32(device->common + DRIVER_SELECT, 77);
    put32(device->common + DRIVER_FEATURES, ~0u);
    recovered("features stay as they were agreed", right && !get32(device->common + DRIVER_FEATURES));
}

/* Setting queues up. */

static int refused_queue(u16 size, u64 table, u64 avail, u64 used)
{
    negotiate(device, offered(device));
    put16(device->common + QUEUE_SELECT, queue);
    put16(device->common + QUEUE_SIZE, size);
    place_queue(device, queue, table, avail, used);
    put16(device->common + QUEUE_ENABLE, 1);
    int refused = !get16(device->common + QUEUE_ENABLE);
    set_status(device, RUNNING);
    doorbell(device, queue);
    return refused;
}

static void set_up_wrongly(void)
{
    u64 t = TABLE_OF(queue), a = AVAIL_OF(queue), u = USED_OF(queue);
    recovered("queue of no entries", refused_queue(0, t, a, u));
    recovered("queue of 3 entries", refused_queue(3, t, a, u));
    recovered("queue of 32768 entries", refused_queue(0x8000, t, a, u));
    recovered("queue of 65535 entries", refused_queue(0xffff, t, a, u));
    recovered("table outside memory", refused_queue(16, MEMORY, a, u));
    recovered("table over the end of memory", refused_queue(16, MEMORY - 16, a, u));
    recovered("table at the end of everything", refused_queue(16, -16ull, a, u));
    recovered("table on a device", refused_queue(16, device->bar, a, u));
    recovered("available ring outside memory", refused_queue(16, t, 1ull << 40, u));
    recovered("used ring outside memory", refused_queue(16, t, a, 0xfee00000));
    recovered("rings askew", refused_queue(16, t + 1, a, u) && refused_queue(16, t, a + 1, u)
              && refused_queue(16, t, a, u + 2));
    reset(device);
    set_status(device, ACKNOWLEDGE | DRIVER);
    set_up_queue(device, queue);
    recovered("queue before features", !get16(device->common + QUEUE_ENABLE));
    negotiate(device, F_VERSION_1);
    put16(device->common + QUEUE_SELECT, 0xfff);
    put16(device->common + QUEUE_SIZE, 8);
    put16(device->common + QUEUE_ENABLE, 1);
    int right = !get16(device->common + QUEUE_SIZE) && !get16(device->common + QUEUE_ENABLE);
    for (u32 bell = 0; bell < 1024; bell += 31) put32(device->notify + 4 * bell, bell);
    recovered("queue that is not there", right);
    bring_up(device);
    put16(device->common + QUEUE_SELECT, queue);
    put16(device->common + QUEUE_SIZE, 4);
    put64(device->common + QUEUE_DESC, 0x1234);
    recovered("changes while it runs are not taken", get16(device->common + QUEUE_SIZE) == ENTRIES
              && get64(device->common + QUEUE_DESC) == TABLE_OF(queue));
    bring_up(device);
    if (works) works();
    put16(device->common + QUEUE_SELECT, queue);
    put16(device->common + QUEUE_RESET, 1);
    right = !get16(device->common + QUEUE_ENABLE) && !get16(device->common + QUEUE_RESET);
    doorbell(device, queue);
    set_up_queue(device, queue);
    if (device->type == 3) { put16(device->common + QUEUE_SELECT, 2); put16(device->common + QUEUE_RESET, 1); set_up_queue(device, 2); }
    right &= !works || works();
    recovered("a queue is reset, and works again", right);
}

/* What a queue says. Each is to make the device ask for a reset. */

static void loops(void) { describe(queue, 0, DATA, 1, NEXT, 1); describe(queue, 1, DATA, 1, NEXT, 0); }
static void itself(void) { describe(queue, 0, DATA, 1, NEXT, 0); }
static void beyond(void) { describe(queue, 0, MEMORY, 1, 0, 0); }
static void over_end(void) { describe(queue, 0, MEMORY - 1, 2, WRITE, 0); }
static void in_hole(void) { describe(queue, 0, device->bar, 64, WRITE, 0); }
static void on_lapic(void) { describe(queue, 0, LAPIC, 4096, WRITE, 0); }
static void wraps(void) { describe(queue, 0, -16ull, 32, WRITE, 0); }
static void length_wraps(void) { describe(queue, 0, DATA, 0xffffffff, WRITE, 0); }
static void next_outside(void) { describe(queue, 0, DATA, 1, NEXT, ENTRIES); }
static void next_far(void) { describe(queue, 0, DATA, 1, NEXT, 0xffff); }
static void write_then_read(void) { describe(queue, 0, DATA, 1, NEXT | WRITE, 1); describe(queue, 1, DATA, 1, 0, 0); }
static void indirect_to(u64 table, u32 length, u16 flags) { describe(queue, 0, table, length, INDIRECT | flags, 1); }
static void nested(void) { indirect_to(DATA, 16, 0); put64(DATA, DATA + 64); put32(DATA + 8, 16); put32(DATA + 12, INDIRECT); }
static void indirect_odd(void) { indirect_to(DATA, 17, 0); }
static void indirect_empty(void) { indirect_to(DATA, 0, 0); }
static void indirect_outside(void) { indirect_to(1ull << 50, 16, 0); }
static void indirect_over_end(void) { indirect_to(MEMORY - 16, 32, 0); }
static void indirect_wraps(void) { indirect_to(-16ull, 0xfffffff0, 0); }
static void indirect_and_next(void) { indirect_to(DATA, 16, NEXT); }
static void too_long(void)
{
    indirect_to(DATA, 16 * 40, 0);
    for (u32 entry = 0; entry < 40; entry++) {
        put64(DATA + 16 * entry, DATA);
        put32(DATA + 16 * entry + 8, 1);
        put32(DATA + 16 * entry + 12, NEXT | (entry + 1) << 16);
    }
}
static void head_outside(void) { put16(AVAIL_OF(queue) + 4, ENTRIES); }
static void index_jumps(void) { put16(AVAIL_OF(queue) + 2, 1000); }
static void index_goes_back(void) { put16(AVAIL_OF(queue) + 2, 0xfffe); }

#define CASE(name) {#name, name}
static const struct { const char *name; void (*make)(void); } malformed[] = {
    CASE(loops), CASE(itself), CASE(beyond), CASE(over_end), CASE(in_hole), CASE(on_lapic),
    CASE(wraps), CASE(length_wraps), CASE(next_outside), CASE(next_far), CASE(write_then_read),
    CASE(nested), CASE(indirect_odd), CASE(indirect_empty), CASE(indirect_outside),
    CASE(indirect_over_end), CASE(indirect_wraps), CASE(indirect_and_next), CASE(too_long),
    CASE(head_outside), CASE(index_jumps), CASE(index_goes_back),
};

static void break_rules(void)
{
    for (u32 at = 0; at < sizeof malformed / sizeof *malformed; at++) {
        bring_up(device);
        offer(queue, 0);
        malformed[at].make();
        doorbell(device, queue);
        if (!works) {
            recovered(malformed[at].name, 1);
            continue;
        }
        int asked = settles(device, queue, 0) && status(device) & NEEDS_RESET;
        /* It rests: nothing of what is said to it now counts. */
        doorbell(device, queue);
        set_status(device, RUNNING);
        asked &= !!(status(device) & NEEDS_RESET);
        recovered(malformed[at].name, asked);
    }
    /* Odd, but for the device to make the best of. */
    bring_up(device);
    describe(queue, 0, DATA, 0, NEXT, 1);
    describe(queue, 1, MEMORY, 0, NEXT | WRITE, 2);
    describe(queue, 2, DATA, 0, WRITE, 0);
    offer(queue, 0);
    doorbell(device, queue);
    recovered("buffers of no length", !works || settles(device, queue, 0));
    /* What follows would give a balloon the very pages that this guest lives in. */
    if (device->type == 5) return;

    negotiate(device, offered(device));
    fill((void *)DATA, 0, 4096);
    place_queue(device, queue, DATA, DATA, DATA);
    put16(device->common + QUEUE_SIZE, ENTRIES);
    put16(device->common + QUEUE_ENABLE, 1);
    set_status(device, RUNNING);
    put64(DATA, DATA), put64(DATA + 8, 1ull << 32 | 16);
    put16(DATA + 2, 1);
    doorbell(device, queue);
    for (u32 waited = 0; waited < 50; waited++) status(device);
    recovered("rings on each other", 1);

    bring_up(device);
    for (u32 head = 0; head < ENTRIES; head++) describe(queue, head, USED_OF(queue), 64, head & 1 ? WRITE : 0, 0);
    for (u32 head = 0; head < ENTRIES; head++) offer(queue, head);
    doorbell(device, queue);
    for (u32 waited = 0; waited < 50; waited++) status(device);
    recovered("buffers on the used ring", 1);

    bring_up(device);
    describe(queue, 0, AVAIL_OF(queue), 64, WRITE, 0);
    offer(queue, 0);
    doorbell(device, queue);
    for (u32 waited = 0; waited < 50; waited++) status(device);
    recovered("a buffer on the available ring", 1);
}

/* Registers of every width, at every place. */

static void touch_registers(void)
{
    static const u16 places[] = {0, 1, 3, 5, 18, 20, 21, 22, 31, 55, 59, 61, 63, 64, 0xff9, 0xffc, 0xfff};
    u64 parts[] = {device->common, device->isr, device->config, device->notify, device->table, device->bar + 0xc000, device->bar + 0xf000};
    for (u32 part = 0; part < sizeof parts / sizeof *parts; part++)
        for (u32 place = 0; place < sizeof places / sizeof *places; place++) {
            u64 at = parts[part] + places[place];
            get8(at), get16(at), get32(at), get64(at);
            put8(at, 0x5a), put16(at, 0xa5a5), put32(at, ~0u), put64(at, 0x5a5a5a5a00000000ull);
        }
    get64(device->bar + 0xfffc), put64(device->bar + 0xfffc, 0);
    for (u32 at = 0; at < 64; at++) get8(device->config + at);
    put16(pci_at(device, device->msix + 2), 0);
    recovered("registers of every width", 1);
}

static void touch_configuration(void)
{
    u64 base = pci_at(device, 0);
    u32 saved[16], identity = get32(base);
    for (u32 at = 0; at < 16; at++) saved[at] = get32(base + 4 * at);
    for (u32 at = 0x40; at < 256; at++) {
        get8(base + at), get16(base + at), get32(base + at), get64(base + at);
        put8(base + at, 0xff), put32(base + at, 0), put64(base + at, 0x5a5a5a5a5a5a5a5aull);
    }
    for (u32 at = 0; at < 256; at += 3) {
        outl(0xcf8, 1u << 31 | device->slot << 11 | (at & ~3u));
        inl(0xcfc), inw(0xcfc + (at & 3)), inb(0xcfc + (at & 3));
        outb(0xcfc + (at & 3), 0x11), outw(0xcfc + (at & 3), 0x2222), outl(0xcfd, ~0u);
    }
    get64(base + 0x7fc), put64(base + 0xffc, ~0ull), get32(base + 0x101);
    for (u32 at = 1; at < 16; at++) put32(base + 4 * at, saved[at]);
    put16(base + device->msix + 2, 0);
    int same = get32(base) == identity && get32(base + 0x10) == saved[4];
    recovered("configuration of every width", same);
}

static void move_bar(void)
{
    u64 other = devices[device == devices].bar, home = device->bar;
    u64 places[] = {other, other + 0x8000, 0x200000, 0, 0xfffffff0, 0xffff0000, 0xfffe0000, LAPIC,
                    IOAPIC, ECAM, ECAM + 0xf0000, 0x100000, 0x7000, home + 0x10000};
    bring_up(device);
    int right = 1;
    for (u32 place = 0; place < sizeof places / sizeof *places; place++) {
        put32(pci_at(device, 0x10), places[place]);
        doorbell(device, queue);
        get8((u32)(places[place] + STATUS));
        put32(pci_at(device, 0x10), home);
        right &= status(device) == RUNNING;
    }
    recovered("memory over everything else", right);
    struct device *driven = device;
    choose(&devices[device == devices]);
    recovered("what it was put on still works", 1);
    choose(driven);

    bring_up(device);
    for (u32 turn = 0; turn < 20; turn++) {
        put16(pci_at(device, 4), 0);
        doorbell(device, queue);
        right &= get32(device->common) == ~0u;
        put16(pci_at(device, 4), 6);
        doorbell(device, queue);
    }
    recovered("decoding off and on", right);
}

/* Messages. */

static volatile u64 came;

static void count_message(u64 vector)
{
    if (vector == 0x60) came++;
    end_of_interrupt();
}

static void message(u32 vector, u64 address, u32 data, u32 masked)
{
    u64 at = device->table + 16 * vector;
    put32(at, address), put32(at + 4, address >> 32), put32(at + 8, data), put32(at + 12, masked);
}

static void send_messages(void)
{
    static const u64 addresses[] = {0, 0xfee00000, 0xfeeff000, 0xfffffffffffffff0ull, 0x500000, 0xfee00ffc, 0xc0000000};
    u64 control = pci_at(device, device->msix + 2);
    bring_up(device);
    put16(device->common + CONFIG_VECTOR, 99);
    int right = get16(device->common + CONFIG_VECTOR) == 0xffff;
    put16(device->common + QUEUE_SELECT, queue);
    put16(device->common + QUEUE_VECTOR, device->queues + 1);
    right &= get16(device->common + QUEUE_VECTOR) == 0xffff;
    put16(device->common + QUEUE_VECTOR, 1);
    right &= get16(device->common + QUEUE_VECTOR) == 1;
    for (u32 beyond = device->queues + 1; beyond < 2048; beyond += 97) message(beyond, 0xfee00000, 0x60, 0);
    recovered("vectors that are not there", right);

    bring_up(device);
    put16(device->common + QUEUE_SELECT, queue);
    put16(device->common + QUEUE_VECTOR, 1);
    put16(control, 1 << 15);
    for (u32 at = 0; at < sizeof addresses / sizeof *addresses; at++) {
        /* Data of a fixed interrupt at a vector that nobody looks at, and of what is reserved. */
        message(1, addresses[at], at & 1 ? 0x3061 : 0x61, 0);
        if (works) works();
    }
    recovered("messages to anywhere", 1);

    bring_up(device);
    put16(device->common + QUEUE_SELECT, queue);
    put16(device->common + QUEUE_VECTOR, 1);
    came = 0;
    message(1, 0xfee00000, 0x60, 1);
    if (works) works();
    right = !works || (came == 0 && get8(device->bar + 0xc000) == 2);
    put32(device->table + 28, 0);
    for (u32 waited = 0; waited < 20000 && !came; waited++) inb(0x80);
    right &= !works || came == 1;
    for (u32 turn = 0; turn < 30; turn++) {
        offer(queue, 0);
        doorbell(device, queue);
        put32(device->table + 28, turn & 1);
        put16(control, turn & 2 ? 1 << 15 : 3 << 14);
    }
    put16(control, 1 << 15);
    put32(device->table + 28, 0);
    came = 0;
    for (u32 waited = 0; waited < 200; waited++) inb(0x80);
    put16(control, 0);
    recovered("masks while messages fly", right);
}

/* The second processor does as it is told. */

enum { NOTHING, RESETS, REFILLS, MOVES, SLEEPS };
static volatile u32 task, doing;
static volatile u64 turns;

void second_main(void)
{
    second_is_up = 1;
    for (;;) {
        doing = task;
        switch (doing) {
        case RESETS: put8(device->common + STATUS, 0); turns++; break;
        case REFILLS: put16(AVAIL_OF(queue) + 2, get16(AVAIL_OF(queue) + 2) + 1); turns++; break;
        case MOVES: put16(pci_at(device, 4), turns & 1 ? 6 : 2); put16(device->common + QUEUE_SELECT, turns & 1 ? 0 : 0xffff); turns++; break;
        case SLEEPS: asm volatile("cli; hlt"); break;
        default: asm volatile("pause");
        }
    }
}

static void have(u32 what)
{
    turns = 0;
    task = what;
    /* A busy host may keep it waiting. */
    while (!turns) inb(0x80);
}

static void stop_other(void)
{
    task = NOTHING;
    while (doing != NOTHING) inb(0x80);
}

static void two_at_once(void)
{
    have(RESETS);
    for (u32 turn = 0; turn < 20; turn++) {
        set_status(device, ACKNOWLEDGE | DRIVER);
        take_features(device, F_VERSION_1);
        set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        set_up_queue(device, queue);
        set_status(device, RUNNING);
        describe(queue, 0, DATA, 64, WRITE, 0);
        offer(queue, 0);
        doorbell(device, queue);
    }
    stop_other();
    recovered("a reset in mid-flight", turns > 0);

    bring_up(device);
    for (u32 entry = 0; entry < ENTRIES; entry++) {
        describe(queue, entry, DATA, 64, WRITE, 0);
        put16(AVAIL_OF(queue) + 4 + 2 * entry, entry);
    }
    have(REFILLS);
    for (u32 turn = 0; turn < 200; turn++) {
        doorbell(device, queue);
        status(device);
    }
    stop_other();
    recovered("a queue that is refilled all the time", turns > 0);

    bring_up(device);
    have(MOVES);
    for (u32 turn = 0; turn < 100; turn++) {
        put16(pci_at(device, 4), turn & 1 ? 6 : 2);
        get64(device->common + QUEUE_DESC);
        doorbell(device, queue);
    }
    stop_other();
    put16(pci_at(device, 4), 6);
    recovered("memory moved by two", turns > 0);
}

void guest_main(u64 zero_page)
{
    (void)zero_page;
    set_up_interrupts();
    on_interrupt = count_message;
    outb(0x21, 0xff), outb(0xa1, 0xff);
    start_second_processor();
    write_text("\n");
    fill((void *)CANARY, 0x5a, CANARY_SIZE);
    asm volatile("sti");
    count = find_devices(devices, 16);
    for (u32 at = 0; at < count; at++) {
        choose(&devices[at]);
        walk_status();
        choose_features();
        set_up_wrongly();
        break_rules();
        touch_registers();
        touch_configuration();
        move_bar();
        send_messages();
        two_at_once();
    }
    /* Left with rings that say nonsense, for whatever comes from outside. */
    for (u32 at = 0; at < count; at++) {
        choose(&devices[at]);
        bring_up(device);
        for (u32 each = 0; each < device->queues; each++) {
            describe(each, 0, MEMORY, 64, WRITE, 0);
            offer(each, 0);
        }
    }
    asm volatile("cli");
    task = SLEEPS;
    check("went wrong", bad, 0);
    write_text("idle\n");
    for (;;) asm volatile("cli; hlt");
}
