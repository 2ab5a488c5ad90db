//! The pool of threads for asymmetric requests.
