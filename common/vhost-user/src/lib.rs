//! The vhost-user protocol, both ends.
//!
//! - [`message`]: the wire format; [`connection`]: whole messages with file descriptors over a Unix socket.
//! - [`Device`], [`serve`]: the back-end. A device crate implements [`Device`]; [`serve`] runs one connection after another on
//!   it, on a thread of the device's own. [`Notifier`] reaches that thread from the rest of the process.
//! - [`frontend`]: the other end, for load generators, tests and the VMM.
//! - [`listen`]: sockets to listen on, to connect to, or inherited.
//!
//! # What is answered
//!
//! Every message of the specification. One that is not understood or not allowed is *refused*: it has no effect, and the
//! front-end gets a negative acknowledgement if it asked for one. The connection ends only when a reply is owed that cannot be
//! given, when both sides would go on with different ideas of features or memory, or when the byte stream itself is broken. A
//! ring that cannot run signals its error event and harms nobody else.
//!
//! | protocol feature | offered |
//! |---|---|
//! | MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, BACKEND_SEND_FD, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS (509), STATUS | always |
//! | CONFIG, RARP, NET_MTU, CRYPTO_SESSION, DEVICE_STATE | when the device does |
//! | CROSS_ENDIAN, PAGEFAULT, HOST_NOTIFIER, INBAND_NOTIFICATIONS, XEN_MMAP, SHARED_OBJECT, SHMEM | never |

mod backend;
pub mod connection;
mod device;
pub mod frontend;
pub mod listen;
mod log;
pub mod message;
mod notifier;
mod rate_limited;
mod scm;
mod serve;

pub use device::{Device, Refused};
pub use listen::{Endpoint, EndpointError, Transport};
pub use notifier::{Notifier, NotifierHandle, RingStatus, SessionStatus};
pub use rate_limited::RateLimited;
pub use serve::{Options, serve};
