//! One method for each message of the specification.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memory::RegionConfig;
use zerocopy::{FromZeros, IntoBytes};

use super::{Frontend, FrontendError, Result};
use crate::message::{
    ConfigHead, DeviceStateTransfer, Inflight, Log, MemoryRegion, MemoryTableHead, NOFD, Request,
    SingleMemoryRegion, VringAddr, VringState, Word, crypto_session_id_offset,
};

/// An inflight region as the back-end gave it; to be sent back on every start, and after a reconnection.
#[derive(Debug)]
pub struct InflightFd {
    /// The shared memory.
    pub fd: OwnedFd,
    /// Bytes.
    pub size: u64,
    /// Where the region starts in the file.
    pub offset: u64,
    /// Queues it has room for.
    pub queues: u16,
    /// Descriptors of each queue.
    pub queue_size: u16,
}

impl InflightFd {
    fn payload(&self) -> Inflight {
        Inflight {
            mmap_size: self.size.into(),
            mmap_offset: self.offset.into(),
            num_queues: self.queues.into(),
            queue_size: self.queue_size.into(),
            padding: 0.into(),
        }
    }
}

fn region(config: &RegionConfig) -> MemoryRegion {
    MemoryRegion {
        guest_addr: config.guest.0.into(),
        size: config.len.into(),
        user_addr: config.user.0.into(),
        mmap_offset: config.mmap_offset.into(),
    }
}

fn state(index: u16, num: u32) -> VringState {
    VringState { index: u32::from(index).into(), num: num.into() }
}

fn word(value: u64) -> Word {
    Word { value: value.into() }
}

impl Frontend {
    /// `GET_FEATURES`.
    pub fn get_features(&mut self) -> Result<u64> {
        self.query_word(Request::GetFeatures)
    }

    /// `SET_FEATURES`.
    pub fn set_features(&mut self, features: u64) -> Result<()> {
        self.request_payload(Request::SetFeatures, &word(features))
    }

    /// `GET_PROTOCOL_FEATURES`.
    pub fn get_protocol_features(&mut self) -> Result<u64> {
        self.query_word(Request::GetProtocolFeatures)
    }

    /// `SET_PROTOCOL_FEATURES`. Never asks for an acknowledgement: it is this message that negotiates them.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol = 0;
        self.request_payload(Request::SetProtocolFeatures, &word(features))?;
        self.protocol = features;
        Ok(())
    }

    /// `SET_OWNER`.
    pub fn set_owner(&mut self) -> Result<()> {
        self.request(Request::SetOwner, &[], &[])
    }

    /// `RESET_OWNER`.
    pub fn reset_owner(&mut self) -> Result<()> {
        self.request(Request::ResetOwner, &[], &[])
    }

    /// `GET_QUEUE_NUM`.
    pub fn get_queue_num(&mut self) -> Result<u64> {
        self.query_word(Request::GetQueueNum)
    }

    /// `SET_MEM_TABLE`.
    pub fn set_mem_table(&mut self, regions: &[(RegionConfig, BorrowedFd<'_>)]) -> Result<()> {
        let head = MemoryTableHead { count: (regions.len() as u32).into(), padding: 0.into() };
        let mut body = head.as_bytes().to_vec();
        for (config, _) in regions {
            body.extend_from_slice(region(config).as_bytes());
        }
        let fds: Vec<_> = regions.iter().map(|(_, fd)| *fd).collect();
        self.request(Request::SetMemTable, &body, &fds)
    }

    /// `ADD_MEM_REG`.
    pub fn add_mem_reg(&mut self, config: &RegionConfig, fd: BorrowedFd<'_>) -> Result<()> {
        let payload = SingleMemoryRegion { padding: 0.into(), region: region(config) };
        self.request(Request::AddMemReg, payload.as_bytes(), &[fd])
    }

    /// `REM_MEM_REG`; the specification wants no descriptor, some front-ends send one.
    pub fn rem_mem_reg(&mut self, config: &RegionConfig, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let payload = SingleMemoryRegion { padding: 0.into(), region: region(config) };
        self.request(Request::RemMemReg, payload.as_bytes(), fd.as_slice())
    }

    /// `GET_MAX_MEM_SLOTS`.
    pub fn get_max_mem_slots(&mut self) -> Result<u64> {
        self.query_word(Request::GetMaxMemSlots)
    }

    /// `SET_LOG_BASE` with `LOG_SHMFD`.
    pub fn set_log_base(&mut self, size: u64, offset: u64, fd: BorrowedFd<'_>) -> Result<()> {
        let log = Log { size: size.into(), offset: offset.into() };
        self.query(Request::SetLogBase, log.as_bytes(), &[fd])?;
        Ok(())
    }

    /// `SET_LOG_FD`.
    pub fn set_log_fd(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.request(Request::SetLogFd, &[], &[fd])
    }

    /// `SET_VRING_NUM`.
    pub fn set_vring_num(&mut self, index: u16, size: u32) -> Result<()> {
        self.request_payload(Request::SetVringNum, &state(index, size))
    }

    /// `SET_VRING_ADDR`.
    pub fn set_vring_addr(&mut self, addr: &VringAddr) -> Result<()> {
        self.request_payload(Request::SetVringAddr, addr)
    }

    /// `SET_VRING_BASE`: 16 bits for a split ring, 32 for a packed one.
    pub fn set_vring_base(&mut self, index: u16, base: u32) -> Result<()> {
        self.request_payload(Request::SetVringBase, &state(index, base))
    }

    /// `GET_VRING_BASE`: stops the ring.
    pub fn get_vring_base(&mut self, index: u16) -> Result<u32> {
        let request = Request::GetVringBase;
        let message = self.query(request, state(index, 0).as_bytes(), &[])?;
        let reply: VringState = message.payload().ok_or(FrontendError::BadReply(request))?;
        if reply.index.get() == u32::from(index) {
            Ok(reply.num.get())
        } else {
            Err(FrontendError::BadReply(request))
        }
    }

    /// `SET_VRING_KICK`; `None`: the back-end must poll.
    pub fn set_vring_kick(&mut self, index: u16, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.vring_fd(Request::SetVringKick, index, fd)
    }

    /// `SET_VRING_CALL`; `None`: the driver polls.
    pub fn set_vring_call(&mut self, index: u16, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.vring_fd(Request::SetVringCall, index, fd)
    }

    /// `SET_VRING_ERR`.
    pub fn set_vring_err(&mut self, index: u16, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.vring_fd(Request::SetVringErr, index, fd)
    }

    fn vring_fd(&mut self, request: Request, index: u16, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let value = u64::from(index) | if fd.is_none() { NOFD } else { 0 };
        self.request(request, word(value).as_bytes(), fd.as_slice())
    }

    /// `SET_VRING_ENABLE`.
    pub fn set_vring_enable(&mut self, index: u16, enabled: bool) -> Result<()> {
        self.request_payload(Request::SetVringEnable, &state(index, enabled.into()))
    }

    /// `SET_VRING_ENDIAN`.
    pub fn set_vring_endian(&mut self, index: u16, big: bool) -> Result<()> {
        self.request_payload(Request::SetVringEndian, &state(index, big.into()))
    }

    /// `VRING_KICK`.
    pub fn vring_kick(&mut self, index: u16) -> Result<()> {
        self.request_payload(Request::VringKick, &state(index, 0))
    }

    /// `GET_CONFIG`: fills `buf` from the configuration space at `offset`.
    pub fn get_config(&mut self, offset: u32, buf: &mut [u8]) -> Result<()> {
        let request = Request::GetConfig;
        let head = ConfigHead { offset: offset.into(), size: (buf.len() as u32).into(), flags: 0.into() };
        let mut body = head.as_bytes().to_vec();
        body.resize(body.len() + buf.len(), 0);
        let message = self.query(request, &body, &[])?;
        match message.prefix::<ConfigHead>() {
            Some((_, data)) if data.len() == buf.len() => buf.copy_from_slice(data),
            Some(_) => return Err(FrontendError::BadReply(request)),
            // vhost-user: zero length of payload indicates an error.
            None => return Err(FrontendError::Refused { request, value: 1 }),
        }
        Ok(())
    }

    /// `SET_CONFIG`.
    pub fn set_config(&mut self, offset: u32, data: &[u8], migration: bool) -> Result<()> {
        let head = ConfigHead {
            offset: offset.into(),
            size: (data.len() as u32).into(),
            flags: u32::from(migration).into(),
        };
        self.request(Request::SetConfig, &[head.as_bytes(), data].concat(), &[])
    }

    /// `SEND_RARP`.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<()> {
        let mut body = [0; 8];
        body[..6].copy_from_slice(&mac);
        self.request(Request::SendRarp, &body, &[])
    }

    /// `NET_SET_MTU`.
    pub fn net_set_mtu(&mut self, mtu: u16) -> Result<()> {
        self.request_payload(Request::NetSetMtu, &word(mtu.into()))
    }

    /// `CREATE_CRYPTO_SESSION` with a description of 632 or 1,072 bytes; returns the session identifier.
    pub fn create_crypto_session(&mut self, description: &[u8]) -> Result<u64> {
        let request = Request::CreateCryptoSession;
        let message = self.query(request, description, &[])?;
        let bad = FrontendError::BadReply(request);
        let Some(offset) = crypto_session_id_offset(message.body.len()) else { return Err(bad) };
        if message.body.len() != description.len() {
            return Err(bad);
        }
        let mut id = Word::new_zeroed();
        id.as_mut_bytes().copy_from_slice(&message.body[offset..offset + 8]);
        match i64::from_ne_bytes(id.value.get().to_ne_bytes()) {
            id if id >= 0 => Ok(id as u64),
            id => Err(FrontendError::Refused { request, value: id as u64 }),
        }
    }

    /// `CLOSE_CRYPTO_SESSION`.
    pub fn close_crypto_session(&mut self, id: u64) -> Result<()> {
        self.request_payload(Request::CloseCryptoSession, &word(id))
    }

    /// `GET_INFLIGHT_FD`.
    pub fn get_inflight_fd(&mut self, queues: u16, queue_size: u16) -> Result<InflightFd> {
        let request = Request::GetInflightFd;
        let mut payload = Inflight::new_zeroed();
        (payload.num_queues, payload.queue_size) = (queues.into(), queue_size.into());
        let mut message = self.query(request, payload.as_bytes(), &[])?;
        let reply: Inflight = message.payload().ok_or(FrontendError::BadReply(request))?;
        let fd = message.fds.pop().ok_or(FrontendError::BadReply(request))?;
        Ok(InflightFd {
            fd,
            size: reply.mmap_size.get(),
            offset: reply.mmap_offset.get(),
            queues,
            queue_size,
        })
    }

    /// `SET_INFLIGHT_FD`.
    pub fn set_inflight_fd(&mut self, inflight: &InflightFd) -> Result<()> {
        self.request(Request::SetInflightFd, inflight.payload().as_bytes(), &[inflight.fd.as_fd()])
    }

    /// `SET_BACKEND_REQ_FD`.
    pub fn set_backend_req_fd(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.request(Request::SetBackendReqFd, &[], &[fd])
    }

    /// `GPU_SET_SOCKET`.
    pub fn gpu_set_socket(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.request(Request::GpuSetSocket, &[], &[fd])
    }

    /// `RESET_DEVICE`.
    pub fn reset_device(&mut self) -> Result<()> {
        self.request(Request::ResetDevice, &[], &[])
    }

    /// `SET_STATUS`.
    pub fn set_status(&mut self, status: u8) -> Result<()> {
        self.request_payload(Request::SetStatus, &word(status.into()))
    }

    /// `GET_STATUS`.
    pub fn get_status(&mut self) -> Result<u8> {
        let status = self.query_word(Request::GetStatus)?;
        u8::try_from(status).map_err(|_| FrontendError::BadReply(Request::GetStatus))
    }

    /// `SET_DEVICE_STATE_FD`; `load`: the state goes to the back-end. Returns the channel to use instead of `fd`, if the
    /// back-end prefers one of its own.
    pub fn set_device_state_fd(&mut self, load: bool, fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
        let request = Request::SetDeviceStateFd;
        let payload = DeviceStateTransfer { direction: u32::from(load).into(), phase: 0.into() };
        let mut message = self.query(request, payload.as_bytes(), &[fd])?;
        let value = message.payload::<Word>().ok_or(FrontendError::BadReply(request))?.value.get();
        match (value & !NOFD, value & NOFD != 0, message.fds.pop()) {
            (0, true, _) => Ok(None),
            (0, false, Some(channel)) => Ok(Some(channel)),
            (0, false, None) => Err(FrontendError::BadReply(request)),
            (value, ..) => Err(FrontendError::Refused { request, value }),
        }
    }

    /// `CHECK_DEVICE_STATE`.
    pub fn check_device_state(&mut self) -> Result<()> {
        match self.query_word(Request::CheckDeviceState)? {
            0 => Ok(()),
            value => Err(FrontendError::Refused { request: Request::CheckDeviceState, value }),
        }
    }
}
