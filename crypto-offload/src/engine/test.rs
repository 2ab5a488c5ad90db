//! A test engine: asynchronous, out of order, and able to fail. The model for a hardware engine.
