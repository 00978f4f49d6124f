//! Numbers as people read them.

const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `64 MiB`, `1.5 GiB`: exact where that is short, else to a tenth.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let exponent = bytes.checked_ilog2().unwrap_or(0) / 10;
    let unit = 1_u64 << (10 * exponent);
    let name = BYTE_UNITS[exponent as usize];
    let (whole, rest) = (bytes / unit, bytes % unit);
    let tenth = u128::from(rest) * 10 / u128::from(unit);
    match rest {
        0 => format!("{whole} {name}"),
        _ => format!("{whole}.{tenth} {name}"),
    }
}

/// `85 us`, `1.2 ms`, `3.0 s`.
#[must_use]
pub fn microseconds(microseconds: f64) -> String {
    match microseconds {
        short if short < 1e3 => format!("{short:.0} us"),
        middle if middle < 1e6 => format!("{:.1} ms", middle / 1e3),
        long => format!("{:.1} s", long / 1e6),
    }
}

/// A part of a whole in percent; `None` of nothing.
#[must_use]
pub fn percent(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| (1000.0 * part / whole).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            ((1 << 40) - 1, "1023.9 GiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        let times = [
            (0.0, "0 us"),
            (84.6, "85 us"),
            (1_234.0, "1.2 ms"),
            (3e6, "3.0 s"),
        ];
        for (time, text) in times {
            assert_eq!(microseconds(time), text);
        }
    }

    #[test]
    fn of_nothing_there_is_no_part() {
        assert_eq!(percent(1.0, 3.0), Some(33.3));
        assert_eq!(percent(0.0, 0.0), None);
    }
}
