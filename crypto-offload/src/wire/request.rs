//! Data requests.
