//! The protocol of the server: sessions, devices, I/O.
