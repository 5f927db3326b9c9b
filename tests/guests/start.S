/* Entry as Linux's 64-bit protocol has it; interrupt stubs; the second processor's way from real
 * mode by 32-bit protected mode into long mode, saying so at each step. */

    .section .start, "ax"
    .code64
    .globl start
start:
    cli
    mov $stack_top, %rsp
    mov %rsi, %rdi
    call guest_main
    mov $0x600, %dx
    mov $0x34, %al
    out %al, %dx
    hlt

/* Every stub begins with a nop of three bytes, which whoever helps out on emulated hosts skips. */
    .text
    .set vector, 0
    .balign 32
    .globl stubs
stubs:
    .rept 256
    .balign 32
    nopl (%rax)
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17)
    .else
    push $0
    .endif
    push $vector
    jmp common
    .set vector, vector + 1
    .endr

common:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    cld
    call interrupt
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/* Copied to 0x8000, where INIT and SIPI send the second processor. */
    .globl trampoline, trampoline_end
#define HERE(label) (0x8000 + label - trampoline)
    .balign 16
    .code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov $0x3f8, %dx
    mov $'r', %al
    out %al, %dx
    lgdtl HERE(gdt_pointer)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x18, $HERE(protected)
    .code32
protected:
    mov $0x20, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov %ax, %es
    mov $0x3f8, %dx
    mov $'p', %al
    out %al, %dx
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov HERE(trampoline_cr3), %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x10, $HERE(long_mode)
    .code64
long_mode:
    mov $0x3f8, %dx
    mov $'l', %al
    out %al, %dx
    mov $second_stack_top, %rsp
    mov $second_main, %rax
    call *%rax
    cli
    hlt
    .balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long HERE(gdt)
    .balign 8
    .globl trampoline_cr3
trampoline_cr3:
    .quad 0
trampoline_end:

    .bss
    .balign 4096
    .skip 16384
stack_top:
    .skip 8192
second_stack_top:
