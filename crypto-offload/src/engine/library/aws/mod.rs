//! AWS-LC behind types that own what they hold. The only place that calls it.
//!
//! The library's C interface is used because it works on ranges: from one address to another, piece by piece. The
//! addresses may be guest memory, so that they stay raw pointers up to here; no reference to such memory exists
//! anywhere.
//!
//! Whatever the library allocates comes from locked memory ([`start`]).

mod aes;
mod chacha;
mod context;
mod digest;
mod ec;
mod memory;
mod rsa;

pub use aes::{AesKey, Counter};
pub use chacha::{ChaChaKey, Message};
pub use context::{Context, Kind};
pub use digest::{HmacKey, Running};
pub use ec::EcKey;
pub use memory::{equal, start};
pub use rsa::{Numbers, RsaKey};

/// The library refused. It says why on a list of its own; what a guest is told does not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed;

/// What most functions of the library return: 1 for success.
fn check(result: std::os::raw::c_int) -> Result<(), Failed> {
    if result == 1 {
        return Ok(());
    }
    memory::clear_errors();
    Err(Failed)
}
