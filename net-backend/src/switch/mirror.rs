//! Copies of frames, to a port or to a pcapng file.

use super::filter::Direction;
use super::ports::PortId;
use crate::frame::Packet;

/// Where a worker hands copies of a frame. See [`Switch::mirror`](super::Switch::mirror).
#[derive(Debug)]
pub enum Mirror {
    /// Deliver the frame to this port as it is, without asking [`Switch::egress`](super::Switch::egress).
    Port(PortId),
    /// Record it.
    File(Capture),
}

/// A pcapng file that is being written by its own thread. Any worker may record.
#[derive(Debug)]
pub struct Capture {}

impl Capture {
    /// Copies the frame into the queue of the writer, as far as the snap length goes; never waits. A frame that finds no
    /// room is counted.
    pub fn record(&self, _port: PortId, _direction: Direction, _packet: &Packet<'_>) {}
}
