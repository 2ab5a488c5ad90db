//! End-to-end tests (library).
