//! A front-end that sends anything: whole messages that are nearly right, messages that are not, and plain noise.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use memory::{GuestAddr, OwnMemory};
use vhost_user::message::{NOFD, Request, flags, protocol};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::input::Input;

const PAGE: u64 = 4096;

/// Bytes of the memory files.
pub const MEMORY: u64 = 8 * PAGE;

/// Messages of one input; replies to more might fill the socket, which nobody reads meanwhile.
const MAX_MESSAGES: usize = 96;

/// Where the front-end says that its memory is.
const USER: u64 = 0x7f00_0000_0000;

/// Descriptors to send, made once.
pub struct Descriptors {
    /// Memory that the device may truncate in the middle of everything.
    pub fragile: File,
    memory: OwnMemory,
    event: EventFd,
    /// Blocks whoever writes to it, unless it is made non-blocking.
    full: EventFd,
    others: Vec<OwnedFd>,
}

impl Descriptors {
    /// One of every kind that may come along.
    pub fn new() -> io::Result<Self> {
        let full = EventFd::new(0)?;
        full.write(u64::MAX - 1)?;
        let (read_end, write_end) = io::pipe()?;
        let (_kept_open, socket) = UnixStream::pair()?;
        let others = vec![
            read_end.into(),
            write_end.into(),
            socket.into(),
            File::open("/dev/null")?.into(),
            File::open("/proc/self/maps")?.into(),
            File::open("/")?.into(),
        ];
        let fragile = tempfile::tempfile_in("/dev/shm")?;
        let memory = OwnMemory::new(MEMORY as usize, GuestAddr(0))?;
        Ok(Self { fragile, memory, event: EventFd::new(EFD_NONBLOCK)?, full, others })
    }

    /// Back to whole, empty memory files, with `bytes` at their front.
    pub fn refill(&self, bytes: &[u8]) -> io::Result<()> {
        self.fragile.set_len(0)?;
        self.fragile.set_len(MEMORY)?;
        std::os::unix::fs::FileExt::write_all_at(&self.fragile, bytes, 0)?;
        let slice = self.memory.slice(GuestAddr(0), MEMORY as usize).map_err(io::Error::other)?;
        slice.fill(0);
        slice.write(0, bytes);
        Ok(())
    }

    fn file(&self, input: &mut Input<'_>) -> RawFd {
        match input.below(8) {
            0 => self.any(input),
            choice if choice & 1 == 0 => self.fragile.as_raw_fd(),
            _ => self.memory.fd().as_raw_fd(),
        }
    }

    fn event(&self, input: &mut Input<'_>) -> RawFd {
        if input.below(8) == 0 { self.any(input) } else { self.event.as_raw_fd() }
    }

    fn any(&self, input: &mut Input<'_>) -> RawFd {
        let all = self.others.iter().map(AsRawFd::as_raw_fd);
        let more = [&self.fragile as &dyn AsRawFd, &self.memory.fd(), &self.event, &self.full]
            .map(AsRawFd::as_raw_fd);
        let all: Vec<_> = all.chain(more).collect();
        input.choose(&all)
    }
}

/// As the standard library does before `main`, which libFuzzer's binaries do not have: writing to a pipe or socket whose
/// other end is closed is an error and not a signal.
pub fn ignore_broken_pipes() {
    #[expect(unsafe_code, reason = "signal has no safe wrapper here")]
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Sends everything the input says, then closes this direction. What no longer fits the socket is left out.
pub fn speak(socket: &UnixStream, descriptors: &Descriptors, input: &mut Input<'_>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if input.below(4) != 0 {
        introduce(socket, descriptors, input)?;
    }
    for _ in 0..MAX_MESSAGES {
        if input.is_empty() {
            break;
        }
        let (bytes, fds) = match input.below(24) {
            0 => (noise(input), vec![descriptors.any(input); input.below(3)]),
            _ => message(descriptors, input),
        };
        if !send(socket, &bytes, &fds) {
            break;
        }
    }
    socket.shutdown(std::net::Shutdown::Write)
}

fn send(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> bool {
    socket.send_with_fds(&[bytes], fds).is_ok_and(|sent| sent == bytes.len())
}

/// What every front-end begins with; each part may be missing.
fn introduce(socket: &UnixStream, descriptors: &Descriptors, input: &mut Input<'_>) -> io::Result<()> {
    let packed = input.u8();
    let features = (1_u64 << 32) | (1 << 30) | (u64::from(packed & 1) << 34) | (u64::from(packed & 6) << 27);
    let steps: [(Request, Vec<u8>, Vec<RawFd>); 5] = [
        (Request::SetOwner, Vec::new(), Vec::new()),
        (Request::SetFeatures, words(&[features]), Vec::new()),
        (Request::SetProtocolFeatures, words(&[u64::MAX & !protocol::XEN_MMAP & OFFERED]), Vec::new()),
        (Request::SetMemTable, table(&[region(0, MEMORY, 0)]), vec![descriptors.fragile.as_raw_fd()]),
        (Request::SetVringNum, pair(0, 16), Vec::new()),
    ];
    let skip = input.below(32);
    for (index, (request, body, fds)) in steps.into_iter().enumerate() {
        if index != skip {
            send(socket, &frame(request.into(), 1, &body), &fds);
        }
    }
    for (request, body, fd) in [
        (Request::SetVringBase, pair(0, if packed & 1 != 0 { 0x8000_8000 } else { 0 }), None),
        (Request::SetVringAddr, ring_addresses(0, 0), None),
        (Request::SetVringCall, words(&[0]), Some(descriptors.event.as_raw_fd())),
        (Request::SetVringKick, words(&[0]), Some(descriptors.event.as_raw_fd())),
        (Request::SetVringEnable, pair(0, 1), None),
    ] {
        if input.below(16) != 15 {
            send(socket, &frame(request.into(), 1, &body), fd.as_slice());
        }
    }
    Ok(())
}

/// What the dummy device and its session offer.
const OFFERED: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::BACKEND_SEND_FD
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS
    | protocol::CONFIG
    | protocol::RARP
    | protocol::NET_MTU
    | protocol::CRYPTO_SESSION
    | protocol::DEVICE_STATE;

fn noise(input: &mut Input<'_>) -> Vec<u8> {
    let len = 1 + input.below(64);
    let mut bytes = input.take(len).to_vec();
    bytes.resize(len, 0);
    bytes
}

/// A message that is mostly well-formed.
fn message(descriptors: &Descriptors, input: &mut Input<'_>) -> (Vec<u8>, Vec<RawFd>) {
    let request = input.choose(Request::ALL);
    let (mut body, mut fds) = payload(request, descriptors, input);
    match input.below(32) {
        0 => fds.push(descriptors.any(input)),
        1 => fds.clear(),
        2 => body.truncate(input.below(body.len() + 1)),
        3 => body.extend(noise(input)),
        _ => {}
    }
    let wanted =
        if input.below(32) == 0 { input.u32() } else { 1 | if input.flag() { flags::NEED_REPLY } else { 0 } };
    let code = if input.below(32) == 0 { input.u32() } else { request.into() };
    let mut bytes = frame(code, wanted, &body);
    if input.below(64) == 0 {
        bytes[8..12].copy_from_slice(&input.array::<4>());
    }
    (bytes, fds)
}

fn payload(request: Request, descriptors: &Descriptors, input: &mut Input<'_>) -> (Vec<u8>, Vec<RawFd>) {
    use Request::*;
    let ring = u32::from(input.u8() & 3);
    match request {
        SetFeatures => {
            let low = if input.flag() { 1 << 26 } else { 0 };
            let bits = (u64::from(input.u8() & 7) << 28) | (u64::from(input.u8() & 15) << 32) | low;
            (words(&[if input.below(16) == 0 { input.u64() } else { bits }]), vec![])
        }
        SetProtocolFeatures => (words(&[if input.below(4) == 0 { input.u64() } else { OFFERED }]), vec![]),
        SetVringNum => (pair(ring, input.choose(&[0, 1, 2, 4, 16, 17, 64, 1024, 0x8000, u32::MAX])), vec![]),
        SetVringEnable | SetVringEndian => (pair(ring, input.u8().into()), vec![]),
        SetVringBase => (pair(ring, if input.flag() { input.u32() } else { input.u8().into() }), vec![]),
        GetVringBase | VringKick => (pair(ring, 0), vec![]),
        SetVringAddr => {
            let shift = if input.below(4) == 0 { input.u16().into() } else { u64::from(input.u8()) * 16 };
            (ring_addresses(ring, shift), vec![])
        }
        SetVringKick | SetVringCall | SetVringErr => {
            let without = input.below(4) == 0;
            let word = u64::from(ring) | if without { NOFD } else { 0 };
            (words(&[word]), if without { vec![] } else { vec![descriptors.event(input)] })
        }
        SetMemTable => {
            let regions: Vec<_> = (0..input.below(5)).map(|_| any_region(input)).collect();
            let fds = regions.iter().map(|_| descriptors.file(input)).collect();
            (table(&regions), fds)
        }
        AddMemReg | RemMemReg => {
            let body = [0].into_iter().chain(any_region(input)).collect::<Vec<_>>();
            let fds =
                if request == AddMemReg || input.flag() { vec![descriptors.file(input)] } else { vec![] };
            (words(&body), fds)
        }
        SetLogBase => {
            let size = if input.below(8) == 0 { input.u64() } else { u64::from(input.u8()) };
            (words(&[size, u64::from(input.u8() & 3) * PAGE]), vec![descriptors.file(input)])
        }
        GetInflightFd | SetInflightFd => {
            let size = if input.below(8) == 0 { input.u64() } else { u64::from(input.u16()) };
            let offset = u64::from(input.u8() & 3) * PAGE;
            let queues = u64::from(input.u8() & 7)
                | u64::from(input.choose(&[0_u16, 1, 16, 64, 1024, u16::MAX])) << 16;
            let fds = if request == SetInflightFd { vec![descriptors.file(input)] } else { vec![] };
            (words(&[size, offset, queues]), fds)
        }
        GetConfig | SetConfig => {
            let (offset, size) = (u32::from(input.u16() & 0x1ff), u32::from(input.u16() & 0x1ff));
            let mut body = [offset, size, input.u8().into()].map(u32::to_ne_bytes).concat();
            body.resize(12 + size as usize, 7);
            (body, vec![])
        }
        SetDeviceStateFd => (pair(input.u8().into(), input.u8().into()), vec![descriptors.any(input)]),
        CreateCryptoSession => (vec![1; input.choose(&[632, 1072, 8, 0])], vec![]),
        SetLogFd | SetBackendReqFd | GpuSetSocket => (vec![], vec![descriptors.any(input)]),
        SetStatus | SendRarp | NetSetMtu | CloseCryptoSession => (words(&[input.u64()]), vec![]),
        _ => (if input.below(8) == 0 { noise(input) } else { vec![] }, vec![]),
    }
}

/// Rings one after the other, `shift` bytes into the memory.
fn ring_addresses(index: u32, shift: u64) -> Vec<u8> {
    let at = USER + shift;
    let mut body = pair(index, 0);
    body.extend(words(&[at, at + 1024, at + 768, 0]));
    body
}

fn region(guest: u64, len: u64, offset: u64) -> [u64; 4] {
    [guest, len, USER.wrapping_add(guest), offset]
}

fn any_region(input: &mut Input<'_>) -> [u64; 4] {
    if input.below(16) == 0 {
        return [input.u64(), input.u64(), input.u64(), input.u64()];
    }
    let guest = input.below(8) as u64 * PAGE;
    region(guest, input.below(9) as u64 * PAGE, input.below(4) as u64 * PAGE)
}

fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = pair(regions.len() as u32, 0);
    body.extend(words(&regions.concat()));
    body
}

fn pair(first: u32, second: u32) -> Vec<u8> {
    [first, second].map(u32::to_ne_bytes).concat()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn frame(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [code, flags, body.len() as u32].map(u32::to_ne_bytes).concat();
    bytes.extend(body);
    bytes
}

/// Reads what the session answered: whole replies and nothing else.
pub fn check_replies(mut socket: &UnixStream) {
    let mut bytes = Vec::new();
    // Unread requests of ours turn the end of the stream into a reset; what was answered before still arrives.
    let _ = socket.read_to_end(&mut bytes);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let field = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four bytes"));
        assert!(rest.len() >= 12, "a reply without a whole header");
        assert!(Request::from_code(field(0)).is_some() || field(4) & flags::REPLY != 0);
        assert_eq!(field(4), 1 | flags::REPLY, "flags of a reply");
        let size = field(8) as usize;
        assert!(rest.len() >= 12 + size, "a reply that was cut off");
        rest = &rest[12 + size..];
    }
}
