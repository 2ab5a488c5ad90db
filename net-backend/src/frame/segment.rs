//! Segmentation of TCP and UDP in software.
