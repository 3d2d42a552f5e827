// A guest that says "hi" on the serial port and then does one thing, chosen when it is assembled: RESET, FAULT (a triple
// fault), FLOOD (the serial port, for ever) or nothing (spins).

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
#elif defined(FAULT)
    lidt no_table
    ud2
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
