//! Results that were checked.

/// Wrong results that are kept for the report.
const SHOWN: usize = 5;

/// Results held against those of an implementation that has nothing to do with the device's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Requests checked.
    pub requests: u64,
    /// Those that were wrong.
    pub wrong: u64,
    /// The first few of them.
    pub mismatches: Vec<String>,
}

impl Verified {
    /// Counts one result; `mismatch` says what is wrong with it.
    pub fn note(&mut self, right: bool, mismatch: impl FnOnce() -> String) {
        self.requests += 1;
        if !right {
            self.wrong += 1;
            if self.mismatches.len() < SHOWN {
                self.mismatches.push(mismatch());
            }
        }
    }

    /// Adds the result of another queue.
    pub fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.wrong += other.wrong;
        self.mismatches.extend(other.mismatches);
        self.mismatches.truncate(SHOWN);
    }
}
