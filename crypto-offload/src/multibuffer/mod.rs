//! AES-CBC encryption of many requests at once.
