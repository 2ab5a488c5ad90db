//! What the fuzz targets share: an input reader, and worlds of guest memory and rings that check themselves.

pub mod blk;
pub mod compress;
pub mod crypto;
pub mod dummy;
pub mod engine;
pub mod frame;
pub mod guest;
pub mod input;
pub mod net;
pub mod peer;
pub mod ring;
