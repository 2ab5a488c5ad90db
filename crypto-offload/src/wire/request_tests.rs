//! Headers of every shape.
