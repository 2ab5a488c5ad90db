//! What can run commands and has an address.

use std::time::Duration;

use anyhow::Result;

use crate::guest::Guest;

/// A guest or a network namespace.
pub trait Host {
    /// Runs a script that must succeed within `timeout`; returns what it printed.
    ///
    /// # Errors
    /// When it fails or takes longer.
    fn sh_for(&mut self, script: &str, timeout: Duration) -> Result<String>;

    /// Starts a script and does not wait for it. It ends with the host.
    ///
    /// # Errors
    /// When the host is gone.
    fn background(&mut self, script: &str) -> Result<()>;

    /// A directory of its own, without a slash at the end.
    fn scratch(&self) -> String;

    /// As [`Host::sh_for`] with a minute's time.
    ///
    /// # Errors
    /// As [`Host::sh_for`].
    fn run(&mut self, script: &str) -> Result<String> {
        self.sh_for(script, Duration::from_secs(60))
    }
}

impl Host for Guest {
    fn sh_for(&mut self, script: &str, timeout: Duration) -> Result<String> {
        Guest::sh_for(self, script, timeout)
    }

    fn background(&mut self, script: &str) -> Result<()> {
        self.sh(&format!("({script}) > /dev/null 2>&1 &"))?;
        Ok(())
    }

    fn scratch(&self) -> String {
        "/tmp".into()
    }
}
