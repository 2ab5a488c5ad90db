//! Ethernet frames: headers, checksums, segmentation. Pure; knows no port and does no I/O.
