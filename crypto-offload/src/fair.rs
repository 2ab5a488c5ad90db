//! Fair share between devices and queues.
