//! When software does what the device should, and how often.

use std::fmt;

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// There is no device, or none that can be used.
    Absent,
    /// Too much waits for it.
    Busy,
    /// It took too long.
    Slow,
    /// It was reset, broke its rings or went away.
    Lost,
    /// It does not know the format, level or checksum.
    Unsupported,
    /// Longer than it takes, or than there is memory for.
    TooLarge,
    /// So short that asking would take longer.
    Small,
    /// It failed, or answered what makes no sense.
    Failed,
}

impl Reason {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Absent,
        Self::Busy,
        Self::Slow,
        Self::Lost,
        Self::Unsupported,
        Self::TooLarge,
        Self::Small,
        Self::Failed,
    ];

    /// A word for it, as in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Busy => "busy",
            Self::Slow => "slow",
            Self::Lost => "lost",
            Self::Unsupported => "unsupported",
            Self::TooLarge => "too_large",
            Self::Small => "small",
            Self::Failed => "failed",
        }
    }

    /// What is said about it.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Absent => "there is no device",
            Self::Busy => "the device is busy",
            Self::Slow => "the device is too slow",
            Self::Lost => "the device is gone",
            Self::Unsupported => "the device does not do that",
            Self::TooLarge => "the request is too large for the device",
            Self::Small => "the request is small",
            Self::Failed => "the device failed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Requests by who did them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By the device.
    pub device: u64,
    software: [u64; Reason::ALL.len()],
}

impl Counters {
    /// By software, for this reason.
    pub fn software(&self, reason: Reason) -> u64 {
        self.software[reason as usize]
    }

    /// By software, for any reason.
    pub fn in_software(&self) -> u64 {
        self.software.iter().sum()
    }

    /// Counts one for software, and says so in the log the first time that the reason comes up. Small requests are meant
    /// for software, and why there is no device is said by who has looked for it.
    pub fn fall_back(&mut self, reason: Reason) {
        let count = &mut self.software[reason as usize];
        *count += 1;
        if *count == 1 && !matches!(reason, Reason::Small | Reason::Absent) {
            tracing::warn!("Working in software: {}", reason.sentence());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let mut counters = Counters::default();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            (0..=index).for_each(|_| counters.fall_back(reason));
        }
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(counters.software(reason), index as u64 + 1, "{reason}");
        }
        assert_eq!((counters.in_software(), counters.device), (36, 0));
    }
}
