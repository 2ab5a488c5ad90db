//! What the user may say about an AF_XDP uplink.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::OpenError;
use super::filter::{Filter, Groups, MAX_CHOSEN};
use crate::frame::MacAddr;

/// Entries of each ring unless told otherwise, and so the buffers of a queue each way: 2 ms of small frames at 1 Mpps.
pub const DEFAULT_RING: u32 = 2048;
/// Most entries of a ring.
pub const MAX_RING: u32 = 32768;

/// How frames get from the driver to the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The hardware itself writes and reads the buffers.
    ZeroCopy,
    /// The driver runs the program, and the kernel copies.
    Copy,
    /// The kernel runs the program on the frames that the driver has delivered, and copies: works with any interface.
    Generic,
}

/// Which modes may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeChoice {
    /// The best that works.
    #[default]
    Auto,
    /// Only [`Mode::ZeroCopy`].
    ZeroCopy,
    /// Only [`Mode::Copy`].
    Copy,
    /// Only [`Mode::Generic`].
    Generic,
}

/// An AF_XDP uplink: `IFACE[,mode=..,macs=..+..,vlans=..+..,groups=..,ring=..,busy-poll=..,need-wakeup=..]`, or the same
/// keys in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spec {
    /// The interface.
    pub interface: String,
    /// Which mode to use [default: the best that works].
    pub mode: ModeChoice,
    /// Redirect only frames to these addresses; the host keeps the rest.
    pub macs: Option<Vec<MacAddr>>,
    /// Redirect only these VLANs (0: untagged); the host keeps the rest.
    pub vlans: Option<Vec<u16>>,
    /// Who gets broadcasts and multicasts when `macs` is given.
    pub groups: Groups,
    /// Entries of each ring, a power of two.
    pub ring: Option<u32>,
    /// Drive the interface's NAPI from the worker, for so many microseconds a call. For hardware with
    /// `napi_defer_hard_irqs` and `gro_flush_timeout` set; the worker then has to poll.
    pub busy_poll: Option<u32>,
    /// Whether the kernel says when it needs a call [default: with zero copy only].
    pub need_wakeup: Option<bool>,
}

impl Spec {
    /// An uplink with nothing but defaults.
    pub fn new(interface: impl Into<String>) -> Self {
        Self { interface: interface.into(), ..Self::default() }
    }

    /// The filter that it starts with.
    pub fn filter(&self) -> Filter {
        Filter {
            macs: self.macs.as_ref().map(|macs| macs.iter().copied().collect()),
            vlans: self.vlans.as_ref().map(|vlans| vlans.iter().copied().collect()),
            groups: self.groups,
        }
    }

    /// Entries of each ring.
    pub(super) fn ring_size(&self) -> u32 {
        self.ring.unwrap_or(DEFAULT_RING)
    }

    /// The modes to try, best first.
    pub(super) fn modes(&self) -> &'static [Mode] {
        match self.mode {
            ModeChoice::Auto => &[Mode::ZeroCopy, Mode::Copy, Mode::Generic],
            ModeChoice::ZeroCopy => &[Mode::ZeroCopy],
            ModeChoice::Copy => &[Mode::Copy],
            ModeChoice::Generic => &[Mode::Generic],
        }
    }

    /// Refuses what cannot be, before anything is opened.
    pub fn check(&self) -> Result<(), OpenError> {
        let ring = self.ring_size();
        if !ring.is_power_of_two() || !(64..=MAX_RING).contains(&ring) {
            return Err(OpenError::BadOption(format!("ring={ring}: a power of two from 64 to {MAX_RING}")));
        }
        if let Some(vlan) = self.vlans.iter().flatten().find(|vlan| **vlan > 4094) {
            return Err(OpenError::BadOption(format!(
                "vlans={vlan}: numbers from 1 to 4094, or 0 for untagged frames"
            )));
        }
        if self.macs.as_ref().is_some_and(|macs| macs.len() > MAX_CHOSEN as usize) {
            return Err(OpenError::BadOption(format!("macs: at most {MAX_CHOSEN}")));
        }
        if self.busy_poll == Some(0) {
            return Err(OpenError::BadOption("busy-poll=0: a number of microseconds, at least 1".to_owned()));
        }
        Ok(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
            Self::Generic => "generic",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        daemon::cli::parse_list_after("interface", text).expect("a good list")
    }

    #[test]
    fn the_command_line_says_everything() {
        let spec = spec(
            "eth0,mode=generic,macs=52:54:00:00:00:01+52:54:00:00:00:02,vlans=0+7,groups=host,ring=512,busy-poll=20,need-wakeup=on",
        );
        assert_eq!((spec.interface.as_str(), spec.modes()), ("eth0", &[Mode::Generic][..]));
        assert_eq!((spec.ring_size(), spec.busy_poll, spec.need_wakeup), (512, Some(20), Some(true)));
        let filter = spec.filter();
        assert_eq!(filter.macs.map(|macs| macs.len()), Some(2));
        assert_eq!(filter.vlans, Some([0, 7].into()));
        assert_eq!(filter.groups, Groups::Host);
    }

    #[test]
    fn an_interface_alone_takes_everything_in_the_best_mode() {
        let spec = spec("eth0");
        assert_eq!(spec, Spec::new("eth0"));
        assert_eq!((spec.filter(), spec.modes().len(), spec.check().is_ok()), (Filter::default(), 3, true));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_range() {
        for (text, range) in [
            ("e,ring=100", "a power of two from 64"),
            ("e,ring=32", "from 64 to 32768"),
            ("e,ring=65536", "from 64 to 32768"),
            ("e,vlans=4095", "from 1 to 4094"),
            ("e,busy-poll=0", "at least 1"),
        ] {
            let error = spec(text).check().expect_err(text).to_string();
            assert!(error.contains(range), "{error}");
        }
    }
}
