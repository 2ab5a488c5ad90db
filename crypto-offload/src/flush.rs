//! When to submit and when to look for results.
