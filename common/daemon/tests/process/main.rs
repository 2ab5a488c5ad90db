//! Whole processes: the example daemon `toy` and `vhostctl`, as a user meets them.

mod bad_usage;
mod control_socket;
mod life_cycle;
mod metrics;
mod sandbox;
mod systemd;
mod toy;
mod vhostctl;
