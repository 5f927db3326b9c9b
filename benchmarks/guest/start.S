/* Entry as PVH has it (32-bit, start information in EBX), then long mode, then ring 3, which
 * may use all ports: what is measured runs there, at the hardware's speed on every host. */

    .section .note.pvh, "a"
    .long 4, 4, 18
    .asciz "Xen"
    .long start

    .section .start, "ax"
    .code32
    .globl start
start:
    cli
    cld
    mov $task, %eax
    movw $(task_end - task - 1), gdt + 0x28
    mov %ax, gdt + 0x2a
    shr $16, %eax
    mov %al, gdt + 0x2c
    movb $0x89, gdt + 0x2d
    mov $stack_top, %esp
    mov %ebx, %esi
    lgdt gdt_pointer
    mov %cr4, %eax
    or $0x620, %eax             /* PAE, and SSE for what asks for it */
    mov %eax, %cr4
    mov $page_map, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    and $0xfffffffb, %eax
    or $0x80000002, %eax
    mov %eax, %cr0
    ljmp $8, $long_mode
    .code64
long_mode:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov 24(%rsi), %rdi          /* the command line, of hvm_start_info */
    mov $0x28, %eax
    ltr %ax
    pushq $0x1b                 /* SS */
    push $stack_top
    pushq $2                    /* no interrupts */
    pushq $0x23                 /* CS */
    push $ring3
    iretq
ring3:
    call bench_main
1:  jmp 1b

    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
    .quad 0, 0                  /* the task's, which is filled in */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

/* A task whose map of ports allows all of them. */
    .data
    .balign 4096
task:
    .fill 102, 1, 0
    .word 104
    .fill 8192, 1, 0
    .byte 0xff
task_end:

/* The first 4 GiB as they are, in pages of 2 MiB, for every ring. */
    .data
    .balign 4096
page_map:
    .quad directories + 7
    .fill 511, 8, 0
directories:
    .quad pages + 7, pages + 0x1007, pages + 0x2007, pages + 0x3007
    .fill 508, 8, 0
pages:
    .set page, 0
    .rept 2048
    .quad (page << 21) | 0x87
    .set page, page + 1
    .endr

    .bss
    .balign 4096
    .skip 16384
stack_top:
