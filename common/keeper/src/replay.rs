//! Telling a new worker what a frontend has set up, in the order in which a frontend would after a reconnection.

use std::os::fd::{AsFd, BorrowedFd};

use vhost_user::message::{MemoryTableHead, NOFD, Request, SingleMemoryRegion, VringState, Word};
use zerocopy::IntoBytes;

use crate::inflight::{self, Tracking};
use crate::record::{Event, Record, Ring};

/// Most regions that go into one `SET_MEM_TABLE` (vhost-user: Multiple Memory regions description).
const TABLE: usize = 8;

/// Sends one message that is acknowledged.
pub(crate) trait Send {
    /// Why it could not be sent, or was refused.
    type Error;

    /// Sends it and waits for the acknowledgement.
    fn send(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Self::Error>;

    /// Sends one that is answered.
    fn ask(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Self::Error>;
}

/// Sends everything but the protocol features, which come first, and the back channel, which comes last.
pub(crate) fn replay<S: Send>(record: &Record, own: Option<&Tracking>, to: &mut S) -> Result<(), S::Error> {
    if record.owner {
        to.send(Request::SetOwner, &[], &[])?;
    }
    word(to, Request::SetFeatures, record.features)?;
    word(to, Request::NetSetMtu, record.mtu)?;
    memory(record, to)?;
    if let Some((body, fd)) = &record.log {
        to.ask(Request::SetLogBase, body, &[fd.as_fd()])?;
    }
    if let Some(fd) = &record.log_fd {
        to.send(Request::SetLogFd, &[], &[fd.as_fd()])?;
    }
    if let Some(socket) = &record.gpu {
        to.send(Request::GpuSetSocket, &[], &[socket.as_fd()])?;
    }
    for body in &record.config {
        to.send(Request::SetConfig, body, &[])?;
    }
    let region = region(record, own);
    if let Some((body, file)) = region {
        to.send(Request::SetInflightFd, body, &[file.as_fd()])?;
    }
    for (index, ring) in &record.rings {
        let base = if ring.started { None } else { ring.base };
        let base = base.or_else(|| where_it_stands(record, region, *index, ring)).or(ring.base);
        set_up(*index, ring, base, to)?;
    }
    word(to, Request::SetStatus, record.status)
}

/// The inflight region in use: the frontend's before the keeper's.
fn region<'r>(record: &'r Record, own: Option<&'r Tracking>) -> Option<(&'r [u8], &'r std::fs::File)> {
    let theirs = record.inflight.as_ref().map(|(body, file)| (body.as_slice(), file));
    theirs.or_else(|| own.map(|own| (own.body.as_slice(), &own.file)))
}

/// The base of a ring that has run. It counts only when the ring's inflight region has nothing to say, so when nothing is in
/// flight; then a split ring goes on behind what it has used (virtio 1.3 §2.7.8), and a packed one where its region says
/// that it was stopped.
fn where_it_stands(
    record: &Record,
    region: Option<(&[u8], &std::fs::File)>,
    index: u32,
    ring: &Ring,
) -> Option<u32> {
    /// Offset of `idx` in the used ring.
    const IDX: u64 = 2;
    if record.is_packed() {
        let (body, file) = region?;
        return inflight::packed_base(body, file, index);
    }
    let used = ring.addr?.used.get().checked_add(IDX)?;
    record.memory.read_u16(used).map(u32::from)
}

fn memory<S: Send>(record: &Record, to: &mut S) -> Result<(), S::Error> {
    let regions = || record.memory.iter();
    if regions().len() > TABLE {
        return regions().try_for_each(|each| {
            let body = SingleMemoryRegion { padding: 0.into(), region: each.region };
            to.send(Request::AddMemReg, body.as_bytes(), &[each.file.as_fd()])
        });
    }
    if regions().len() == 0 {
        return Ok(());
    }
    let head = MemoryTableHead { count: (regions().len() as u32).into(), padding: 0.into() };
    let mut body = head.as_bytes().to_vec();
    regions().for_each(|each| body.extend_from_slice(each.region.as_bytes()));
    let fds: Vec<_> = regions().map(|each| each.file.as_fd()).collect();
    to.send(Request::SetMemTable, &body, &fds)
}

fn set_up<S: Send>(index: u32, ring: &Ring, base: Option<u32>, to: &mut S) -> Result<(), S::Error> {
    let state = |to: &mut S, request, num: Option<u32>| {
        let body = num.map(|num| VringState { index: index.into(), num: num.into() });
        body.map_or(Ok(()), |body| to.send(request, body.as_bytes(), &[]))
    };
    state(to, Request::SetVringNum, ring.num)?;
    state(to, Request::SetVringEndian, ring.endian)?;
    state(to, Request::SetVringBase, base)?;
    if let Some(addr) = &ring.addr {
        to.send(Request::SetVringAddr, addr.as_bytes(), &[])?;
    }
    event(index, Request::SetVringErr, &ring.err, to)?;
    event(index, Request::SetVringCall, &ring.call, to)?;
    event(index, Request::SetVringKick, &ring.kick, to)?;
    state(to, Request::SetVringEnable, ring.enabled.map(u32::from))
}

fn event<S: Send>(index: u32, request: Request, event: &Option<Event>, to: &mut S) -> Result<(), S::Error> {
    let word = |flags: u64| Word { value: (u64::from(index) | flags).into() };
    match event {
        Some(Event::Fd(fd)) => to.send(request, word(0).as_bytes(), &[fd.as_fd()]),
        Some(Event::None) => to.send(request, word(NOFD).as_bytes(), &[]),
        None => Ok(()),
    }
}

fn word<S: Send>(to: &mut S, request: Request, value: Option<u64>) -> Result<(), S::Error> {
    value.map_or(Ok(()), |value| to.send(request, Word { value: value.into() }.as_bytes(), &[]))
}
