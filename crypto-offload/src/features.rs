//! Which features the device offers, and the test of each.
