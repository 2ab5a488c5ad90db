//! Verbs of the control socket.
