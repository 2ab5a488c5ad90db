//! The device as docs/compress-device.md specifies it, through real rings.

mod features;
mod foreign;
mod formats;
mod frontend;
mod hostile;
mod load;
mod requests;
mod samples;
mod specification;
mod streams;
