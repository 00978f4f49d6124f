//! Addresses as the connection manager takes and tells them: IP, or `InfiniBand`'s own.

use std::net::SocketAddr;

use rdma_sys::rdma_port_space;
use rnbd_base::Gid;
use rnbd_fabric::Addr;
use socket2::SockAddr;

/// The family of `InfiniBand`'s own addresses.
const AF_IB: libc::sa_family_t = 27;
/// The port space of such addresses, as the upper bits of a service id whose lower bits are the port
/// (protocol.md 3.1).
const SERVICE_IDS: u64 = 0x0000_0000_013F_0000;
const WHOLE_SERVICE_ID: u64 = u64::MAX;
/// The partition that every port is in. Routes are looked for in it.
const DEFAULT_PKEY: u16 = 0xffff;

/// The kernel's `struct sockaddr_ib`. What is an array is in network byte order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct SockAddrIb {
    family: libc::sa_family_t,
    pkey: [u8; 2],
    flow_info: [u8; 4],
    gid: [u8; 16],
    service_id: [u8; 8],
    service_id_mask: [u8; 8],
    scope_id: u64,
}

const _: () = {
    assert!(size_of::<SockAddrIb>() == 48);
    assert!(size_of::<SockAddrIb>() <= size_of::<libc::sockaddr_storage>());
    assert!(align_of::<SockAddrIb>() <= align_of::<libc::sockaddr_storage>());
};

impl SockAddrIb {
    fn new(gid: Gid, port: u16) -> Self {
        Self {
            family: AF_IB,
            pkey: DEFAULT_PKEY.to_be_bytes(),
            flow_info: [0; 4],
            gid: gid.to_bytes(),
            service_id: (SERVICE_IDS | u64::from(port)).to_be_bytes(),
            service_id_mask: WHOLE_SERVICE_ID.to_be_bytes(),
            scope_id: 0,
        }
    }

    fn addr(&self) -> Addr {
        let [.., high, low] = self.service_id;
        Addr::Gid {
            gid: Gid::from_bytes(self.gid),
            port: u16::from_be_bytes([high, low]),
        }
    }
}

/// An address for a call of librdmacm.
#[derive(Debug)]
pub(super) enum RawAddr {
    Ip(SockAddr),
    Ib(SockAddrIb),
}

impl RawAddr {
    pub(super) fn new(addr: Addr) -> Self {
        match addr {
            Addr::Ip(addr) => Self::Ip(addr.into()),
            Addr::Gid { gid, port } => Self::Ib(SockAddrIb::new(gid, port)),
        }
    }

    /// Valid as long as `self`. librdmacm asks for pointers that it could write through, and only
    /// reads.
    pub(super) fn as_ptr(&self) -> *mut libc::sockaddr {
        match self {
            Self::Ip(addr) => addr.as_ptr().cast_mut().cast(),
            Self::Ib(addr) => (&raw const *addr).cast_mut().cast(),
        }
    }
}

/// Where the ports of addresses like this one are counted.
pub(super) fn port_space(addr: &Addr) -> rdma_port_space::Type {
    match addr {
        Addr::Ip(_) => rdma_port_space::RDMA_PS_TCP,
        Addr::Gid { .. } => rdma_port_space::RDMA_PS_IB,
    }
}

/// An address as librdmacm keeps it; IPv4 in IPv6's clothes is undressed. `None` where it keeps none.
pub(super) fn read(storage: &libc::sockaddr_storage) -> Option<Addr> {
    if storage.ss_family != AF_IB {
        return read_ip(storage).map(Addr::Ip);
    }
    let addr = (&raw const *storage).cast::<SockAddrIb>();
    // SAFETY: a storage is as long and as aligned, and any bytes are such an address.
    Some(unsafe { addr.read() }.addr())
}

fn read_ip(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from = (&raw const *storage).cast::<u8>();
    let init = |to: *mut socket2::SockAddrStorage, len: *mut libc::socklen_t| {
        let bytes = size_of::<libc::sockaddr_storage>();
        // SAFETY: both are a `sockaddr_storage`, and they are different ones.
        unsafe { std::ptr::copy_nonoverlapping(from, to.cast(), bytes) };
        let bytes = libc::socklen_t::try_from(bytes).expect("128");
        // SAFETY: `try_init` gives a valid place.
        unsafe { len.write(bytes) };
        Ok(())
    };
    // SAFETY: the closure initialises the whole storage.
    let (_, addr) = unsafe { SockAddr::try_init(init) }.ok()?;
    let addr = addr.as_socket()?;
    Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(addr: &RawAddr, len: usize) -> Vec<u8> {
        let start = addr.as_ptr().cast::<u8>();
        // SAFETY: no address of a family is shorter than its structure, whose length this is.
        unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
    }

    /// As librdmacm keeps an address.
    fn kept(addr: Addr, len: usize) -> libc::sockaddr_storage {
        let bytes = bytes_of(&RawAddr::new(addr), len);
        // SAFETY: all zeros are a storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let to = (&raw mut storage).cast::<u8>();
        // SAFETY: a storage has room for every family.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
        storage
    }

    fn gid(text: &str, port: u16) -> Addr {
        Addr::new(text.parse().unwrap(), port)
    }

    #[test]
    fn a_gid_has_the_bytes_that_the_kernels_driver_gives_it() {
        let mut expected = AF_IB.to_ne_bytes().to_vec();
        expected.extend([0xff, 0xff]); // partition
        expected.extend([0; 4]);
        expected.extend([
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0, 0x5a, 0xee, 0xfe, 0xaa, 0x20, 0xa2,
        ]);
        expected.extend([0, 0, 0, 0, 0x01, 0x3f, 0x04, 0xd2]); // service id, port 1234
        expected.extend([0xff; 8]); // all of it counts
        expected.extend([0; 8]);
        let addr = RawAddr::new(gid("gid:fe80::200:5aee:feaa:20a2", 1234));
        assert_eq!(bytes_of(&addr, 48), expected);
    }

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for addr in [
            gid("gid:fe80::1", 1234),
            gid("gid:::ffff:192.0.2.1", u16::MAX),
        ] {
            assert_eq!(read(&kept(addr, 48)), Some(addr));
            assert_eq!(port_space(&addr), rdma_port_space::RDMA_PS_IB);
        }
        let ip = |text: &str| Addr::Ip(text.parse().unwrap());
        let (v4, v6) = (ip("192.0.2.1:1234"), ip("[2001:db8::1]:1234"));
        assert_eq!(read(&kept(v4, 16)), Some(v4));
        assert_eq!(read(&kept(v6, 28)), Some(v6));
        assert_eq!(read(&kept(ip("[::ffff:192.0.2.1]:1234"), 28)), Some(v4));
        assert_eq!(port_space(&v6), rdma_port_space::RDMA_PS_TCP);
        // SAFETY: all zeros are a storage.
        let nothing: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        assert_eq!(read(&nothing), None);
    }
}
