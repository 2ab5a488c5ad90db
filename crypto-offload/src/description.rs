//! Session descriptions of the messages CREATE_CRYPTO_SESSION and CLOSE_CRYPTO_SESSION.
