//! Sessions under every order of events.
