// A guest that says "hi" on the serial port and then does one thing, chosen when it is assembled: RESET, FAULT (a triple
// fault), FLOOD (the serial port, for ever), COUNT (in memory, for ever; every 1024 it says the next letter), HIGH (uses its memory at 4 GiB, then resets) or nothing (spins).

.set SERIAL, 0x3f8

.section .text
.globl _start
_start:
    mov $SERIAL, %dx
    mov $'h', %al
    out %al, %dx
    mov $'i', %al
    out %al, %dx
    mov $'\n', %al
    out %al, %dx
#if defined(RESET)
    mov $0xfe, %al
    out %al, $0x64
#elif defined(HIGH)
    // The boot page tables get a level 2 table at 0xc000 for the fifth GiB, with one page of 2 MiB.
    movq $0xc007, 0xa020
    mov $0x100000083, %rax
    mov %rax, 0xc000
    mov %cr3, %rax
    mov %rax, %cr3
    mov $0x100000000, %rbx
    mov $0x1122334455667788, %rcx
    mov %rcx, 0x1ffff8(%rbx)
    cmp 0x1ffff8(%rbx), %rcx
    jne 1f
    mov $'y', %al
    out %al, %dx
    mov $0xfe, %al
    out %al, $0x64
#elif defined(FAULT)
    lidt no_table
    ud2
#elif defined(COUNT)
1:  incq counter
    testq $1023, counter
    jnz 1b
    mov letter, %al
    out %al, %dx
    inc %al
    cmp $'z', %al
    jbe 2f
    mov $'a', %al
2:  mov %al, letter
    jmp 1b
#elif defined(FLOOD)
1:  mov $'x', %al
    out %al, %dx
    mov $'\n', %al
    out %al, %dx
    jmp 1b
#endif
1:  pause
    jmp 1b

no_table:
    .word 0
    .quad 0

// In a page of its own, which is what changes.
.balign 4096
counter:
    .quad 0
letter:
    .byte 'a'
