//! The data path of one ring: burst, check, bounce, complete.
