//! A request as a self-contained unit of work.
