/* A guest that is entered by PVH in 32-bit protected mode without paging: it looks at the start
 * info, takes an exception, goes to real mode, takes an interrupt there, and comes back. */

    .section .note.xen, "a"
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start

#define LOW(label) (0x8000 + label - low_code)

    .text
    .code32
pvh_start:
    mov $stack, %esp
    mov %ebx, %ebp
    mov $entered, %esi
    call say

    cmpl $0x336ec578, 0(%ebp)
    mov $magic, %esi
    call check_equal

    mov 40(%ebp), %edi          /* the memory map */
    mov 48(%ebp), %ecx
    xor %eax, %eax
1:  cmpl $1, 16(%edi)
    jne 2f
    add 8(%edi), %eax
2:  add $24, %edi
    loop 1b
    cmp $((16 << 20) - (0x100000 - 0x9fc00)), %eax
    mov $memory, %esi
    call check_equal

    mov 32(%ebp), %edi          /* the RSDP */
    cmpl $0x20445352, (%edi)
    mov $tables, %esi
    call check_equal

    mov 24(%ebp), %edi          /* the command line */
    cmpl $0x746e6968, (%edi)
    mov $command_line, %esi
    call check_equal

    mov $on_undefined, %eax
    mov %ax, table + 8 * 6
    movw $0x10, table + 8 * 6 + 2
    movw $0x8e00, table + 8 * 6 + 4
    shr $16, %eax
    mov %ax, table + 8 * 6 + 6
    lidt table_pointer
    ud2
after_undefined:
    cmpl $1, taken
    mov $exception, %esi
    call check_equal

    mov $low_code, %esi
    mov $0x8000, %edi
    mov $(low_code_end - low_code), %ecx
    rep movsb
    lgdt LOW(descriptors_pointer)
    ljmp $0x18, $LOW(narrow)
back:
    mov $0x20, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $stack, %esp
    cmpl $0x1234, LOW(witness)
    mov $real, %esi
    call check_equal
    mov $done, %esi
    call say
    mov $0x600, %dx
    mov $0x34, %al
    out %al, %dx
1:  hlt
    jmp 1b

/* Without iret: some hosts emulate a guest's ring 0, and do not know it in 32 bit. */
on_undefined:
    incl taken
    add $12, %esp
    jmp after_undefined

say:
    mov $0x3f8, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  ret

check_equal:
    push %esi
    mov $right, %esi
    jz 1f
    mov $wrong, %esi
1:  call say
    pop %esi
    jmp say

entered: .asciz "32-bit\n"
right: .asciz "ok "
wrong: .asciz "WRONG "
magic: .asciz "pvh: start info\n"
memory: .asciz "pvh: memory map\n"
tables: .asciz "pvh: rsdp\n"
command_line: .asciz "pvh: command line\n"
exception: .asciz "32-bit: undefined opcode\n"
real: .asciz "real mode and back\n"
done: .asciz "done\n"

/* At 0x8000. */
low_code:
    .code16
narrow:
    mov $0x28, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0, $LOW(real_mode)
real_mode:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %sp
    lidt LOW(real_pointer)
    movw $LOW(on_interrupt), 4 * 0x21
    movw $0, 4 * 0x21 + 2
    mov $LOW(hello), %si
    mov $0x3f8, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  int $0x21
    lgdtl LOW(descriptors_pointer)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x10, $back
on_interrupt:
    movl $0x1234, LOW(witness)
    iret
hello: .asciz "16-bit\n"
    .balign 8
descriptors:
    .quad 0, 0, 0x00cf9b000000ffff, 0x00009b000000ffff, 0x00cf93000000ffff, 0x000093000000ffff
descriptors_pointer:
    .word descriptors_pointer - descriptors - 1
    .long LOW(descriptors)
real_pointer:
    .word 0x3ff
    .long 0
witness: .long 0
low_code_end:
    .code32

    .data
    .balign 8
table_pointer:
    .word 8 * 32 - 1
    .long table
    .bss
    .balign 16
table: .skip 8 * 32
taken: .skip 4
    .balign 16
    .skip 4096
stack:
