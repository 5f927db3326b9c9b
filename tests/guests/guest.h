/* What our small guests share: words of fixed width, ports, memory-mapped registers, the serial
 * port, interrupts and checks. Freestanding, without SSE: on some hosts the guest's ring 0 is
 * emulated instruction by instruction, and the emulator knows no more. */

#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SERIAL 0x3f8

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

/* Registers, by instructions whose width is just that. */
static inline u8 get8(u64 at) { u8 value; asm volatile("movb (%1), %0" : "=q"(value) : "r"(at) : "memory"); return value; }
static inline u16 get16(u64 at) { u16 value; asm volatile("movw (%1), %0" : "=r"(value) : "r"(at) : "memory"); return value; }
static inline u32 get32(u64 at) { u32 value; asm volatile("movl (%1), %0" : "=r"(value) : "r"(at) : "memory"); return value; }
static inline u64 get64(u64 at) { u64 value; asm volatile("movq (%1), %0" : "=r"(value) : "r"(at) : "memory"); return value; }
static inline void put8(u64 at, u8 value) { asm volatile("movb %1, (%0)" : : "r"(at), "q"(value) : "memory"); }
static inline void put16(u64 at, u16 value) { asm volatile("movw %1, (%0)" : : "r"(at), "r"(value) : "memory"); }
static inline void put32(u64 at, u32 value) { asm volatile("movl %1, (%0)" : : "r"(at), "r"(value) : "memory"); }
static inline void put64(u64 at, u64 value) { asm volatile("movq %1, (%0)" : : "r"(at), "r"(value) : "memory"); }

static inline void barrier(void) { asm volatile("lock; addl $0, (%%rsp)" : : : "memory"); }
static inline u64 rdmsr(u32 number) { u32 low, high; asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number)); return (u64)high << 32 | low; }
static inline void wrmsr(u32 number, u64 value) { asm volatile("wrmsr" : : "a"((u32)value), "d"((u32)(value >> 32)), "c"(number) : "memory"); }
static inline u64 rdtsc(void) { u32 low, high; asm volatile("rdtsc" : "=a"(low), "=d"(high)); return (u64)high << 32 | low; }

static inline void write_text(const char *text) { while (*text) outb(SERIAL, *text++); }

static inline void write_hex(u64 value)
{
    int shift = 60;
    while (shift && !(value >> shift)) shift -= 4;
    for (; shift >= 0; shift -= 4) outb(SERIAL, "0123456789abcdef"[value >> shift & 15]);
}

/* One line for each thing that was looked at; the test reads them. */
static inline void check(const char *what, u64 found, u64 wanted)
{
    write_text(found == wanted ? "ok " : "WRONG ");
    write_text(what);
    if (found != wanted) {
        write_text(": ");
        write_hex(found);
        write_text(", not ");
        write_hex(wanted);
    }
    write_text("\n");
}

static inline void holds(const char *what, int is) { check(what, !!is, 1); }

static inline void power_off(void) { for (;;) { outb(0x600, 5 << 2 | 1 << 5); asm volatile("cli; hlt"); } }

static inline void fill(void *to, u8 value, u64 length)
{
    asm volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
}

static inline void copy(void *to, const void *from, u64 length)
{
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

/* start.S and interrupts.c */
extern volatile u64 seen[256];      /* how often each vector came */
extern volatile u64 last_error;     /* the error code of the last exception that has one */
extern volatile u64 go_on_at;       /* where an exception that is expected goes on; once */
extern void (*on_interrupt)(u64 vector);
void set_up_interrupts(void);
void start_second_processor(void);
extern volatile u32 second_is_up;
void second_main(void);
void guest_main(u64 zero_page);

#define LAPIC 0xfee00000ull
#define IOAPIC 0xfec00000ull
static inline void end_of_interrupt(void) { put32(LAPIC + 0xb0, 0); }

#endif
