//! What the switch decides about a frame: where it goes, and whether it may.
