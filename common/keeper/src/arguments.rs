//! The arguments by which a worker process learns what is kept for it.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::str::FromStr;

use crate::config::Handed;

/// Where a worker process finds its devices: part of its command line, which only a keeper writes.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct HandedArgs {
    /// Connections of this device come through this descriptor
    #[arg(long, value_name = "NAME=FD", hide = true)]
    pub kept: Vec<HandedDevice>,
}

/// `NAME=FD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedDevice {
    /// Name of the device.
    pub device: String,
    /// The descriptor.
    pub fd: RawFd,
}

impl HandedArgs {
    /// Whether there is a process that keeps this one.
    pub fn is_supervised(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Where the connections of this device come from.
    pub fn descriptor(&self, device: &str) -> Option<RawFd> {
        self.kept.iter().find(|kept| kept.device == device).map(|kept| kept.fd)
    }

    /// The arguments that say this: the user's, without the one that asks for a keeper, and what is `handed`.
    pub fn of(given: impl Iterator<Item = OsString>, handed: &Handed) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = given.filter(|argument| argument != "--supervise").collect();
        for (device, fd) in &handed.devices {
            arguments.extend(["--kept".into(), format!("{device}={fd}").into()]);
        }
        arguments
    }
}

impl FromStr for HandedDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once('=').and_then(|(device, fd)| Some((device, fd.parse().ok()?)));
        let (device, fd) = parts.ok_or_else(|| format!("'{text}' is not NAME=FD"))?;
        Ok(Self { device: device.to_owned(), fd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        handed: HandedArgs,
        #[arg(long)]
        queues: u16,
    }

    #[test]
    fn a_worker_finds_its_devices_by_the_names_that_its_keeper_wrote() {
        let given = ["p", "--supervise", "--queues", "2"].map(OsString::from);
        let devices = vec![("a=b".into(), 7), ("c".into(), 8)];
        let handed = Handed { devices, ..Handed::default() };
        let Program { handed, queues } = Program::parse_from(HandedArgs::of(given.into_iter(), &handed));
        let found = ["a=b", "c", "d"].map(|device| handed.descriptor(device));
        assert_eq!((found, queues), ([Some(7), Some(8), None], 2));
        assert!(handed.is_supervised() && !HandedArgs::default().is_supervised());
        assert!("a".parse::<HandedDevice>().is_err() && "a=x".parse::<HandedDevice>().is_err());
    }
}
