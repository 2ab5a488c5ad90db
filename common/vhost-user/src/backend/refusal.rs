//! Why a message is refused, and what the front-end then gets to hear.

use std::io;

use memory::{MapError, OutOfRange};
use virtqueue::SetupError;

use crate::device::Refused;
use crate::message::Request;

/// A message that has no effect. The connection goes on where the protocol can tell the front-end, or need not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Unknown request code")]
    UnknownCode,
    #[error("A reply nobody waits for")]
    UnexpectedReply,
    #[error("Payload of {0} bytes does not fit the request")]
    BadSize(usize),
    #[error("{got} file descriptors came along instead of {want}")]
    FdCount { got: usize, want: usize },
    #[error("File descriptors were lost on the way")]
    FdsLost,
    #[error("Feature bits {0:#x} were not offered")]
    NotOffered(u64),
    #[error("Features change from {from:#x} to {to:#x} while a ring runs")]
    FeaturesInUse { from: u64, to: u64 },
    #[error("Ring {index} does not exist, there are {count}")]
    NoSuchRing { index: u32, count: u16 },
    #[error("Ring {0} runs, it must be stopped first")]
    RingRuns(u16),
    #[error("Ring size {0} is not usable")]
    RingSize(u32),
    #[error("Ring base {0:#x} is not usable")]
    RingBase(u32),
    #[error("Ring addresses are misaligned")]
    Misaligned,
    #[error("Ring {index} was kicked before its {missing} was set")]
    NotConfigured { index: u16, missing: &'static str },
    #[error("Ring area lies outside guest memory: {0}")]
    RingOutside(#[from] OutOfRange),
    #[error("Ring cannot be set up: {0}")]
    Setup(#[from] SetupError),
    #[error("Memory regions cannot be mapped: {0}")]
    Map(#[from] MapError),
    #[error("Event is full, writing it would wait")]
    EventFull,
    #[error("Value {0:#x} is not valid")]
    BadValue(u64),
    #[error("Inflight region of {have} bytes is smaller than the {want} its queues need")]
    InflightTooSmall { have: u64, want: u64 },
    #[error("Rings run while the device state is asked for")]
    NotSuspended,
    #[error("Not offered by this backend")]
    Unsupported,
    #[error("{0}")]
    Device(#[from] Refused),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a refused message leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Consequence {
    /// The specification has a reply that means failure: these bytes.
    Reply(&'static [u8]),
    /// An acknowledgement if one was asked for; otherwise nothing.
    Nack,
    /// An acknowledgement if one was asked for; otherwise the connection ends, since both sides must agree on this.
    NackOrEnd,
    /// A reply is owed and there is none for failure: the connection ends.
    End,
}

/// A 64-bit reply in native byte order.
const ONE: &[u8] = &1u64.to_ne_bytes();
/// Reply to `SET_DEVICE_STATE_FD`: error in bits 0 to 7, bit 8 for no file descriptor.
const STATE_ERROR: &[u8] = &0x101u64.to_ne_bytes();

pub(super) fn consequence(request: Option<Request>) -> Consequence {
    use Request::*;
    let Some(request) = request else { return Consequence::Nack };
    match request {
        // vhost-user: GET_CONFIG, zero length of payload indicates an error. The others expect a descriptor that is not there.
        GetConfig | GetSharedObject | PostcopyAdvise => Consequence::Reply(&[]),
        PostcopyEnd | CheckDeviceState => Consequence::Reply(ONE),
        SetDeviceStateFd => Consequence::Reply(STATE_ERROR),
        GetFeatures | GetProtocolFeatures | GetVringBase | GetQueueNum | SetLogBase | GetInflightFd
        | GetMaxMemSlots | GetStatus | CreateCryptoSession | GetShmemConfig => Consequence::End,
        SetFeatures | SetProtocolFeatures | SetMemTable | AddMemReg | RemMemReg | SetInflightFd => {
            Consequence::NackOrEnd
        }
        SetOwner | ResetOwner | SetLogFd | SetVringNum | SetVringAddr | SetVringBase | SetVringKick
        | SetVringCall | SetVringErr | SetVringEnable | SendRarp | NetSetMtu | SetBackendReqFd | IotlbMsg
        | SetVringEndian | SetConfig | CloseCryptoSession | PostcopyListen | GpuSetSocket | ResetDevice
        | VringKick | SetStatus => Consequence::Nack,
    }
}
