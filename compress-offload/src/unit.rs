//! A device as all workers know it.
