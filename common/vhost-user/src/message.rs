//! Wire format of the vhost-user protocol: header, request codes, payloads, feature bits.
//!
//! Names follow the specification (`docs/interop/vhost-user.rst` of QEMU). Numbers on the wire are in the byte order of the
//! machine; the payload structs use alignment-1 native-endian integers, so they have no padding and can be read from any
//! byte buffer.

use std::fmt;

use zerocopy::byteorder::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a message header.
pub const HEADER_LEN: usize = size_of::<Header>();
/// Largest payload we accept. The largest in the specification (`GET_SHMEM_CONFIG`) has 2,056 bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// Most file descriptors accepted with one message. The specification has at most 8; common implementations allow 32.
pub const MAX_FDS: usize = 32;
/// Protocol version in the lower two bits of the flags.
pub const VERSION: u32 = 1;
/// Largest part of the device configuration space one message may carry.
pub const MAX_CONFIG: usize = 4096;
/// Ring indexes have eight bits in `SET_VRING_KICK`, `_CALL` and `_ERR`.
pub const MAX_VRINGS: u16 = 256;

/// Bits of the header's `flags` besides the version.
pub mod flags {
    /// Lower two bits: protocol version.
    pub const VERSION_MASK: u32 = 0x3;
    /// The message is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender waits for an acknowledgement (`REPLY_ACK`).
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// Virtio feature bits with a meaning in vhost-user.
pub mod features {
    /// `VHOST_F_LOG_ALL`: the device logs every write to guest memory.
    pub const LOG_ALL: u64 = 1 << 26;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`: `GET/SET_PROTOCOL_FEATURES` may be used.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
    /// `VIRTIO_F_ACCESS_PLATFORM` (called `IOMMU_PLATFORM` by the specification of vhost-user).
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// `VIRTIO_F_RING_PACKED`.
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Protocol feature bits, `VHOST_USER_PROTOCOL_F_*`.
pub mod protocol {
    /// `GET_QUEUE_NUM` tells the number of queues.
    pub const MQ: u64 = 1 << 0;
    /// `SET_LOG_BASE` carries a file descriptor and is answered.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// `SEND_RARP`.
    pub const RARP: u64 = 1 << 2;
    /// Any message may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// `NET_SET_MTU`.
    pub const NET_MTU: u64 = 1 << 4;
    /// `SET_BACKEND_REQ_FD`: the back channel.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// `SET_VRING_ENDIAN`.
    pub const CROSS_ENDIAN: u64 = 1 << 6;
    /// `CREATE/CLOSE_CRYPTO_SESSION`.
    pub const CRYPTO_SESSION: u64 = 1 << 7;
    /// Post-copy migration.
    pub const PAGEFAULT: u64 = 1 << 8;
    /// `GET/SET_CONFIG`.
    pub const CONFIG: u64 = 1 << 9;
    /// File descriptors may travel on the back channel.
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    /// `BACKEND_VRING_HOST_NOTIFIER_MSG`.
    pub const HOST_NOTIFIER: u64 = 1 << 11;
    /// `GET/SET_INFLIGHT_FD`.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// `RESET_DEVICE`.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// `VRING_KICK` and its counterparts on the back channel.
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    /// `ADD_MEM_REG`, `REM_MEM_REG`, `GET_MAX_MEM_SLOTS`.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// `SET/GET_STATUS`.
    pub const STATUS: u64 = 1 << 16;
    /// Xen memory mappings.
    pub const XEN_MMAP: u64 = 1 << 17;
    /// `GET_SHARED_OBJECT`.
    pub const SHARED_OBJECT: u64 = 1 << 18;
    /// `SET_DEVICE_STATE_FD`, `CHECK_DEVICE_STATE`.
    pub const DEVICE_STATE: u64 = 1 << 19;
}

/// Virtio device status bits the session looks at (virtio 1.3 §2.1).
pub mod status {
    /// The device asks for a reset.
    pub const DEVICE_NEEDS_RESET: u8 = 0x40;
}

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal $spec:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* #[doc = concat!("`", $spec, "`.")] $variant = $code,)* }

        impl $name {
            /// Every code, in the order of the specification.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code on the wire, if it is one we know.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// The name in the specification, without the `VHOST_USER_` prefix.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $spec,)* }
            }
        }

        impl From<$name> for u32 {
            fn from(code: $name) -> u32 { code as u32 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.name()) }
        }
    };
}

codes! {
    /// Requests of the front-end, on the main socket.
    Request {
        GetFeatures = 1 "GET_FEATURES",
        SetFeatures = 2 "SET_FEATURES",
        SetOwner = 3 "SET_OWNER",
        ResetOwner = 4 "RESET_OWNER",
        SetMemTable = 5 "SET_MEM_TABLE",
        SetLogBase = 6 "SET_LOG_BASE",
        SetLogFd = 7 "SET_LOG_FD",
        SetVringNum = 8 "SET_VRING_NUM",
        SetVringAddr = 9 "SET_VRING_ADDR",
        SetVringBase = 10 "SET_VRING_BASE",
        GetVringBase = 11 "GET_VRING_BASE",
        SetVringKick = 12 "SET_VRING_KICK",
        SetVringCall = 13 "SET_VRING_CALL",
        SetVringErr = 14 "SET_VRING_ERR",
        GetProtocolFeatures = 15 "GET_PROTOCOL_FEATURES",
        SetProtocolFeatures = 16 "SET_PROTOCOL_FEATURES",
        GetQueueNum = 17 "GET_QUEUE_NUM",
        SetVringEnable = 18 "SET_VRING_ENABLE",
        SendRarp = 19 "SEND_RARP",
        NetSetMtu = 20 "NET_SET_MTU",
        SetBackendReqFd = 21 "SET_BACKEND_REQ_FD",
        IotlbMsg = 22 "IOTLB_MSG",
        SetVringEndian = 23 "SET_VRING_ENDIAN",
        GetConfig = 24 "GET_CONFIG",
        SetConfig = 25 "SET_CONFIG",
        CreateCryptoSession = 26 "CREATE_CRYPTO_SESSION",
        CloseCryptoSession = 27 "CLOSE_CRYPTO_SESSION",
        PostcopyAdvise = 28 "POSTCOPY_ADVISE",
        PostcopyListen = 29 "POSTCOPY_LISTEN",
        PostcopyEnd = 30 "POSTCOPY_END",
        GetInflightFd = 31 "GET_INFLIGHT_FD",
        SetInflightFd = 32 "SET_INFLIGHT_FD",
        GpuSetSocket = 33 "GPU_SET_SOCKET",
        ResetDevice = 34 "RESET_DEVICE",
        VringKick = 35 "VRING_KICK",
        GetMaxMemSlots = 36 "GET_MAX_MEM_SLOTS",
        AddMemReg = 37 "ADD_MEM_REG",
        RemMemReg = 38 "REM_MEM_REG",
        SetStatus = 39 "SET_STATUS",
        GetStatus = 40 "GET_STATUS",
        GetSharedObject = 41 "GET_SHARED_OBJECT",
        SetDeviceStateFd = 42 "SET_DEVICE_STATE_FD",
        CheckDeviceState = 43 "CHECK_DEVICE_STATE",
        GetShmemConfig = 44 "GET_SHMEM_CONFIG",
    }
}

codes! {
    /// Requests of the back-end, on the back channel.
    BackendRequest {
        IotlbMsg = 1 "BACKEND_IOTLB_MSG",
        ConfigChangeMsg = 2 "BACKEND_CONFIG_CHANGE_MSG",
        VringHostNotifierMsg = 3 "BACKEND_VRING_HOST_NOTIFIER_MSG",
        VringCall = 4 "BACKEND_VRING_CALL",
        VringErr = 5 "BACKEND_VRING_ERR",
        SharedObjectAdd = 6 "BACKEND_SHARED_OBJECT_ADD",
        SharedObjectRemove = 7 "BACKEND_SHARED_OBJECT_REMOVE",
        SharedObjectLookup = 8 "BACKEND_SHARED_OBJECT_LOOKUP",
        ShmemMap = 9 "BACKEND_SHMEM_MAP",
        ShmemUnmap = 10 "BACKEND_SHMEM_UNMAP",
    }
}

/// Message header (vhost-user: Header).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Request code, [`Request`] or [`BackendRequest`].
    pub request: U32,
    /// Version and [`flags`].
    pub flags: U32,
    /// Payload bytes that follow.
    pub size: U32,
}

impl Header {
    /// A request of version 1; `extra` are further [`flags`].
    pub fn request(code: u32, extra: u32, size: usize) -> Self {
        Self { request: code.into(), flags: (VERSION | extra).into(), size: (size as u32).into() }
    }

    /// The reply to `self`. QEMU and DPDK insist on exactly these flags.
    pub fn reply(&self, size: usize) -> Self {
        Self { request: self.request, flags: (VERSION | flags::REPLY).into(), size: (size as u32).into() }
    }

    /// The sender waits for an acknowledgement.
    pub fn needs_reply(&self) -> bool {
        self.flags.get() & flags::NEED_REPLY != 0
    }

    /// The message is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags.get() & flags::REPLY != 0
    }
}

macro_rules! payload {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$doc])* pub $field: $ty,)* }
    };
}

payload! {
    /// A single 64-bit integer.
    Word {
        /// The value.
        value: U64,
    }
}

payload! {
    /// Vring state description.
    VringState {
        /// Ring index.
        index: U32,
        /// Size, base, enable flag or endianness, depending on the message.
        num: U32,
    }
}

payload! {
    /// Vring address description. The ring addresses are user addresses: those of the front-end's own address space.
    VringAddr {
        /// Ring index.
        index: U32,
        /// [`VringAddr::LOG`].
        flags: U32,
        /// Descriptor table (split) or descriptor ring (packed).
        descriptor: U64,
        /// Used ring, or the device event suppression area.
        used: U64,
        /// Available ring, or the driver event suppression area.
        available: U64,
        /// Guest address at which writes to the used ring are logged.
        log: U64,
    }
}

impl VringAddr {
    /// `VHOST_VRING_F_LOG`: writes to the used ring are logged.
    pub const LOG: u32 = 1;
}

payload! {
    /// Memory region description.
    MemoryRegion {
        /// Guest physical address.
        guest_addr: U64,
        /// Bytes.
        size: U64,
        /// Address in the front-end's own address space.
        user_addr: U64,
        /// Offset of the region in the file descriptor that came along.
        mmap_offset: U64,
    }
}

payload! {
    /// Head of a multiple memory regions description; `count` regions follow.
    MemoryTableHead {
        /// Regions that follow.
        count: U32,
        /// Zero.
        padding: U32,
    }
}

payload! {
    /// Single memory region description.
    SingleMemoryRegion {
        /// Zero.
        padding: U64,
        /// The region.
        region: MemoryRegion,
    }
}

payload! {
    /// Log description.
    Log {
        /// Bytes of the log.
        size: U64,
        /// Where the log starts in the file descriptor.
        offset: U64,
    }
}

payload! {
    /// Head of a virtio device config space description; `size` bytes follow.
    ConfigHead {
        /// Offset in the configuration space.
        offset: U32,
        /// Bytes.
        size: U32,
        /// 0: written by the guest, 1: live migration.
        flags: U32,
    }
}

payload! {
    /// Inflight description.
    Inflight {
        /// Bytes of the region.
        mmap_size: U64,
        /// Offset of the region in the file descriptor.
        mmap_offset: U64,
        /// Queues the region has room for.
        num_queues: U16,
        /// Descriptors of each queue.
        queue_size: U16,
        /// What C compilers add at the end; some implementations leave it out, see [`Inflight::MIN_LEN`].
        padding: U32,
    }
}

impl Inflight {
    /// Bytes without the trailing padding. Replies have the size of the request, since QEMU compares the two.
    pub const MIN_LEN: usize = 20;
}

payload! {
    /// Device state transfer parameters.
    DeviceStateTransfer {
        /// 0: save (back-end to front-end), 1: load.
        direction: U32,
        /// 0: stopped, the only phase there is.
        phase: U32,
    }
}

payload! {
    /// Vring area description, for host notifiers.
    VringArea {
        /// Ring index and flags.
        index: U64,
        /// Bytes.
        size: U64,
        /// Offset in the file descriptor.
        offset: U64,
    }
}

/// Bit 8 of `SET_VRING_KICK`, `_CALL`, `_ERR` and of the reply to `SET_DEVICE_STATE_FD`: no file descriptor came along.
pub const NOFD: u64 = 1 << 8;
/// Bits 0 to 7 of the same words: ring index, or error.
pub const INDEX_MASK: u64 = 0xff;

/// Where the session identifier sits in a crypto session description. QEMU up to 8.0 sends 632 bytes, since 8.1 1,072.
pub fn crypto_session_id_offset(len: usize) -> Option<usize> {
    match len {
        632 => Some(0),
        1072 => Some(1064),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_the_sizes_of_the_specification() {
        assert_eq!(HEADER_LEN, 12);
        assert_eq!(size_of::<VringState>(), 8);
        assert_eq!(size_of::<VringAddr>(), 40);
        assert_eq!(size_of::<MemoryRegion>(), 32);
        assert_eq!(size_of::<SingleMemoryRegion>(), 40);
        assert_eq!(size_of::<Log>(), 16);
        assert_eq!(size_of::<ConfigHead>(), 12);
        assert_eq!(size_of::<Inflight>(), 24);
        assert_eq!(size_of::<DeviceStateTransfer>(), 8);
        assert_eq!(size_of::<VringArea>(), 24);
    }

    #[test]
    fn every_code_round_trips_and_has_a_name() {
        for &request in Request::ALL {
            assert_eq!(Request::from_code(request.into()), Some(request));
        }
        assert_eq!(Request::ALL.len(), 44);
        assert_eq!(Request::from_code(0), None);
        assert_eq!(Request::from_code(45), None);
        assert_eq!(Request::SetVringAddr.to_string(), "SET_VRING_ADDR");
    }

    #[test]
    fn a_reply_carries_version_and_reply_flag_only() {
        let request = Header::request(Request::GetConfig.into(), flags::NEED_REPLY, 20);
        let reply = request.reply(8);
        assert!(request.needs_reply() && !request.is_reply());
        assert_eq!(reply.flags.get(), 0x5);
        assert_eq!(reply.size.get(), 8);
        assert_eq!(reply.request, request.request);
    }

    #[test]
    fn both_sizes_of_the_crypto_session_description_are_known() {
        assert_eq!(crypto_session_id_offset(632), Some(0));
        assert_eq!(crypto_session_id_offset(1072), Some(1064));
        assert_eq!(crypto_session_id_offset(640), None);
    }
}
