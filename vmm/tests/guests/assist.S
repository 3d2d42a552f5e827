// A guest of a few hundred bytes that does what a Linux kernel and its programs do with their CPU, and says on the serial
// port how it went. Linked at 1 MiB (kernel) and 2 MiB (program); starts in 64-bit mode with the first GiB mapped.
//
// Output, a letter a step:  K start  B int3  P popcnt  C crc32  F fwait  then, for each of two interrupt tables:
//   S system calls and faults went right, under a timer's interrupts  J a jump to the system call entry stayed a page fault
// and a newline at the end; ! says that a step went wrong. Then the machine powers off.

#ifdef MANY                          // long enough for many pauses
.set ROUNDS, 2000
#else
.set ROUNDS, 400
#endif
.set SERIAL, 0x3f8
.set POWER, 0x600
.set PAGE_DIRECTORY_1, 0xb008         // entry of 2..4 MiB in the boot page tables
.set KERNEL_CS, 0x10
.set USER_DS, 0x2b
.set USER_CS, 0x33
.set TSS, 0x38
.set TIMER, 0x40
.set FAULT_ADDRESS, 0x40000000        // just past what is mapped

.macro say letter
    mov $\letter, %al
    mov $SERIAL, %dx
    out %al, %dx
.endm

.section .text
.globl _start
_start:
    mov $stack_top, %rsp
    say 'K'
    orq $4, PAGE_DIRECTORY_1          // the program's 2 MiB are the user's
    mov %cr3, %rax
    mov %rax, %cr3
    // Descriptors: a TSS whose level 0 stack is ours.
    mov $tss, %rax
    mov %ax, gdt + TSS + 2
    shr $16, %rax
    mov %al, gdt + TSS + 4
    mov %ah, gdt + TSS + 7
    movq $interrupt_stack_top, tss + 4
    lgdt gdt_pointer
    mov $TSS, %ax
    ltr %ax
    // Interrupt tables.
    mov $idt_a, %rdi
    mov $page_fault_a, %rbx
    call fill_idt
    mov $idt_b, %rdi
    mov $page_fault_b, %rbx
    call fill_idt
    lidt idt_a_pointer
    // System calls, in the order in which Linux sets them up: the mask last.
    mov $0xc0000080, %ecx
    rdmsr
    or $1, %eax
    wrmsr
    mov $0xc0000081, %ecx
    xor %eax, %eax
    mov $0x00230010, %edx
    wrmsr
    mov $0xc0000082, %ecx
    mov $system_call, %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx
    mov $0x47700, %eax
    xor %edx, %edx
    wrmsr
    // The local APIC in MSR mode (x2APIC), its timer periodic, a tick 200 microseconds; it interrupts the program only.
    mov $0x1b, %ecx
    rdmsr
    or $0xc00, %eax
    wrmsr
    xor %edx, %edx
    mov $0x80f, %ecx                  // on, spurious vector 255
    mov $0x1ff, %eax
    wrmsr
    mov $0x83e, %ecx                  // divide by one
    mov $0xb, %eax
    wrmsr
    mov $0x832, %ecx                  // periodic
    mov $0x20000 + TIMER, %eax
    wrmsr
    mov $0x838, %ecx
    mov $200000, %eax
    wrmsr
    // Instructions that an interpreter may lack.
    int3
    mov $0xf0f0, %rcx
    popcnt %rcx, %rdx
    cmp $8, %rdx
    jne failed
    popcntl data_word(%rip), %edx
    cmp $3, %edx
    jne failed
    say 'P'
    xor %ecx, %ecx
    mov $0x12345678, %eax
    crc32l %eax, %ecx
    cmp $0xfa745634, %ecx
    jne failed
    say 'C'
    fwait
    say 'F'
to_user:
    pushq $USER_DS
    pushq $user_stack_top
    pushq $0x202
    pushq $USER_CS
    pushq $program
    iretq

failed:
    say '!'
power_off:
    say '\n'
    mov $POWER, %dx
    mov $0x34, %al
    out %al, %dx
1:  hlt
    jmp 1b

// rdi: table; rbx: its page fault handler.
fill_idt:
    mov $3, %ecx
    mov $breakpoint, %rax
    call gate
    mov $6, %ecx
    mov $failed, %rax
    call gate
    mov $8, %ecx
    call gate
    mov $13, %ecx
    call gate
    mov $TIMER, %ecx
    mov $timer, %rax
    call gate
    mov $255, %ecx
    mov $failed, %rax
    call gate
    mov $14, %ecx
    mov %rbx, %rax
gate:                                 // rdi: table, ecx: vector, rax: handler
    push %rcx
    push %rax
    shl $4, %ecx
    mov %ax, (%rdi, %rcx)
    movw $KERNEL_CS, 2(%rdi, %rcx)
    movw $0x8e00, 4(%rdi, %rcx)
    shr $16, %rax
    mov %ax, 6(%rdi, %rcx)
    pop %rax
    pop %rcx
    ret

timer:
    push %rax
    push %rcx
    push %rdx
    incq ticks
    cmpq $USER_CS, 32(%rsp)           // CS
    jne failed
    mov $0x80b, %ecx                  // end of interrupt
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    pop %rdx
    pop %rcx
    pop %rax
    iretq

breakpoint:
    push %rax
    push %rdx
    say 'B'
    pop %rdx
    pop %rax
    iretq

// rax: 1 add one to rdi, 2 switch to the second table, 3 the end, 4 say rdi. All by the program's own stack.
system_call:
    swapgs
    mov %rsp, saved_rsp
    mov $stack_top, %rsp
    push %r11
    push %rcx
    pushf
    testq $0x200, (%rsp)              // SFMASK must have cleared IF
    jnz failed
    popf
    mov %cs, %cx
    cmp $KERNEL_CS, %cx
    jne failed
    cmp $1, %eax
    je 1f
    cmp $2, %eax
    je 2f
    cmp $3, %eax
    je 4f
    cmp $4, %eax
    jne failed
    mov %dil, %al
    mov $SERIAL, %dx
    out %al, %dx
    jmp 3f
1:  lea 1(%rdi), %rax
    jmp 3f
4:  cmpq $0, ticks                    // the timer must have ticked
    je failed
    jmp power_off
2:  lidt idt_b_pointer
    mov $0x80, %dx
    out %al, %dx
3:  pop %rcx
    pop %r11
    mov saved_rsp, %rsp
    swapgs
    sysretq

// What is at the fault decides: the expected address counts and goes on at r12, a jump to the entry too.
page_fault_a:
    endbr64
    jmp page_fault
page_fault_b:
    push %rax
    lea -8(%rsp), %rsp
    lea 8(%rsp), %rsp
    pop %rax
page_fault:
    push %rax
    push %rbx
    mov 32(%rsp), %rax                // CS
    cmp $USER_CS, %rax
    jne failed
    mov %cr2, %rax
    mov $FAULT_ADDRESS, %rbx
    cmp %rbx, %rax
    je 1f
    cmp $system_call, %rax
    jne failed
1:  inc %r13
    mov %r12, 24(%rsp)                // RIP
    pop %rbx
    pop %rax
    add $8, %rsp
    iretq

.section .user, "awx"
program:
    mov $2, %r15d
again:
    mov $ROUNDS, %r14d
    xor %r13d, %r13d
    mov $7, %rbp
1:  mov $1, %eax
    mov %rbp, %rdi
    syscall
    inc %rbp
    cmp %rbp, %rax
    jne wrong
    mov $2f, %r12
    mov $FAULT_ADDRESS, %rbx
    mov (%rbx), %rax                  // a real page fault
    jmp wrong
2:  dec %r14d
    jnz 1b
    cmp $ROUNDS, %r13
    jne wrong
    mov $'S', %edi
    mov $4, %eax
    syscall
    // Forged: RCX and R11 as SYSCALL would leave them.
    mov $3f, %r12
    mov $3f, %rcx
    pushf
    pop %r11
    mov $system_call, %rax
    jmp *%rax
3:  cmp $ROUNDS + 1, %r13
    jne wrong
    mov $'J', %edi
    mov $4, %eax
    syscall
    mov $2, %eax
    syscall
    dec %r15d
    jnz again
    mov $3, %eax
    syscall
wrong:
    mov $'!', %edi
    mov $4, %eax
    syscall
    mov $3, %eax
    syscall

.section .data
.balign 8
data_word: .long 0x700
.balign 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0x00cff3000000ffff, 0x00affb000000ffff
    .quad 0x0000890000000067, 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_a_pointer:
    .word 256 * 16 - 1
    .quad idt_a
idt_b_pointer:
    .word 256 * 16 - 1
    .quad idt_b
.balign 16
tss: .skip 104
saved_rsp: .quad 0
ticks: .quad 0
.balign 16
idt_a: .skip 4096
idt_b: .skip 4096
.skip 4096
stack_top:
.skip 4096
interrupt_stack_top:

.section .userdata, "aw"
.skip 4096
user_stack_top:
