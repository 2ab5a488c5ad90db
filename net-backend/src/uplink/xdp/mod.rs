//! An AF_XDP socket as the uplink.
