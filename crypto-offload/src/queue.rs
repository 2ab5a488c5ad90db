//! One data queue: from chains to jobs and back to status bytes.
