/* A guest in 64-bit mode that looks at everything a machine is made of, and says what it saw. */

#include "guest.h"

static const char *command_line;

static int asked(const char *word)
{
    for (const char *at = command_line; *at; at++) {
        int same = 0;
        while (word[same] && at[same] == word[same]) same++;
        if (!word[same]) return 1;
    }
    return 0;
}

static int sums_to_zero(u64 at, u32 length)
{
    u8 sum = 0;
    for (u32 index = 0; index < length; index++) sum += get8(at + index);
    return !sum;
}

static void look_at_memory_map(u64 zero_page)
{
    u32 count = get8(zero_page + 0x1e8);
    u64 ram = 0, last = 0;
    int sorted = 1;
    for (u32 index = 0; index < count; index++) {
        u64 entry = zero_page + 0x2d0 + 20 * index;
        if (get64(entry) < last) sorted = 0;
        last = get64(entry) + get64(entry + 8);
        if (get32(entry + 16) == 1) ram += get64(entry + 8);
    }
    holds("e820: sorted, and none overlaps", count > 2 && sorted);
    check("e820: ram", ram, (16ull << 20) - (0x100000 - 0x9fc00));
}

static void look_at_acpi(u64 zero_page)
{
    u64 rsdp = get64(zero_page + 0x70), xsdt, found = 0;
    check("acpi: rsdp signature", get64(rsdp), 0x2052545020445352ull);
    holds("acpi: rsdp checksums", sums_to_zero(rsdp, 20) && sums_to_zero(rsdp, 36));
    u64 scanned = 0;
    for (u64 at = 0xe0000; at < 0x100000 && !scanned; at += 16)
        if (get64(at) == 0x2052545020445352ull) scanned = at;
    check("acpi: rsdp where firmware has it", scanned, rsdp);
    xsdt = get64(rsdp + 24);
    holds("acpi: xsdt checksum", sums_to_zero(xsdt, get32(xsdt + 4)));
    for (u64 at = xsdt + 36; at < xsdt + get32(xsdt + 4); at += 8) {
        u64 table = get64(at);
        holds("acpi: table checksum", sums_to_zero(table, get32(table + 4)));
        if (get32(table) == 0x50434146) {
            u64 dsdt = get64(table + 140);
            found |= 1;
            holds("acpi: dsdt checksum", get32(dsdt) == 0x54445344 && sums_to_zero(dsdt, get32(dsdt + 4)));
        }
        if (get32(table) == 0x43495041) {
            u32 processors = 0;
            found |= 2;
            for (u64 entry = table + 44; entry < table + get32(table + 4); entry += get8(entry + 1))
                processors += get8(entry) == 0;
            check("acpi: processors", processors, 2);
        }
        if (get32(table) == 0x4746434d) {
            found |= 4;
            check("acpi: ecam", get64(table + 44), 0xe0000000);
        }
    }
    check("acpi: facp, apic, mcfg", found, 7);
}

#define EXPECT(what, vector, error, code)                          \
    do {                                                           \
        u64 before = seen[vector];                                 \
        last_error = 0;                                            \
        asm volatile("lea 1f(%%rip), %%rax; mov %%rax, go_on_at; " code "; 1:" \
                     : : : "rax", "rcx", "rdx", "memory");          \
        check(what, seen[vector] - before, 1);                     \
        check(what " error code", last_error, error);              \
    } while (0)

static void take_exceptions(void)
{
    EXPECT("exception: undefined opcode", 6, 0, "ud2");
    EXPECT("exception: division", 0, 0, "xor %%ecx, %%ecx; xor %%edx, %%edx; div %%ecx");
    EXPECT("exception: page fault", 14, 2, "mov $0x8000000000, %%rcx; movb $1, (%%rcx)");
    EXPECT("exception: general protection", 13, 0, "mov $0x123456789, %%rcx; shl $20, %%rcx; movb (%%rcx), %%al");
}

static void identify_processor(void)
{
    u32 a, b, c, d;
    asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0));
    holds("cpuid: leaves", a >= 1);
    asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(1));
    holds("cpuid: apic, tsc, msr", (d >> 9 & 1) && (d >> 4 & 1) && (d >> 5 & 1));
    asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0x40000000));
    holds("cpuid: kvm", b == 0x4b4d564b && c == 0x564b4d56 && d == 0x4d);
    asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(0x80000001));
    holds("cpuid: long mode", d >> 29 & 1);
}

static void tell_time(void)
{
    static volatile u64 page[512] __attribute__((aligned(4096)));
    u64 first = rdtsc();
    holds("tsc goes on", rdtsc() > first);
    wrmsr(0x4b564d01, (u64)page | 1);
    for (u32 waited = 0; waited < 1000 && !page[2]; waited++) inb(0x80);
    holds("kvm-clock: version even, time set", page[0] && !(page[0] & 1) && page[2]);
    wrmsr(0x4b564d01, 0);
    outb(0x70, 0xd);
    check("rtc: battery", inb(0x71), 0x80);
    outb(0x70, 0x32);
    check("rtc: century", inb(0x71), 0x20);
    outb(0x70, 8);
    u8 month = inb(0x71);
    holds("rtc: month", month >= 1 && month <= 0x12);
}

static volatile u32 serial_reason;

static void took(u64 vector)
{
    if (vector == 0x34) serial_reason = inb(SERIAL + 2);
    end_of_interrupt();
}

static void route(u32 pin, u32 vector)
{
    put32(IOAPIC, 0x10 + 2 * pin);
    put32(IOAPIC + 0x10, vector);
    put32(IOAPIC, 0x11 + 2 * pin);
    put32(IOAPIC + 0x10, 0);
}

static int waits_for(u64 vector, u64 count)
{
    for (u32 waited = 0; waited < 4000000 && seen[vector] < count; waited++) asm volatile("pause");
    return seen[vector] >= count;
}

static void take_interrupts(void)
{
    on_interrupt = took;
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    put32(LAPIC + 0xf0, 0x1ff);
    asm volatile("sti");

    put32(LAPIC + 0x300, 0x44040);
    holds("interrupt: from itself", waits_for(0x40, 1));

    put32(LAPIC + 0x3e0, 0xb);
    put32(LAPIC + 0x320, 0x31);
    put32(LAPIC + 0x380, 10000);
    holds("interrupt: lapic timer", waits_for(0x31, 1));
    put32(LAPIC + 0x320, 1 << 16);

    route(2, 0x32);
    outb(0x43, 0x34);
    outb(0x40, 0x00);
    outb(0x40, 0x10);
    holds("interrupt: pit, twice", waits_for(0x32, 2));
    route(2, 1 << 16 | 0x32);

    route(4, 0x34);
    outb(SERIAL + 1, 2);
    holds("interrupt: serial port by the ioapic", waits_for(0x34, 1));
    outb(SERIAL + 1, 0);
    check("interrupt: serial port says why", serial_reason & 0xf, 2);
    route(4, 1 << 16 | 0x34);
    asm volatile("cli");
}

static void enumerate_pci(void)
{
    u32 functions = 0, differences = 0;
    for (u32 slot = 0; slot < 32; slot++) {
        outl(0xcf8, 1u << 31 | slot << 11);
        u32 identity = inl(0xcfc);
        if (identity != get32(0xe0000000 + (slot << 15))) differences++;
        if (identity == 0xffffffff) continue;
        functions++;
        for (u32 reg = 4; reg < 256; reg += 4) {
            outl(0xcf8, 1u << 31 | slot << 11 | reg);
            if (inl(0xcfc) != get32(0xe0000000 + (slot << 15) + reg)) differences++;
            if (reg < 16 && inw(0xcfe) != get16(0xe0000002 + (slot << 15) + reg)) differences++;
            if (reg < 16 && inb(0xcfd) != get8(0xe0000001 + (slot << 15) + reg)) differences++;
        }
    }
    holds("pci: a bridge, the agent, entropy, a disk, a card", functions >= 5);
    check("pci: ports and ecam differ", differences, 0);
    check("pci: nothing reads as ones", get32(0xe0000000 + (31 << 15)), 0xffffffff);
}

static volatile u64 counted_by_second, second_may_go;

void second_main(void)
{
    second_is_up = 1;
    while (!second_may_go) asm volatile("pause");
    for (int turn = 0; turn < 1000; turn++) asm volatile("lock; incq %0" : "+m"(counted_by_second));
    second_is_up = 2;
    for (;;) asm volatile("cli; hlt");
}

static void start_another(void)
{
    start_second_processor();
    write_text("\n");
    check("smp: the second processor is up", second_is_up, 1);
    second_may_go = 1;
    for (int turn = 0; turn < 1000; turn++) asm volatile("lock; incq %0" : "+m"(counted_by_second));
    for (u32 waited = 0; second_is_up != 2 && waited < 4000000; waited++) asm volatile("pause");
    check("smp: both counted", counted_by_second, 2000);
}

/* Ring 3, with segments and pages of its own. */
static u64 segments[9] __attribute__((aligned(16)));
static u8 task_state[104] __attribute__((aligned(16)));
static u8 ring0_stack[8192] __attribute__((aligned(16)));
static u8 user_stack[4096] __attribute__((aligned(16)));
volatile u64 user_said, back_at, back_stack, user_rsp;

extern char system_call[];
asm(".pushsection .text\n"
    "enter_ring3:\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "  mov %rsp, back_stack\n"
    "  push $0x3b; push %rsi; push $0x3002; push $0x33; push %rdi; iretq\n"
    "left_ring3:\n"
    "  mov back_stack, %rsp\n"
    "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n"
    "user_interrupts:\n"
    "  int $0x80; ud2\n"
    "user_breaks_rules:\n"
    "  lea 1f(%rip), %rax; mov %rax, go_on_at; cli; 1: mov %cs, %eax; mov %rax, user_said; ud2\n"
    "user_calls:\n"
    "  mov $9, %rax; syscall; mov %rax, user_said; ud2\n"
    "system_call:\n"
    "  swapgs\n"
    "  mov %rsp, user_rsp\n"
    "  mov $ring0_end, %rsp\n"
    "  add $1, %rax\n"
    "  pushq $0x3b; pushq user_rsp; pushq %r11; pushq $0x33; pushq %rcx\n"
    "  swapgs\n"
    "  iretq\n"
    ".popsection\n");
extern char user_interrupts[], user_breaks_rules[], user_calls[];
void run_in_ring3(void *code, void *stack) asm("enter_ring3");
asm(".pushsection .bss\n .balign 16\n .skip 4096\n ring0_end:\n .popsection\n");

static void left(u64 vector)
{
    /* By what ring 3 is left: an instruction that there is not, or an interrupt. */
    if (vector == 0x80 || vector == 6) asm volatile("jmp left_ring3");
    end_of_interrupt();
}

static void use_ring3(void)
{
    u64 cr3, tss = (u64)task_state;
    asm volatile("mov %%cr3, %0" : "=r"(cr3));
    /* The first 2 MiB, where this guest lies. */
    for (u64 level = 0; level < 3; level++) put64(cr3 + 0x1000 * level, get64(cr3 + 0x1000 * level) | 4);
    asm volatile("mov %0, %%cr3" : : "r"(cr3) : "memory");
    segments[2] = 0x00af9b000000ffff;
    segments[3] = 0x00cf93000000ffff;
    segments[4] = 0x00cffb000000ffff;
    segments[7] = 0x00cff3000000ffff;
    segments[6] = 0x00affb000000ffff;
    static u64 all[12] __attribute__((aligned(16)));
    copy(all, segments, sizeof segments);
    all[8] = 0x67 | (tss & 0xffffff) << 16 | 0x89ull << 40 | (tss >> 24 & 0xff) << 56;
    all[9] = tss >> 32;
    put64(tss + 4, (u64)ring0_stack + sizeof ring0_stack);
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = {sizeof all - 1, (u64)all};
    asm volatile("lgdt %0; ltr %w1" : : "m"(pointer), "r"(0x40));
    on_interrupt = left;
    u64 before = seen[13];
    run_in_ring3(user_breaks_rules, user_stack + sizeof user_stack);
    check("ring 3: cli is refused", seen[13] - before, 1);
    check("ring 3: it was there", user_said, 0x33);
    if (asked("use=int")) {
        run_in_ring3(user_interrupts, user_stack + sizeof user_stack);
        check("ring 3: an interrupt leads back", seen[0x80], 1);
    }
    if (!asked("use=syscall")) return;
    wrmsr(0xc0000081, (0x10ull << 32) | (0x20ull << 48));
    /* Where ring 3 has nothing to look for, as a kernel's code is. */
    copy((void *)0x400000, system_call, 256);
    wrmsr(0xc0000082, 0x400000);
    wrmsr(0xc0000084, 0x200);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);
    /* Whoever helps out on emulated hosts looks now and then. */
    for (int turn = 0; turn < 200; turn++) inb(0x80);
    run_in_ring3(user_calls, user_stack + sizeof user_stack);
    check("ring 3: syscall and back", user_said, 10);
}

void guest_main(u64 zero_page)
{
    command_line = (const char *)(u64)get32(zero_page + 0x228);
    write_text("64-bit\n");
    if (asked("end=reset")) { outb(0x64, 0xfe); asm volatile("hlt"); }
    if (asked("end=acpi-reset")) { outb(0x602, 1); asm volatile("hlt"); }
    if (asked("end=off")) power_off();
    set_up_interrupts();
    look_at_memory_map(zero_page);
    look_at_acpi(zero_page);
    take_exceptions();
    identify_processor();
    tell_time();
    enumerate_pci();
    take_interrupts();
    start_another();
    use_ring3();
    write_text("done\n");
    power_off();
}
