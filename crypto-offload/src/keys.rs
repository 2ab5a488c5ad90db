//! Memory for keys: locked, left out of core files, wiped.
