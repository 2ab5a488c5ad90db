//! The description of a device on the command line and in the configuration file.
