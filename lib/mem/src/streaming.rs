//! Copying past the caches.

/// How much is streamed; an ordinary copy serves for the rest. Larger stores were not faster over TCP,
/// some slower (docs/benchmarks.md).
const STREAMED_BYTES: std::ops::RangeInclusive<usize> = 512..=32 << 10;

/// Copies `len` bytes from `from` to `to`, which then are not in the CPU's caches: neither was what
/// lay there before read from memory, as an ordinary store does, nor is anything pushed out.
///
/// # Safety
/// Both name `len` mapped bytes, those at `to` writable, with no reference to them. They may
/// overlap.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let apart = from.addr().abs_diff(to.addr()) >= len;
    let streamed = if apart && STREAMED_BYTES.contains(&len) {
        // SAFETY: as the caller's, and they do not overlap.
        unsafe { stream(from, to, len) }
    } else {
        0
    };
    let (from, to) = (from.wrapping_add(streamed), to.wrapping_add(streamed));
    // SAFETY: what is left lies within what the caller named.
    unsafe { std::ptr::copy(from, to, len - streamed) };
}

/// Copies as many bytes from the start as can be streamed; returns how many that are.
///
/// # Safety
/// As for [`copy`], and they do not overlap.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn stream(from: *const u8, to: *mut u8, len: usize) -> usize {
    use std::arch::x86_64::{__m128i, _mm_sfence, _mm_stream_si128};
    /// Written whole, or else it is read first after all.
    type CacheLine = [__m128i; 4];
    const LINE_BYTES: usize = size_of::<CacheLine>();

    if !to.addr().is_multiple_of(LINE_BYTES) {
        return 0;
    }
    let lines = len / LINE_BYTES;
    for offset in (0..lines * LINE_BYTES).step_by(LINE_BYTES) {
        let source = from.wrapping_add(offset);
        // SAFETY: the line lies within what the caller named.
        let words = unsafe { source.cast::<CacheLine>().read_unaligned() };
        #[expect(clippy::cast_ptr_alignment, reason = "checked above")]
        let target = to.wrapping_add(offset).cast::<__m128i>();
        for (at, word) in words.into_iter().enumerate() {
            // SAFETY: as above, and aligned to a line.
            unsafe { _mm_stream_si128(target.wrapping_add(at), word) };
        }
    }
    // Streamed stores are not ordered with any others: without this another core could be told of
    // the new bytes and read the old ones.
    // SAFETY: SSE is part of the architecture.
    unsafe { _mm_sfence() };
    lines * LINE_BYTES
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn stream(_from: *const u8, _to: *mut u8, _len: usize) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 8192;

    /// Bytes of which no two neighbouring lines are alike.
    fn pattern() -> Vec<u8> {
        (0..=250).cycle().take(BYTES).collect()
    }

    /// Copies within one piece of memory, and expects what an ordinary copy does.
    fn assert_copies(from: usize, to: usize, len: usize) {
        let mut expected = pattern();
        expected.copy_within(from..from + len, to);
        // Aligned to a cache line.
        let mut room = vec![0_u8; BYTES + 64];
        let start = room.as_ptr().align_offset(64);
        let memory = &mut room[start..start + BYTES];
        memory.copy_from_slice(&pattern());
        let base = memory.as_mut_ptr();
        // SAFETY: both lie within the memory.
        unsafe { copy(base.wrapping_add(from), base.wrapping_add(to), len) };
        assert!(memory == expected, "{len} bytes from {from} to {to}");
    }

    #[test]
    fn every_byte_arrives_and_no_other_changes() {
        for len in [0, 1, 63, 64, 511, 512, 513, 575, 1000, 1024, 4000] {
            for from in [0, 1, 8, 64] {
                for to in [4096, 4097, 4096 + 16, 4096 + 64] {
                    assert_copies(from, to, len);
                }
            }
        }
    }

    #[test]
    fn overlapping_bytes_arrive_too() {
        for (from, to) in [(0, 64), (64, 0), (0, 4032), (128, 128), (4032, 64)] {
            assert_copies(from, to, 4096);
        }
    }
}
