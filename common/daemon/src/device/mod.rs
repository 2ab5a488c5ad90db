//! What all kinds of devices have in common: how the user describes one, how several share a process, which features of
//! rings they offer, and how QEMU attaches them. A device crate states only what is its own.

mod arrange;
pub mod features;
pub mod qemu;
mod registry;
mod session;
mod spec;

pub use arrange::{Arranged, Place, arrange};
pub use registry::Devices;
pub use session::described;
pub(crate) use session::running;
pub use spec::Spec;

/// Most characters of a device's name.
const MAX_NAME: usize = 64;

/// Whether a device can be called this: the name ends up in metrics, logs and paths.
pub fn is_name(id: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    !id.is_empty() && id.len() <= MAX_NAME && id.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_metrics_and_paths_can_hold() {
        assert!(is_name("disk0") && is_name("vm-1.net:a_b") && is_name(&"x".repeat(64)));
        for wrong in ["", "a/b", "a b", "ä", "a\"", &"x".repeat(65)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
