//! Engines by themselves: against published vectors, against independent implementations, over all shapes of memory.

mod asymmetric;
mod fallback;
mod fixtures;
mod harness;
mod limits;
mod oracle;
mod shapes;
mod vectors;
