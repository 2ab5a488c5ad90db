//! The driver, the load generator and the program against a backend in this process.

mod load;
mod memory_disk;
mod program;
