//! Byte layouts of RTRS and RNBD messages and of the immediate.
