//! Asymmetric requests.
