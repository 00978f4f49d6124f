use rnbd_mem::{Buffer, Memory, MemoryConfig, Pages};

use super::*;

const DOMAIN: DomainId = DomainId {
    index: 0,
    generation: 1,
};
const OTHER_DOMAIN: DomainId = DomainId {
    index: 1,
    generation: 1,
};
const CONN: ConnId = ConnId {
    index: 0,
    generation: 1,
};
const OTHER_CONN: ConnId = ConnId {
    index: 0,
    generation: 2,
};

struct World {
    keys: Keys,
    buffer: Buffer,
}

impl World {
    fn new() -> Self {
        let memory = Memory::new(MemoryConfig::default());
        Self {
            keys: Keys::new(),
            buffer: memory.alloc("test", 4096, Pages::Small).unwrap(),
        }
    }

    fn region(&mut self, access: Access) -> MemoryKey {
        let span = self.buffer.span();
        self.keys.register(DOMAIN, span, access).unwrap()
    }

    fn window(&mut self, kind: WindowKind) -> WindowId {
        self.keys.alloc_window(DOMAIN, kind).unwrap()
    }

    fn bind(&mut self, window: WindowId, mr: MrId) -> u32 {
        let part = self.buffer.span().slice(512, 512).unwrap();
        self.keys.bind(CONN, DOMAIN, window, mr, part).unwrap()
    }

    fn find(&self, rkey: u32, offset: u64, len: u32) -> bool {
        let addr = self.buffer.span().addr().wrapping_add(offset);
        self.keys.find(CONN, DOMAIN, rkey, addr, len).is_ok()
    }
}

#[test]
fn a_region_opens_its_range_to_its_domain_only() {
    let mut world = World::new();
    let key = world.region(Access::RemoteWrite);
    assert!(world.find(key.rkey, 0, 4096) && world.find(key.rkey, 4095, 1));
    assert!(!world.find(key.rkey, 1, 4096) && !world.find(key.rkey, 4096, 1));
    assert!(!world.find(key.rkey, u64::MAX, 2) && !world.find(key.rkey, 0, u32::MAX));
    assert!(!world.find(key.rkey ^ 1, 0, 1) && !world.find(key.rkey + 256, 0, 1));
    assert!(!world.find(0, 0, 1) && !world.find(u32::MAX, 0, 1));
    let addr = world.buffer.span().addr();
    let elsewhere = world.keys.find(CONN, OTHER_DOMAIN, key.rkey, addr, 1);
    assert!(elsewhere.is_err());
}

#[test]
fn a_local_region_is_not_reachable_but_its_windows_are() {
    let mut world = World::new();
    let key = world.region(Access::Local);
    assert!(!world.find(key.rkey, 0, 1));
    let window = world.window(WindowKind::Domain);
    let rkey = world.bind(window, key.mr);
    assert!(world.find(rkey, 512, 512));
    assert!(!world.find(rkey, 511, 1) && !world.find(rkey, 1023, 2));
}

#[test]
fn every_bind_makes_a_new_key_and_kills_the_old_one() {
    let mut world = World::new();
    let mr = world.region(Access::Local).mr;
    let window = world.window(WindowKind::Domain);
    let first = world.bind(window, mr);
    let second = world.bind(window, mr);
    assert_ne!(first, second);
    assert!(!world.find(first, 512, 1) && world.find(second, 512, 1));
    world.keys.invalidate(window).unwrap();
    assert!(!world.find(second, 512, 1));
}

#[test]
fn a_connection_window_serves_one_connection_and_its_peer_may_close_it() {
    let mut world = World::new();
    let mr = world.region(Access::Local).mr;
    let window = world.window(WindowKind::Connection);
    let rkey = world.bind(window, mr);
    let addr = world.buffer.span().addr() + 512;
    assert!(world.keys.find(OTHER_CONN, DOMAIN, rkey, addr, 1).is_err());
    assert!(world.keys.invalidate_by_peer(OTHER_CONN, rkey).is_err());
    assert!(world.find(rkey, 512, 1));
    world.keys.invalidate_by_peer(CONN, rkey).unwrap();
    assert!(!world.find(rkey, 512, 1));
    assert!(world.keys.invalidate_by_peer(CONN, rkey).is_err());
}

#[test]
fn a_peer_closes_neither_regions_nor_domain_windows() {
    let mut world = World::new();
    let key = world.region(Access::RemoteWrite);
    let window = world.window(WindowKind::Domain);
    let rkey = world.bind(window, key.mr);
    assert!(world.keys.invalidate_by_peer(CONN, rkey).is_err());
    assert!(world.keys.invalidate_by_peer(CONN, key.rkey).is_err());
    assert!(world.keys.invalidate_by_peer(CONN, 0).is_err());
    assert!(world.keys.invalidate_by_peer(CONN, u32::MAX).is_err());
}

#[test]
fn deregistering_closes_the_windows_on_the_region() {
    let mut world = World::new();
    let mr = world.region(Access::Local).mr;
    let other = world.region(Access::Local).mr;
    let window = world.window(WindowKind::Domain);
    let kept = world.window(WindowKind::Domain);
    let (rkey, kept_rkey) = (world.bind(window, mr), world.bind(kept, other));
    assert_eq!(world.keys.deregister(mr), Some(DOMAIN));
    assert!(!world.find(rkey, 512, 1) && world.find(kept_rkey, 512, 1));
    assert_eq!(world.keys.deregister(mr), None);
    let part = world.buffer.span();
    let bound = world.keys.bind(CONN, DOMAIN, window, mr, part);
    assert_eq!(bound, Err(PostError::NoWindow));
}

#[test]
fn a_window_opens_nothing_outside_its_region_or_domain() {
    let mut world = World::new();
    let span = world.buffer.span();
    let small = span.slice(0, 100).unwrap();
    let mr = world
        .keys
        .register(DOMAIN, small, Access::Local)
        .unwrap()
        .mr;
    let window = world.window(WindowKind::Domain);
    for part in [span, span.slice(100, 1).unwrap()] {
        let bound = world.keys.bind(CONN, DOMAIN, window, mr, part);
        assert_eq!(bound, Err(PostError::NoWindow));
    }
    let bound = world.keys.bind(CONN, OTHER_DOMAIN, window, mr, small);
    assert_eq!(bound, Err(PostError::NoWindow));
}

#[test]
fn a_reused_slot_has_another_key() {
    let mut world = World::new();
    let first = world.region(Access::RemoteWrite);
    world.keys.deregister(first.mr);
    let second = world.region(Access::RemoteWrite);
    assert_eq!(first.mr.index, second.mr.index);
    assert_ne!(first.rkey, second.rkey);
    assert!(!world.find(first.rkey, 0, 1));
}
