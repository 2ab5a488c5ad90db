//! What the switch decides, seen from outside: frames in, verdicts and tag edits out.

mod admission;
mod bench;
mod forwarding;
mod policy;
mod property;
