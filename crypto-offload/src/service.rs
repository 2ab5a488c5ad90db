//! What one worker does.
