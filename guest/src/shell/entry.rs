//! The first instructions of the arranged shell: they make its data, and in a shell that waits they bring in what it will
//! touch and stop before its own first instruction, until they are told what to run.
//!
//! ```text
//!  copy initial data ─► argv[0] says "wait"? ── no ───────────────────────────────► main
//!                             │ yes                                                   ▲
//!                  touch memory ─► write(1, area) ─► read(3, area) ─► system calls ───┘ with the new stack
//! ```
//!
//! What is read is a [`super::image`]: system calls to make, then the stack as `execve` would have left it.
//! (System V ABI for AMD64, 3.4.1: rsp points to argc, rdx is zero.)

use super::image::{CALL_BYTES, IMAGE_BYTES_MAX};

/// `argv[0]` of a shell that shall wait; its first eight bytes are looked at.
pub const WAITING_NAME: &[u8; 14] = b"bash (waiting)";

/// The descriptor on which a waiting shell is told what to run.
pub const GO_FD: i32 = 3;

/// Stack below the image that a shell's start uses, in bytes.
const STACK_BYTES: u32 = 16 << 10;

/// Room between the first stack and the image, for what a call may leave below rsp.
const GAP_BYTES: u32 = 256;

/// Exit code of a waiting shell that cannot go on. Nobody sees it but in a race with a directory's removal.
const LEFT: u32 = 127;

const PAGE_BYTES: u32 = 4096;
const SYSCALL: &[u8] = &[0x0f, 0x05];

/// What the instructions must know of the program; addresses all lie below 4 GiB.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Where the initial data is.
    pub from: u32,
    /// Where it belongs.
    pub data: u32,
    /// Its length.
    pub bytes: u32,
    /// The end of all data.
    pub data_end: u32,
    /// A place in the last huge page of code and constants.
    pub constants: u32,
    /// Where these instructions lie.
    pub here: u64,
    /// The program's own first instruction.
    pub main: u64,
}

#[derive(Clone, Copy)]
enum Label {
    Main,
    Leave,
    Data,
    DataDone,
    Stack,
    Call,
    Calls,
}

const LABELS: usize = 7;

/// Instructions with jumps to labels that may come later.
struct Code {
    bytes: Vec<u8>,
    here: u64,
    labels: [Option<u64>; LABELS],
    jumps: Vec<(usize, Label)>,
}

impl Code {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn put32(&mut self, opcode: &[u8], value: u32) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    fn jump(&mut self, opcode: &[u8], label: Label) -> &mut Self {
        self.put(opcode);
        self.jumps.push((self.bytes.len(), label));
        self.put(&[0; 4])
    }

    fn label(&mut self, label: Label) -> &mut Self {
        self.labels[label as usize] = Some(self.here + self.bytes.len() as u64);
        self
    }

    /// With all distances filled in.
    fn finish(mut self) -> Option<Vec<u8>> {
        for (at, label) in self.jumps {
            let next = self.here + at as u64 + 4;
            let distance = i32::try_from(self.labels[label as usize]?.checked_signed_diff(next)?).ok()?;
            self.bytes.get_mut(at..at + 4)?.copy_from_slice(&distance.to_le_bytes());
        }
        Some(self.bytes)
    }
}

/// The instructions. `None` when a distance is too far.
pub fn instructions(start: &Start) -> Option<Vec<u8>> {
    let mut code = Code { bytes: Vec::with_capacity(256), here: start.here, labels: [None; LABELS], jumps: Vec::new() };
    code.labels[Label::Main as usize] = Some(start.main);
    make_data(&mut code, start);
    touch(&mut code, start);
    wait(&mut code);
    call(&mut code);
    code.finish()
}

/// Initial data; then on to the program unless it shall wait. rdi is the end of the initial data.
fn make_data(code: &mut Code, start: &Start) {
    code.put32(&[0xbe], start.from); // mov esi, from
    code.put32(&[0xbf], start.data); // mov edi, data
    code.put32(&[0xb9], start.bytes); // mov ecx, bytes
    code.put(&[0xf3, 0xa4]); // rep movsb
    code.put(&[0x48, 0x8b, 0x44, 0x24, 0x08]); // mov rax, [rsp + 8]
    code.put(&[0x48, 0xb9]).put(&WAITING_NAME[..8]); // mov rcx, "bash (wa"
    code.put(&[0x48, 0x39, 0x08]); // cmp [rax], rcx
    code.jump(&[0x0f, 0x85], Label::Main); // jne
}

/// One byte of each page of the data that follows, the stack and the constants. rbx is where the image will lie.
fn touch(code: &mut Code, start: &Start) {
    code.label(Label::Data);
    code.put32(&[0x81, 0xff], start.data_end); // cmp edi, data_end
    code.jump(&[0x0f, 0x83], Label::DataDone); // jae
    code.put(&[0xc6, 0x07, 0x00]); // mov byte [rdi], 0
    code.put32(&[0x81, 0xc7], PAGE_BYTES); // add edi, page
    code.jump(&[0xe9], Label::Data);
    code.label(Label::DataDone);
    code.put32(&[0x8a, 0x04, 0x25], start.constants); // mov al, [constants]
    code.put(&[0x48, 0x89, 0xe3]); // mov rbx, rsp
    code.put32(&[0x48, 0x81, 0xeb], IMAGE_BYTES_MAX as u32 + GAP_BYTES); // sub rbx, room
    code.put(&[0x48, 0x83, 0xe3, 0xf0]); // and rbx, -16
    code.put(&[0x48, 0x8d, 0x44, 0x24, 0xf8]); // lea rax, [rsp - 8]
    code.put32(&[0x48, 0x8d, 0x8b], STACK_BYTES.wrapping_neg()); // lea rcx, [rbx - stack]
    code.label(Label::Stack);
    code.put(&[0xc6, 0x00, 0x00]); // mov byte [rax], 0
    code.put32(&[0x48, 0x2d], PAGE_BYTES); // sub rax, page
    code.put(&[0x48, 0x39, 0xc8]); // cmp rax, rcx
    code.jump(&[0x0f, 0x83], Label::Stack); // jae
}

/// Tells where the image shall lie, and waits for it.
fn wait(code: &mut Code) {
    code.put(&[0x48, 0x89, 0x1b]); // mov [rbx], rbx
    code.put32(&[0xb8], 1).put32(&[0xbf], 1); // mov eax, SYS_write; mov edi, stdout
    code.put(&[0x48, 0x89, 0xde]).put32(&[0xba], 8).put(SYSCALL); // mov rsi, rbx; mov edx, 8
    code.put(&[0x31, 0xc0]).put32(&[0xbf], GO_FD as u32); // xor eax, eax (SYS_read); mov edi, 3
    code.put(&[0x48, 0x89, 0xde]).put32(&[0xba], IMAGE_BYTES_MAX as u32).put(SYSCALL); // mov rsi, rbx; mov edx, max
    code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
    code.jump(&[0x0f, 0x8e], Label::Leave); // jle
}

/// Makes the calls of the image up to the negative one, then begins the program on the stack behind it.
fn call(code: &mut Code) {
    code.label(Label::Call);
    code.put(&[0x48, 0x8b, 0x03]); // mov rax, [rbx]
    code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
    code.jump(&[0x0f, 0x88], Label::Calls); // js
    code.put(&[0x48, 0x8b, 0x7b, 0x08]); // mov rdi, [rbx + 8]
    code.put(&[0x48, 0x8b, 0x73, 0x10]); // mov rsi, [rbx + 16]
    code.put(&[0x48, 0x8b, 0x53, 0x18]); // mov rdx, [rbx + 24]
    code.put(&[0x4c, 0x8b, 0x53, 0x20]); // mov r10, [rbx + 32]
    code.put(&[0x4c, 0x8b, 0x43, 0x28]); // mov r8, [rbx + 40]
    code.put(SYSCALL);
    code.put32(&[0x48, 0x3d], 4095u32.wrapping_neg()); // cmp rax, -4095
    code.jump(&[0x0f, 0x83], Label::Leave); // jae
    code.put(&[0x48, 0x83, 0xc3, CALL_BYTES as u8]); // add rbx, call
    code.jump(&[0xe9], Label::Call);
    code.label(Label::Calls);
    code.put(&[0x48, 0x8d, 0x63, 0x10]); // lea rsp, [rbx + 16]
    code.put(&[0x31, 0xd2]); // xor edx, edx
    code.jump(&[0xe9], Label::Main);
    code.label(Label::Leave);
    code.put32(&[0xbf], LEFT).put32(&[0xb8], 231).put(SYSCALL); // mov edi, 127; mov eax, SYS_exit_group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_goes_where_its_label_is() {
        let start = Start {
            from: 0x64_e500,
            data: 0x62_a500,
            bytes: 0x1_1a10,
            data_end: 0x64_d978,
            constants: 0x60_0000,
            here: 0x5b_6850,
            main: 0x40_32d0,
        };
        let code = instructions(&start).unwrap();
        assert_eq!(
            code[..17],
            [&[0xbe, 0x00, 0xe5, 0x64, 0, 0xbf, 0x00, 0xa5, 0x62, 0, 0xb9, 0x10, 0x1a, 1, 0], &[0xf3, 0xa4][..]]
                .concat()
        );
        // jne main, behind `cmp [rax], rcx`.
        let at = code.windows(2).position(|pair| pair == [0x0f, 0x85]).unwrap();
        let distance = i32::from_le_bytes(code[at + 2..at + 6].try_into().unwrap());
        assert_eq!(start.here.wrapping_add(at as u64 + 6).wrapping_add_signed(distance.into()), start.main);
        assert!(code.len() < 320, "{}", code.len());
        assert_eq!(instructions(&Start { main: u64::MAX, ..start }), None);
    }
}
