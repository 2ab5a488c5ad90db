//! `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD` (vhost-user: Inflight I/O tracking).

use memory::Area;
use virtqueue::Format;
use virtqueue::inflight::{QueueRegion, region_size};
use zerocopy::{FromZeros, IntoBytes};

use super::dispatch::one_fd;
use super::refusal::Refusal;
use super::{Answer, Handled, Session};
use crate::connection::Message;
use crate::message::Inflight;

/// The region that the front-end keeps for us across our death.
pub(super) struct InflightRegion {
    area: Area,
    queues: u16,
    queue_size: u16,
}

impl Session<'_> {
    /// A new region, zeroed, in a sealed memfd. It is used only after the front-end has sent it back.
    pub(super) fn get_inflight_fd(&mut self, message: &Message) -> Handled {
        let mut inflight = inflight(message)?;
        let len = self.inflight_len(&inflight)?;
        let (_area, fd) = Area::shared(len as usize, "vhostd-inflight")?;
        inflight.mmap_size = len.into();
        inflight.mmap_offset = 0.into();
        // QEMU compares the sizes of request and reply, and C compilers disagree with packed structs about the padding.
        let body = inflight.as_bytes()[..message.body.len()].to_vec();
        Ok(Answer::Reply { body, fd: Some(fd) })
    }

    /// The region takes effect for each ring when it starts.
    pub(super) fn set_inflight_fd(&mut self, mut message: Message) -> Handled {
        let inflight = inflight(&message)?;
        let fd = one_fd(&mut message)?;
        let (want, have) = (self.inflight_len(&inflight)?, inflight.mmap_size.get());
        if have < want {
            return Err(Refusal::InflightTooSmall { have, want });
        }
        let area = Area::map(fd, want as usize, inflight.mmap_offset.get())?;
        let (queues, queue_size) = (inflight.num_queues.get(), inflight.queue_size.get());
        self.inflight = Some(InflightRegion { area, queues, queue_size });
        Ok(Answer::Done)
    }

    /// The part of one ring, if there is a region.
    pub(super) fn inflight_of(&self, index: u16, size: u16) -> Result<Option<QueueRegion>, Refusal> {
        let Some(region) = &self.inflight else { return Ok(None) };
        if index >= region.queues || size > region.queue_size {
            return Err(Refusal::BadValue(size.into()));
        }
        let format = self.ring_features().format();
        Ok(Some(QueueRegion::nth(&region.area, format, region.queue_size, index)?))
    }

    /// Bytes the region needs, after a check of its two parameters.
    fn inflight_len(&self, inflight: &Inflight) -> Result<u64, Refusal> {
        let (queues, size) = (inflight.num_queues.get(), inflight.queue_size.get());
        if queues == 0 || usize::from(queues) > self.rings.len() {
            return Err(Refusal::BadValue(queues.into()));
        }
        if size == 0 || size > self.device.max_queue_size() {
            return Err(Refusal::BadValue(size.into()));
        }
        // Before features are set the format is open: the packed one needs more.
        let format = if self.features.is_some() { self.ring_features().format() } else { Format::Packed };
        Ok(u64::from(queues) * region_size(format, size) as u64)
    }
}

fn inflight(message: &Message) -> Result<Inflight, Refusal> {
    let len = message.body.len();
    if len != Inflight::MIN_LEN && len != size_of::<Inflight>() {
        return Err(Refusal::BadSize(len));
    }
    let mut inflight = Inflight::new_zeroed();
    inflight.as_mut_bytes()[..len].copy_from_slice(&message.body);
    Ok(inflight)
}
