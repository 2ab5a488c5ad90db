//! The drivers that put loads on backends.

use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;

use super::figure::Measured;
use crate::guest::Shown;
use crate::guest::options::Timing;
use crate::net::meter::Meter;
use crate::{blk, crypto, net, testpmd};

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
}

impl Load {
    /// Reads the options of `driver` as on its command line; the error is a sentence.
    pub fn parse(driver: Driver, text: &str) -> Result<Self, String> {
        Ok(match driver {
            Driver::Blk => Self::Blk(blk::Load::parse(text)?),
            Driver::Net => Self::Net(net::Load::parse(text)?),
            Driver::VirtioUser => Self::VirtioUser(testpmd::Load::parse(text)?),
            Driver::Crypto => Self::Crypto(crypto::Load::parse(text)?),
        })
    }

    /// Sockets of the backend that it is put on.
    pub fn sockets(&self) -> usize {
        match self {
            Self::Blk(_) | Self::Crypto(_) => 1,
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
            Self::VirtioUser(load) => {
                let Timing { runtime, warmup, cpus } = timing;
                let load = testpmd::Load { runtime, warmup, cpus, ..load };
                Ok(Box::new(testpmd::run(sockets, &load, meter)?))
            }
        }
    }
}
