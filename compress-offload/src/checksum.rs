//! CRC-32, Adler-32 and xxHash of the uncompressed data.
