/// A size in bytes, with an optional suffix K, M or G.
///
/// # Errors
/// What is wrong, for the command line's message.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes with an optional suffix K, M or G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than 64 bits can say".to_owned())
}

/// The size of one I/O.
///
/// # Errors
/// As [`parse_size`]; an I/O has 512 bytes to 1 GiB.
pub(crate) fn parse_io_size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| (512..=1 << 30).contains(bytes))
        .ok_or_else(|| "an I/O has 512 bytes to 1 GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_a_suffix() {
        let sizes = ["512", "4k", "128K", "1M", "2g"].map(parse_size);
        assert_eq!(sizes, [512, 4096, 131_072, 1 << 20, 2 << 30].map(Ok));
        for bad in ["", "k", "4kb", "-1", "99999999999G", "ü"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_io_size("256").is_err());
        assert!(parse_io_size("2G").is_err());
    }
}
