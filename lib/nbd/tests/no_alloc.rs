//! Serving requests allocates nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rnbd_base::{Nanos, Poll};
use rnbd_nbd::NbdServer;
use support::{FLUSH, FUA, READ, Setup, TRIM, WRITE, WRITE_ZEROES, option, request};

/// Counts what is allocated and freed while it is armed.
struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if ARMED.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are the same.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    ARMED.store(true, Ordering::Relaxed);
    for _ in 0..50 {
        for (bytes, reply_bytes) in &exchanges {
            exchange(&mut server, &mut client, bytes, &mut reply[..*reply_bytes]);
        }
    }
    ARMED.store(false, Ordering::Relaxed);
    assert_eq!(COUNT.load(Ordering::Relaxed), 0);
}
