//! Prometheus metrics: the text exposition format, version 0.0.4, written by hand and served by a few lines of HTTP.

mod exposition;
mod http;
mod render;

pub use exposition::{Exposition, Kind};
pub use http::{MAX_CLIENTS, Stream, serve_client};
pub use render::{BATCH_BUCKETS, process, snapshot};

/// Anything that has metrics of its own; [`crate::Application::metrics`] is the daemon's.
pub trait MetricsSource {
    /// Adds samples; must not block.
    fn collect(&self, out: &mut Exposition);
}

impl MetricsSource for crate::stats::Snapshot {
    fn collect(&self, out: &mut Exposition) {
        snapshot(out, self);
    }
}
