/* A BIOS of a few hundred bytes, and behind it a bzImage that is entered by Linux's 16-bit boot
 * protocol (Documentation/arch/x86/boot.rst): together a kernel that is entered by PVH. KERNEL is
 * the bzImage.
 *
 * It has what iPXE asks a BIOS for: a console (INT 10h, on the first serial port), memory (INT 12h
 * and 15h), no key (INT 16h), ticks and PCI (INT 1Ah; PCI BIOS Specification 2.1). It gives up by
 * switching the machine off (INT 18h), as when iPXE has returned. */

        .set    ROM_SEGMENT, 0xf000
        .set    ROM, ROM_SEGMENT << 4
        .set    SETUP_SEGMENT, 0x1000
        .set    SETUP, SETUP_SEGMENT << 4
        .set    PAYLOAD, 0x100000
        .set    SERIAL, 0x3f8
        .set    POWER, 0x600
        .set    BASE_KIB, 639

#define IN_ROM(label) (ROM + label - rom)

        .section .note.xen, "a", @note
        .long   4, 4, 18
        .asciz  "Xen"
        .long   start

        .text
        .code32
start:
        cld
        mov     %ebx, %ebp              /* PVH's start info */
        mov     $rom, %esi
        mov     $ROM, %edi
        mov     $(rom_end - rom + 3) / 4, %ecx
        rep movsl
        mov     $IN_ROM(in_rom), %eax
        jmp     *%eax

        .balign 16
rom:
        /* The first bytes of the segment hold what the machine has put there. */
        .org    . + 0x100
in_rom:
        mov     48(%ebp), %ecx          /* the memory map */
        mov     %ecx, IN_ROM(map_count)
        mov     40(%ebp), %esi
        mov     $IN_ROM(map), %edi
1:      cmpl    $0x100000, (%esi)
        jne     2f
        mov     8(%esi), %eax           /* RAM from 1 MiB on is what old calls tell of */
        shr     $10, %eax
        mov     %eax, IN_ROM(extended_kib)
2:      movsl
        movsl
        movsl
        movsl
        movsl
        add     $4, %esi
        loop    1b

        /* The boot sector and as many of setup as it says, and the rest, over what runs no more. */
        movzbl  kernel + 0x1f1, %eax
        inc     %eax
        shl     $7, %eax                /* in words of 4 bytes */
        mov     %eax, %ecx
        mov     $kernel, %esi
        mov     $SETUP, %edi
        rep movsl
        mov     $(kernel_end - kernel + 3) / 4, %ecx
        sub     %eax, %ecx
        mov     $PAYLOAD, %edi
        rep movsl
        mov     24(%ebp), %eax
        mov     %eax, SETUP + 0x228     /* cmd_line_ptr */
        movb    $0xff, SETUP + 0x210    /* type_of_loader */

        lgdt    IN_ROM(gdt_pointer)
        ljmp    $8, $(to_real_mode - rom)

        .balign 8
gdt:    .quad   0
        .quad   0x00009b0f0000ffff      /* 16-bit code at F0000 */
        .quad   0x000093000000ffff      /* 16-bit data */
        .quad   0x008f93000000ffff      /* all memory */
gdt_pointer:
        .word   . - gdt - 1
        .long   IN_ROM(gdt)
map_count:
        .long   0
extended_kib:
        .long   0
map:    .fill   20 * 32, 1, 0

vectors:                                /* INT 8 to INT 1Ah */
        .word   tick - rom              /* 08 */
        .rept   7                       /* 09 */
        .word   interrupt - rom
        .endr
        .word   console - rom           /* 10 */
        .word   equipment - rom         /* 11 */
        .word   base_memory - rom       /* 12 */
        .word   refuse - rom            /* 13 */
        .word   ignore - rom            /* 14 */
        .word   system - rom            /* 15 */
        .word   keyboard - rom          /* 16 */
        .word   ignore - rom            /* 17 */
        .word   give_up - rom           /* 18 */
        .word   give_up - rom           /* 19 */
        .word   time - rom              /* 1a */
vectors_end:

        .code16
to_real_mode:
        mov     $16, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     %ax, %fs
        mov     %ax, %gs
        mov     %cr0, %eax
        and     $0xfe, %al
        mov     %eax, %cr0
        ljmp    $ROM_SEGMENT, $(real_mode - rom)
real_mode:
        xor     %ax, %ax
        mov     %ax, %ss
        mov     $0x7c00, %sp
        /* Every vector of the first page leads to an IRET. */
        mov     %ax, %es
        xor     %di, %di
        mov     $256, %cx
1:      mov     $(ignore - rom), %ax
        stosw
        mov     $ROM_SEGMENT, %ax
        stosw
        loop    1b
        mov     $(vectors - rom), %si
        mov     $(4 * 8), %di
        mov     $((vectors_end - vectors) / 2), %cx
1:      cs lodsw
        stosw
        inc     %di
        inc     %di
        loop    1b
        mov     $(4 * 0x70), %di
        mov     $8, %cx
1:      mov     $(interrupt - rom), %ax
        stosw
        inc     %di
        inc     %di
        loop    1b
        /* The data area: no devices, the size of base memory, no ticks yet. */
        mov     $0x400, %di
        mov     $0x80, %cx
        xor     %ax, %ax
        rep stosw
        movw    $BASE_KIB, %es:0x413
        movw    $80, %es:0x44a
        /* Interrupt controllers at vectors 8 and 70h, the timer alone let through. */
        mov     $0x11, %al
        out     %al, $0x20
        out     %al, $0xa0
        mov     $0x08, %al
        out     %al, $0x21
        mov     $0x70, %al
        out     %al, $0xa1
        mov     $0x04, %al
        out     %al, $0x21
        mov     $0x02, %al
        out     %al, $0xa1
        mov     $0x01, %al
        out     %al, $0x21
        out     %al, $0xa1
        mov     $0xfe, %al
        out     %al, $0x21
        mov     $0xff, %al
        out     %al, $0xa1
        mov     $0x34, %al
        out     %al, $0x43
        xor     %al, %al
        out     %al, $0x40
        out     %al, $0x40

        mov     $SETUP_SEGMENT, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %fs
        mov     %ax, %gs
        mov     %ax, %ss
        mov     $0xf000, %sp
        ljmp    $(SETUP_SEGMENT + 0x20), $0

tick:
        push    %ax
        push    %ds
        xor     %ax, %ax
        mov     %ax, %ds
        incl    0x46c
        pop     %ds
        mov     $0x20, %al
        out     %al, $0x20
        pop     %ax
        iret
interrupt:
        push    %ax
        mov     $0x20, %al
        out     %al, $0xa0
        out     %al, $0x20
        pop     %ax
ignore: iret

console:                                /* INT 10h */
        cmp     $0x0e, %ah
        je      1f
        cmp     $0x0f, %ah
        je      2f
        cmp     $0x03, %ah
        jne     ignore
        mov     $0x0607, %cx            /* the cursor's shape and place */
        xor     %dx, %dx
        iret
1:      push    %dx
        mov     $SERIAL, %dx
        out     %al, %dx
        pop     %dx
        iret
2:      mov     $0x5003, %ax            /* 80 columns, text */
        xor     %bh, %bh
        iret

equipment:                              /* INT 11h */
        xor     %ax, %ax
        iret
base_memory:                            /* INT 12h */
        push    %ds
        xor     %ax, %ax
        mov     %ax, %ds
        mov     0x413, %ax
        pop     %ds
        iret

system:                                 /* INT 15h */
        cmp     $0xe820, %ax
        je      memory_map
        cmp     $0xe801, %ax
        je      memory_sizes
        cmp     $0x88, %ah
        je      memory_size
        cmp     $0x87, %ah
        je      move
        cmp     $0x24, %ah
        je      a20
refuse: mov     $0x86, %ah
        jmp     fail

memory_map:
        cmp     $0x534d4150, %edx       /* "SMAP" */
        jne     refuse
        cmp     %cs:map_count - rom, %bx
        jae     refuse
        push    %si
        push    %di
        imul    $20, %bx, %si
        add     $(map - rom), %si
        mov     $20, %cx
        cld
        rep movsb %cs:(%si), %es:(%di)
        pop     %di
        pop     %si
        mov     $20, %ecx
        mov     %edx, %eax
        inc     %bx
        movzwl  %bx, %ebx
        cmp     %cs:map_count - rom, %bx
        jb      succeed
        xor     %ebx, %ebx
        jmp     succeed

memory_sizes:                           /* KiB up to 16 MiB, 64 KiB above */
        mov     %cs:extended_kib - rom, %ebx
        mov     $0x3c00, %ax
        sub     $0x3c00, %ebx
        jae     1f
        add     %bx, %ax
        xor     %ebx, %ebx
1:      shr     $6, %ebx
        mov     %ax, %cx
        mov     %bx, %dx
        jmp     succeed

memory_size:                            /* at most 63 MiB */
        mov     $0xfc00, %ax
        cmpl    $0xfc00, %cs:extended_kib - rom
        ja      succeed
        mov     %cs:extended_kib - rom, %ax
        jmp     succeed

move:                                   /* CX words between descriptors at ES:SI */
        pushal
        push    %ds
        push    %es
        mov     %es:0x1a(%si), %edi
        and     $0xffffff, %edi
        mov     %es:0x1f(%si), %al
        shl     $24, %eax
        or      %eax, %edi
        mov     %es:0x17(%si), %al
        mov     %es:0x12(%si), %esi
        and     $0xffffff, %esi
        shl     $24, %eax
        or      %eax, %esi
        movzwl  %cx, %ecx
        cli
        cld
        lgdtl   %cs:gdt_pointer - rom
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmp    $8, $(1f - rom)
1:      mov     $24, %ax
        mov     %ax, %ds
        mov     %ax, %es
        addr32 rep movsw
        mov     $16, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %cr0, %eax
        and     $0xfe, %al
        mov     %eax, %cr0
        ljmp    $ROM_SEGMENT, $(1f - rom)
1:      pop     %es
        pop     %ds
        popal
        xor     %ah, %ah
        jmp     succeed

a20:                                    /* always on */
        xor     %ah, %ah
        cmp     $2, %al
        jne     succeed
        mov     $1, %al
        jmp     succeed

keyboard:                               /* INT 16h */
        test    $0xef, %ah
        jz      1f                      /* waits for a key: there is none, ever */
        cmp     $0x01, %ah
        je      no_key
        cmp     $0x11, %ah
        je      no_key
1:      xor     %ax, %ax
        iret
no_key: push    %bp
        mov     %sp, %bp
        orb     $0x40, 6(%bp)           /* ZF */
        pop     %bp
        iret

time:                                   /* INT 1Ah */
        cmp     $0xb1, %ah
        je      pci
        test    %ah, %ah
        jnz     refuse
        push    %ds
        xor     %cx, %cx
        mov     %cx, %ds
        mov     0x46c, %dx
        mov     0x46e, %cx
        pop     %ds
        xor     %al, %al
        iret

pci:
        cmp     $0x01, %al
        je      pci_present
        cmp     $0x08, %al
        jb      1f
        cmp     $0x0d, %al
        jbe     pci_access
1:      mov     $0x81, %ah
        jmp     fail
pci_present:
        mov     $0x20494350, %edx       /* "PCI " */
        mov     $0x0001, %ax            /* the first mechanism */
        mov     $0x0210, %bx
        xor     %cl, %cl                /* the last bus */
        jmp     succeed
pci_access:                             /* 8 to 10 read a byte, word, double; 11 to 13 write one */
        push    %ax
        push    %dx
        push    %eax
        movzwl  %bx, %eax
        shl     $8, %eax
        mov     %di, %dx
        mov     %dl, %al
        and     $0xfc, %al
        or      $0x80000000, %eax
        mov     $0xcf8, %dx
        out     %eax, %dx
        pop     %eax
        mov     %di, %dx
        and     $3, %dx
        add     $0xcfc, %dx
        cmp     $0x09, %al
        jb      read_byte
        je      read_word
        cmp     $0x0b, %al
        jb      read_double
        je      write_byte
        cmp     $0x0d, %al
        jb      write_word
        mov     %ecx, %eax
        out     %eax, %dx
        jmp     pci_done
write_word:
        mov     %cx, %ax
        out     %ax, %dx
        jmp     pci_done
write_byte:
        mov     %cl, %al
        out     %al, %dx
        jmp     pci_done
read_byte:
        in      %dx, %al
        mov     %al, %cl
        jmp     pci_done
read_word:
        in      %dx, %ax
        mov     %ax, %cx
        jmp     pci_done
read_double:
        in      %dx, %eax
        mov     %eax, %ecx
pci_done:
        pop     %dx
        pop     %ax
        xor     %ah, %ah

succeed:
        push    %bp
        mov     %sp, %bp
        andb    $0xfe, 6(%bp)           /* the carry flag of whoever called */
        pop     %bp
        iret
fail:
        push    %bp
        mov     %sp, %bp
        orb     $0x01, 6(%bp)
        pop     %bp
        iret

give_up:
        mov     $POWER, %dx
        mov     $0x34, %al
        out     %al, %dx
1:      hlt
        jmp     1b
rom_end:

        .balign 16
kernel: .incbin KERNEL
kernel_end:
        .balign 4
