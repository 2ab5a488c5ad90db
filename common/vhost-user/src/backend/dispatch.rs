//! Which handler takes which request, and what is answered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, KnownLayout};
use zeroize::Zeroize;

use super::refusal::{Consequence, Refusal, consequence};
use super::{Answer, Handled, Session, SessionError};
use crate::connection::Message;
use crate::message::{Header, Request, VringState, Word, protocol};

impl Session<'_> {
    /// Handles one message and answers it.
    pub(super) fn handle_message(&mut self, message: Message) -> Result<(), SessionError> {
        let header = message.header;
        let request = Request::from_code(header.request.get());
        tracing::debug!(
            code = header.request.get(),
            name = request.map_or("unknown", Request::name),
            flags = header.flags.get(),
            size = message.body.len(),
            fds = message.fds.len(),
            "message"
        );
        if header.is_reply() {
            self.note_refusal(request, &Refusal::UnexpectedReply);
            return Ok(());
        }
        // vhost-user: REPLY_ACK. The message that negotiates it, or gives it up, may ask for an acknowledgement, too.
        let acks = self.has_protocol(protocol::REPLY_ACK);
        let outcome = match request {
            _ if message.fds_lost => Err(Refusal::FdsLost),
            None => Err(Refusal::UnknownCode),
            Some(request) => self.dispatch(request, message),
        };
        let wants_ack = header.needs_reply() && (acks || self.has_protocol(protocol::REPLY_ACK));
        match outcome {
            Ok(Answer::Reply { body, fd }) => {
                let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
                Ok(self.connection.send(header.reply(body.len()), &body, &fds)?)
            }
            Ok(Answer::Secret { mut body }) => {
                let sent = self.connection.send(header.reply(body.len()), &body, &[]);
                body.zeroize();
                self.connection.forget();
                Ok(sent?)
            }
            Ok(Answer::Done) if wants_ack => self.acknowledge(header, 0),
            Ok(Answer::Done) => Ok(()),
            Err(refusal) => self.refuse(header, request, &refusal, wants_ack),
        }
    }

    fn dispatch(&mut self, request: Request, mut message: Message) -> Handled {
        use Request::*;
        match request {
            GetFeatures => Ok(Answer::word(self.offered_features())),
            SetFeatures => self.set_features(word(&message)?),
            GetProtocolFeatures => Ok(Answer::word(self.offered_protocol_features())),
            SetProtocolFeatures => self.set_protocol_features(word(&message)?),
            SetOwner => Ok(Answer::Done),
            ResetOwner => self.disable_all(),
            GetQueueNum => Ok(Answer::word(self.rings.len() as u64)),
            ResetDevice => self.reset_device(),
            SetStatus => self.set_status(word(&message)?),
            GetStatus => Ok(Answer::word(self.device.status(self.device_status).into())),
            GetConfig => self.get_config(&message),
            SetConfig => self.set_config(&message),
            SendRarp => self.send_rarp(word(&message)?),
            NetSetMtu => self.set_mtu(word(&message)?),
            CreateCryptoSession => self.create_crypto_session(message),
            CloseCryptoSession => self.close_crypto_session(word(&message)?),
            GpuSetSocket => self.set_gpu_socket(one_fd(&mut message)?),
            SetBackendReqFd => self.set_back_channel(one_fd(&mut message)?),

            SetMemTable => self.set_mem_table(message),
            AddMemReg => self.add_mem_reg(message),
            RemMemReg => self.rem_mem_reg(&message),
            GetMaxMemSlots => Ok(Answer::word(::memory::MAX_REGIONS as u64)),
            SetLogBase => self.set_log_base(message),
            // Nothing is ever signalled on it: the specification leaves that to the back-end.
            SetLogFd => one_fd(&mut message).map(|_closed| Answer::Done),

            SetVringNum => self.set_vring_num(payload(&message)?),
            SetVringAddr => self.set_vring_addr(payload(&message)?),
            SetVringBase => self.set_vring_base(payload(&message)?),
            GetVringBase => self.get_vring_base(payload(&message)?),
            SetVringKick => self.set_vring_kick(word(&message)?, message.fds),
            SetVringCall => self.set_vring_call(word(&message)?, message.fds),
            SetVringErr => self.set_vring_err(word(&message)?, message.fds),
            SetVringEnable => self.set_vring_enable(payload(&message)?),
            SetVringEndian => set_vring_endian(payload(&message)?),
            VringKick => self.vring_kick(payload(&message)?),

            GetInflightFd => self.get_inflight_fd(&message),
            SetInflightFd => self.set_inflight_fd(message),

            SetDeviceStateFd => self.set_device_state_fd(message),
            CheckDeviceState => self.check_device_state(),

            // No shared memory regions: the count, its padding and 256 sizes, all zero.
            GetShmemConfig => Ok(Answer::body(&[0; 8 + 256 * 8])),
            IotlbMsg | PostcopyAdvise | PostcopyListen | PostcopyEnd | GetSharedObject => {
                Err(Refusal::Unsupported)
            }
        }
    }

    /// Zero for success.
    fn acknowledge(&mut self, header: Header, value: u64) -> Result<(), SessionError> {
        Ok(self.connection.send(header.reply(8), &value.to_ne_bytes(), &[])?)
    }

    fn refuse(
        &mut self,
        header: Header,
        request: Option<Request>,
        refusal: &Refusal,
        wants_ack: bool,
    ) -> Result<(), SessionError> {
        self.note_refusal(request, refusal);
        match consequence(request) {
            Consequence::Reply(body) => Ok(self.connection.send(header.reply(body.len()), body, &[])?),
            Consequence::Nack | Consequence::NackOrEnd if wants_ack => self.acknowledge(header, 1),
            Consequence::Nack => Ok(()),
            Consequence::NackOrEnd | Consequence::End => Err(SessionError::Unanswerable {
                request: request.map_or("unknown", Request::name),
                reason: refusal.to_string(),
            }),
        }
    }

    fn note_refusal(&mut self, request: Option<Request>, refusal: &Refusal) {
        self.refused += 1;
        self.log.refused(self.refused, request.map_or("unknown", Request::name), refusal);
    }
}

/// The payload as exactly a `T`.
pub(super) fn payload<T: FromBytes + KnownLayout + Immutable>(message: &Message) -> Result<T, Refusal> {
    message.payload().ok_or(Refusal::BadSize(message.body.len()))
}

/// The payload as a 64-bit integer.
pub(super) fn word(message: &Message) -> Result<u64, Refusal> {
    payload::<Word>(message).map(|word| word.value.get())
}

/// The one descriptor that came along.
pub(super) fn one_fd(message: &mut Message) -> Result<OwnedFd, Refusal> {
    match message.fds.len() {
        1 => Ok(message.fds.remove(0)),
        got => Err(Refusal::FdCount { got, want: 1 }),
    }
}

/// Legacy devices only: we offer VERSION_1, whose rings are little-endian.
fn set_vring_endian(state: VringState) -> Handled {
    match state.num.get() {
        0 => Ok(Answer::Done),
        _ => Err(Refusal::Unsupported),
    }
}
