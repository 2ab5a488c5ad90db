//! The offload matrix: every combination of what a sender left undone and what a receiver can take.

mod frames;
mod hostile;
mod matrix;
mod random;
mod reference;
mod train;
mod verdict;
