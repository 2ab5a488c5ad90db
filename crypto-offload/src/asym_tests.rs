//! The pool against keys that take their time.
