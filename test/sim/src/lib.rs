//! Target and initiator over a simulated fabric, on virtual time.
