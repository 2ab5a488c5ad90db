//! Commands of the control socket.
