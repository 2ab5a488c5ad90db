//! The drivers that put loads on backends.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::figure::Measured;
use crate::guest::Shown;
use crate::guest::options::Timing;
use crate::net::meter::Meter;
use crate::{blk, compress, crypto, net, testpmd};

/// What puts a load on a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// `vhostd-bench blk`.
    #[default]
    Blk,
    /// `vhostd-bench net`.
    Net,
    /// `vhostd-bench virtio-user`.
    VirtioUser,
    /// `vhostd-bench crypto`.
    Crypto,
    /// `vhostd-bench compress`.
    Compress,
}

impl Driver {
    /// The report that an engine alone has printed, for a driver that has engines.
    pub fn engine_report(self, json: &str) -> Result<Box<dyn Measured>> {
        const WHAT: &str = "It printed no report";
        Ok(match self {
            Self::Crypto => Box::new(serde_json::from_str::<crypto::Report>(json).context(WHAT)?),
            Self::Compress => Box::new(serde_json::from_str::<compress::Report>(json).context(WHAT)?),
            Self::Blk | Self::Net | Self::VirtioUser => bail!("This driver has no engines"),
        })
    }
}

/// A load for one of the drivers.
#[derive(Clone, Debug)]
pub enum Load {
    /// For the block driver.
    Blk(blk::Load),
    /// For our network driver.
    Net(net::Load),
    /// For DPDK's.
    VirtioUser(testpmd::Load),
    /// For the virtio-crypto driver.
    Crypto(crypto::Load),
    /// For the driver of compression devices.
    Compress(compress::Load),
}

impl Load {
    /// Reads the options of `driver` as on its command line; the error is a sentence.
    pub fn parse(driver: Driver, text: &str) -> Result<Self, String> {
        Ok(match driver {
            Driver::Blk => Self::Blk(blk::Load::parse(text)?),
            Driver::Net => Self::Net(net::Load::parse(text)?),
            Driver::VirtioUser => Self::VirtioUser(testpmd::Load::parse(text)?),
            Driver::Crypto => Self::Crypto(crypto::Load::parse(text)?),
            Driver::Compress => Self::Compress(compress::Load::parse(text)?),
        })
    }

    /// Sockets of the backend that it is put on.
    pub fn sockets(&self) -> usize {
        match self {
            Self::Blk(_) | Self::Crypto(_) | Self::Compress(_) => 1,
            Self::Net(load) => load.sockets(),
            Self::VirtioUser(load) => load.ports(),
        }
    }

    /// One run on a backend that listens on `sockets`.
    pub fn run(
        self,
        sockets: &[PathBuf],
        timing: Timing,
        meter: Option<&mut dyn Meter>,
    ) -> Result<Box<dyn Measured>> {
        match self {
            Self::Blk(load) => {
                let load = blk::Load { timing, ..load };
                Ok(Box::new(blk::run(&sockets[0], &load, &mut |_| {})?.unless_wrong()?))
            }
            Self::Net(load) => {
                let load = net::Load { timing, ..load };
                let target = net::Target { sockets: sockets.to_vec(), server: false };
                Ok(Box::new(net::run(&target, &load, meter, &mut |_| {})?.unless_wrong()?))
            }
            Self::Crypto(load) => {
                let load = crypto::Load { timing, ..load };
                let target = crypto::Target { socket: &sockets[0], control: None };
                Ok(Box::new(crypto::run(target, &load, &mut |_| {})?.unless_wrong()?))
            }
            Self::Compress(load) => {
                let load = compress::Load { timing, ..load };
                let target = compress::Target { socket: &sockets[0], control: None };
                Ok(Box::new(compress::run(target, &load, &mut |_| {})?.unless_wrong()?))
            }
            Self::VirtioUser(load) => {
                let Timing { runtime, warmup, cpus } = timing;
                let load = testpmd::Load { runtime, warmup, cpus, ..load };
                Ok(Box::new(testpmd::run(sockets, &load, meter)?))
            }
        }
    }
}
