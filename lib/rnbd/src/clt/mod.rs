//! The protocol of the client: sessions, devices, I/O.
