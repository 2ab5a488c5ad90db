//! Features, status, reset, configuration space, and the messages a device answers itself.

use std::os::fd::OwnedFd;

use zerocopy::IntoBytes;
use zeroize::Zeroize;

use super::refusal::Refusal;
use super::{Answer, Handled, Session};
use crate::connection::Message;
use crate::device::Refused;
use crate::message::{ConfigHead, MAX_CONFIG, crypto_session_id_offset, features};

/// Bits that may change while rings run.
const CHANGEABLE: u64 = features::LOG_ALL | features::PROTOCOL_FEATURES;
/// Where cloud-hypervisor once addressed the configuration space, after the layout of legacy MMIO devices.
const LEGACY_CONFIG_OFFSET: usize = 0x100;

impl Session<'_> {
    pub(super) fn offered_features(&self) -> u64 {
        self.device.features() | CHANGEABLE
    }

    pub(super) fn set_features(&mut self, wanted: u64) -> Handled {
        let surplus = wanted & !self.offered_features();
        if surplus != 0 {
            return Err(Refusal::NotOffered(surplus));
        }
        let before = self.features.unwrap_or(0);
        let virtio_changed = (before ^ wanted) & !CHANGEABLE != 0;
        if virtio_changed {
            for index in 0..self.rings.len() {
                self.halt_for_change(index)
                    .map_err(|_| Refusal::FeaturesInUse { from: before, to: wanted })?;
            }
        }
        let first = self.features.replace(wanted).is_none();
        if first || virtio_changed {
            self.device.negotiated(wanted & !CHANGEABLE);
        }
        if (before ^ wanted) & features::LOG_ALL != 0 {
            self.switch_log();
        }
        // vhost-user: Ring states. Without protocol features there is no SET_VRING_ENABLE.
        if wanted & features::PROTOCOL_FEATURES == 0 {
            for index in 0..self.rings.len() {
                self.set_enabled(index, true);
            }
        }
        Ok(Answer::Done)
    }

    pub(super) fn set_protocol_features(&mut self, wanted: u64) -> Handled {
        let surplus = wanted & !self.offered_protocol_features();
        if surplus != 0 {
            return Err(Refusal::NotOffered(surplus));
        }
        self.protocol = wanted;
        self.device.protocol_negotiated(wanted);
        Ok(Answer::Done)
    }

    /// vhost-user: RESET_OWNER is deprecated; the specification recommends to disable the rings and keep everything else.
    pub(super) fn disable_all(&mut self) -> Handled {
        for index in 0..self.rings.len() {
            self.set_enabled(index, false);
        }
        Ok(Answer::Done)
    }

    pub(super) fn reset_device(&mut self) -> Handled {
        self.stop_all();
        self.disable_all()?;
        self.device_status = 0;
        self.device.reset();
        Ok(Answer::Done)
    }

    pub(super) fn set_status(&mut self, status: u64) -> Handled {
        let status = u8::try_from(status).map_err(|_| Refusal::BadValue(status))?;
        if status == 0 {
            self.stop_all();
        }
        self.device_status = status;
        self.device.set_status(status);
        Ok(Answer::Done)
    }

    /// vhost-user: GET_CONFIG. The reply has the size of the request, whatever the device has: SPDK's initiator asks for 256
    /// bytes.
    pub(super) fn get_config(&mut self, message: &Message) -> Handled {
        let (head, _) = config_request(message)?;
        let mut body = vec![0; size_of::<ConfigHead>() + head.size.get() as usize];
        let (start, data) = body.split_at_mut(size_of::<ConfigHead>());
        start.copy_from_slice(head.as_bytes());
        self.device.read_config(config_offset(&head), data);
        Ok(Answer::Reply { body, fd: None })
    }

    pub(super) fn set_config(&mut self, message: &Message) -> Handled {
        let (head, data) = config_request(message)?;
        if data.len() != head.size.get() as usize {
            return Err(Refusal::BadSize(message.body.len()));
        }
        // 2 is live migration in crate vhost, which says 1 for every write of the guest.
        let migration = match head.flags.get() {
            0 => false,
            1 | 2 => true,
            other => return Err(Refusal::BadValue(other.into())),
        };
        self.device.write_config(config_offset(&head), data, migration)?;
        Ok(Answer::Done)
    }

    /// vhost-user: SEND_RARP. The first six bytes of the payload are the address.
    pub(super) fn send_rarp(&mut self, payload: u64) -> Handled {
        let [a, b, c, d, e, f, _, _] = payload.to_ne_bytes();
        self.device.rarp([a, b, c, d, e, f])?;
        Ok(Answer::Done)
    }

    pub(super) fn set_mtu(&mut self, mtu: u64) -> Handled {
        let mtu = u16::try_from(mtu).map_err(|_| Refusal::BadValue(mtu))?;
        self.device.set_mtu(mtu)?;
        Ok(Answer::Done)
    }

    /// vhost-user: CREATE_CRYPTO_SESSION. The description comes back, with the identifier in it; negative is failure.
    pub(super) fn create_crypto_session(&mut self, mut message: Message) -> Handled {
        let mut body = std::mem::take(&mut message.body);
        let Some(offset) = crypto_session_id_offset(body.len()) else {
            let refusal = Refusal::BadSize(body.len());
            body.zeroize();
            return Err(refusal);
        };
        let created = self.device.create_crypto_session(&body);
        let id = created.and_then(|id| i64::try_from(id).map_err(|_| Refused("no identifier is left")));
        let id = id.unwrap_or_else(|reason| {
            tracing::debug!(%reason, "crypto session refused");
            -1
        });
        body[offset..offset + size_of::<i64>()].copy_from_slice(&id.to_ne_bytes());
        Ok(Answer::Secret { body })
    }

    pub(super) fn close_crypto_session(&mut self, id: u64) -> Handled {
        self.device.close_crypto_session(id)?;
        Ok(Answer::Done)
    }

    pub(super) fn set_gpu_socket(&mut self, socket: OwnedFd) -> Handled {
        self.device.set_gpu_socket(socket)?;
        Ok(Answer::Done)
    }
}

/// The head of a configuration request and the data after it.
fn config_request(message: &Message) -> Result<(ConfigHead, &[u8]), Refusal> {
    let (head, data) = message.prefix::<ConfigHead>().ok_or(Refusal::BadSize(message.body.len()))?;
    let (offset, size) = (head.offset.get() as usize, head.size.get() as usize);
    if size == 0 || offset + size > MAX_CONFIG {
        return Err(Refusal::BadValue((offset + size) as u64));
    }
    Ok((head, data))
}

fn config_offset(head: &ConfigHead) -> usize {
    let offset = head.offset.get() as usize;
    offset.checked_sub(LEGACY_CONFIG_OFFSET).unwrap_or(offset)
}
