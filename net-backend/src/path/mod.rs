//! The data path: from a transmit ring through the switch into receive rings.
