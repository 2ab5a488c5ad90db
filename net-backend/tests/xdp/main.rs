//! AF_XDP uplinks on real veth pairs, each test in network namespaces of its own.

mod checksum;
mod errors;
mod filter;
mod frames;
mod lifecycle;
mod support;
