//! The configuration space, which is also the answer to GET_CONFIG.
