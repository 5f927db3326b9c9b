/* The interrupt table, and what comes by it. */

#include "guest.h"

struct frame {
    u64 registers[15];
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

volatile u64 seen[256];
volatile u64 last_error;
volatile u64 go_on_at;
volatile u32 second_is_up;
void (*on_interrupt)(u64 vector);

static struct { u16 low, selector, flags, middle; u32 high, reserved; } table[256] __attribute__((aligned(16)));
extern char stubs[];

void interrupt(struct frame *frame)
{
    seen[frame->vector]++;
    if (frame->vector < 32 && !(frame->vector == 6 && frame->cs & 3)) {
        last_error = frame->error;
        if (!go_on_at) {
            write_text("WRONG exception ");
            write_hex(frame->vector);
            write_text(" at ");
            write_hex(frame->rip);
            write_text("\n");
            power_off();
        }
        frame->rip = go_on_at;
        go_on_at = 0;
        return;
    }
    if (on_interrupt) on_interrupt(frame->vector);
}

void set_up_interrupts(void)
{
    for (int vector = 0; vector < 256; vector++) {
        u64 stub = (u64)stubs + 32 * vector;
        table[vector].low = stub;
        table[vector].selector = 0x10;
        /* Interrupt gates; 0x80 may be raised by ring 3. */
        table[vector].flags = vector == 0x80 ? 0xee00 : 0x8e00;
        table[vector].middle = stub >> 16;
        table[vector].high = stub >> 32;
    }
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = {sizeof table - 1, (u64)table};
    asm volatile("lidt %0" : : "m"(pointer));
}

extern char trampoline[], trampoline_end[], trampoline_cr3[];

void start_second_processor(void)
{
    u64 cr3;
    asm volatile("mov %%cr3, %0" : "=r"(cr3));
    *(volatile u64 *)trampoline_cr3 = cr3;
    copy((void *)0x8000, trampoline, trampoline_end - trampoline);
    put32(LAPIC + 0xf0, 0x1ff);
    put32(LAPIC + 0x310, 1u << 24);
    put32(LAPIC + 0x300, 0x4500);
    put32(LAPIC + 0x310, 1u << 24);
    put32(LAPIC + 0x300, 0x4608);
    for (u32 waited = 0; !second_is_up && waited < 2000000; waited++) asm volatile("pause");
}
