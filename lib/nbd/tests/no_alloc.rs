//! Serving requests allocates nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rnbd_base::{Nanos, Poll};
use rnbd_nbd::NbdServer;
use support::{FLUSH, FUA, READ, Setup, TRIM, WRITE, WRITE_ZEROES, option, request};

/// Polls until the client has `reply.len()` bytes.
fn exchange(server: &mut NbdServer, client: &mut UnixStream, bytes: &[u8], reply: &mut [u8]) {
    client.write_all(bytes).unwrap();
    let mut got = 0;
    while got < reply.len() {
        let _ = server.poll(Nanos(1));
        match client.read(&mut reply[got..]) {
            Ok(0) => panic!("the server closed the connection"),
            Ok(bytes) => got += bytes,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn requests_are_served_without_an_allocation() {
    let setup = Setup::new();
    let (mut server, _handle, _ended) = setup.server(setup.options("Malloc0"));
    let mut client = UnixStream::connect(setup.path("Malloc0.sock")).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut reply = vec![0; 64 << 10];
    exchange(&mut server, &mut client, &[0, 0, 0, 3], &mut reply[..18]);
    exchange(&mut server, &mut client, &option(8, &[]), &mut reply[..20]);
    exchange(&mut server, &mut client, &option(1, &[]), &mut reply[..10]);

    let write = [request(0, WRITE, 1, 0, 32768), vec![7; 32768]].concat();
    let exchanges = [
        (write, 16),
        (request(0, READ, 2, 0, 32768), 28 + 32768),
        (request(FUA, TRIM, 3, 0, 4096), 16),
        (request(0, WRITE_ZEROES, 4, 0, 4096), 16),
        (request(0, FLUSH, 5, 0, 0), 16),
        (request(0, READ, 6, 1, 1), 26),
    ];
    // Of this thread only: the test harness has one of its own.
    let counted = allocation_counter::measure(|| {
        for _ in 0..50 {
            for (bytes, reply_bytes) in &exchanges {
                exchange(&mut server, &mut client, bytes, &mut reply[..*reply_bytes]);
            }
        }
    });
    assert_eq!(counted.count_total, 0);
}
