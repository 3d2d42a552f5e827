//! A packet's header as the guest wrote it, and as a checked type (virtio 1.2, section 5.10.6).
//!
//! [`Header`] is the 44 bytes of the wire. [`Packet::check`] turns one from the guest into a [`Packet`] that names a
//! connection and a known operation, or says what to do with nonsense. Nothing here knows of queues or sockets.

/// Bytes of `struct virtio_vsock_hdr`.
pub const HEADER_BYTES: usize = 44;

/// The host's context id (5.10.4).
pub const HOST_CID: u64 = 2;

/// Largest payload of one packet in either direction: what the Linux driver sends at most
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the one type offered.
const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE` and `..._SEND`: hints of [`Op::Shutdown`].
const SHUTDOWN_RECEIVE: u32 = 1;
const SHUTDOWN_SEND: u32 = 2;

/// What a packet asks for (5.10.6, `enum virtio_vsock_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection.
    Request = 1,
    /// The connection is accepted.
    Response = 2,
    /// The connection is gone.
    Reset = 3,
    /// The sender will not send, or not receive, any more.
    Shutdown = 4,
    /// Payload.
    ReadWrite = 5,
    /// The sender's credit, without payload.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    fn from_wire(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// `struct virtio_vsock_hdr`, unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type.
    pub socket_type: u16,
    /// Operation.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes of the sender's receive buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer since the connection's start, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut at = 0;
        Self {
            src_cid: u64::from_le_bytes(take(bytes, &mut at)),
            dst_cid: u64::from_le_bytes(take(bytes, &mut at)),
            src_port: u32::from_le_bytes(take(bytes, &mut at)),
            dst_port: u32::from_le_bytes(take(bytes, &mut at)),
            len: u32::from_le_bytes(take(bytes, &mut at)),
            socket_type: u16::from_le_bytes(take(bytes, &mut at)),
            op: u16::from_le_bytes(take(bytes, &mut at)),
            flags: u32::from_le_bytes(take(bytes, &mut at)),
            buf_alloc: u32::from_le_bytes(take(bytes, &mut at)),
            fwd_cnt: u32::from_le_bytes(take(bytes, &mut at)),
        }
    }

    /// Writes the wire form.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        put(&mut bytes, &mut at, &self.src_cid.to_le_bytes());
        put(&mut bytes, &mut at, &self.dst_cid.to_le_bytes());
        put(&mut bytes, &mut at, &self.src_port.to_le_bytes());
        put(&mut bytes, &mut at, &self.dst_port.to_le_bytes());
        put(&mut bytes, &mut at, &self.len.to_le_bytes());
        put(&mut bytes, &mut at, &self.socket_type.to_le_bytes());
        put(&mut bytes, &mut at, &self.op.to_le_bytes());
        put(&mut bytes, &mut at, &self.flags.to_le_bytes());
        put(&mut bytes, &mut at, &self.buf_alloc.to_le_bytes());
        put(&mut bytes, &mut at, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(bytes: &[u8; HEADER_BYTES], at: &mut usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[*at..*at + N]);
    *at += N;
    field
}

fn put(bytes: &mut [u8; HEADER_BYTES], at: &mut usize, field: &[u8]) {
    bytes[*at..*at + field.len()].copy_from_slice(field);
    *at += field.len();
}

/// What names a connection: the CIDs are always the host's and the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The port at the host's end.
    pub host_port: u32,
    /// The port at the guest's end.
    pub guest_port: u32,
}

/// Which directions an end gave up. A direction once given up stays so (5.10.6.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// It takes no more data.
    pub receive: bool,
    /// It sends no more data.
    pub send: bool,
}

impl Shutdown {
    /// Both directions.
    pub const BOTH: Self = Self { receive: true, send: true };

    /// The directions given up here or there.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { receive: self.receive || other.receive, send: self.send || other.send }
    }

    /// The flags of an [`Op::Shutdown`].
    pub fn to_flags(self) -> u32 {
        (u32::from(self.receive) * SHUTDOWN_RECEIVE) | (u32::from(self.send) * SHUTDOWN_SEND)
    }

    fn from_flags(flags: u32) -> Self {
        Self { receive: flags & SHUTDOWN_RECEIVE != 0, send: flags & SHUTDOWN_SEND != 0 }
    }
}

/// A packet from the guest for the host, of a stream, with a known operation. Credit and payload length are still the
/// guest's word: the connection judges them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The connection.
    pub key: Key,
    /// What it asks for.
    pub op: Op,
    /// The directions that an [`Op::Shutdown`] gives up; none for other operations.
    pub shutdown: Shutdown,
    /// [`Header::buf_alloc`].
    pub buf_alloc: u32,
    /// [`Header::fwd_cnt`].
    pub fwd_cnt: u32,
}

/// What to do with a packet that cannot be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing: no answer could reach its sender, or none is due.
    Ignore,
    /// Answer with this packet, an [`Op::Reset`].
    Answer(Header),
}

impl Packet {
    /// Checks a header from the guest with this CID.
    ///
    /// # Errors
    /// [`Refused::Ignore`] when the source is not the guest (5.10.6.4.2 demands its own CID there) or a reset needs no
    /// answer; [`Refused::Answer`] for an unknown type (5.10.6.4.2), operation, or destination CID: an answer ends the
    /// guest's wait at once, silence only after its timeout.
    pub fn check(header: &Header, guest_cid: u64) -> Result<Self, Refused> {
        if header.src_cid != guest_cid {
            return Err(Refused::Ignore);
        }
        let op = Op::from_wire(header.op);
        let known = header.dst_cid == HOST_CID && header.socket_type == TYPE_STREAM;
        match op {
            Some(op) if known => Ok(Self {
                key: Key { host_port: header.dst_port, guest_port: header.src_port },
                op,
                shutdown: if op == Op::Shutdown { Shutdown::from_flags(header.flags) } else { Shutdown::default() },
                buf_alloc: header.buf_alloc,
                fwd_cnt: header.fwd_cnt,
            }),
            Some(Op::Reset) => Err(Refused::Ignore),
            _ => Err(Refused::Answer(reset_for(header))),
        }
    }
}

/// The reset that answers `header`, with its ends swapped and its type kept.
fn reset_for(header: &Header) -> Header {
    Header {
        src_cid: header.dst_cid,
        dst_cid: header.src_cid,
        src_port: header.dst_port,
        dst_port: header.src_port,
        socket_type: header.socket_type,
        op: Op::Reset as u16,
        ..Header::default()
    }
}

/// What the host has to say about a connection; the rest of the header follows from who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The connection.
    pub key: Key,
    /// What it says.
    pub op: Op,
    /// The directions that an [`Op::Shutdown`] gives up.
    pub shutdown: Shutdown,
    /// Bytes of payload that follow.
    pub len: u32,
    /// The host's receive buffer.
    pub buf_alloc: u32,
    /// Bytes taken out of it.
    pub fwd_cnt: u32,
}

impl Outgoing {
    /// A reset of a connection that the host does not know, or no more.
    pub fn reset(key: Key) -> Self {
        Self { key, op: Op::Reset, shutdown: Shutdown::default(), len: 0, buf_alloc: 0, fwd_cnt: 0 }
    }

    /// The wire form, to the guest with this CID.
    pub fn header(&self, guest_cid: u64) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len: self.len,
            socket_type: TYPE_STREAM,
            op: self.op as u16,
            flags: self.shutdown.to_flags(),
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }
}
