use proptest::prelude::*;

use super::*;

/// The lengths of all values, as they come when the bytes arrive in pieces.
fn lengths(bytes: &[u8], piece: usize) -> Result<Vec<usize>, Malformed> {
    let (mut scanner, mut start, mut lengths) = (Scanner::default(), 0, Vec::new());
    let mut arrived = 0;
    while arrived < bytes.len() {
        arrived = bytes.len().min(arrived + piece);
        while let Some(length) = scanner.next_value(&bytes[start..arrived])? {
            start += length;
            lengths.push(length);
        }
    }
    Ok(lengths)
}

fn all(text: &str) -> Result<Vec<usize>, Malformed> {
    let whole = lengths(text.as_bytes(), text.len().max(1));
    assert_eq!(lengths(text.as_bytes(), 1), whole, "{text}");
    whole
}

#[test]
fn values_end_at_their_last_bracket_or_quote_whatever_follows() {
    assert_eq!(all(r#"{"a":[1,"}"]} [] "x\"y"{"#), Ok(vec![13, 3, 7]));
    assert_eq!(all("  {}{}\n{}"), Ok(vec![4, 2, 3]));
    assert_eq!(all("{\r\n \"a\" : { } ,\t\"b\":[ ]}"), Ok(vec![24]));
}

#[test]
fn scalars_end_at_the_byte_after_them() {
    assert_eq!(all("true 12"), Ok(vec![4]));
    assert_eq!(all("-1.5e+3{}"), Ok(vec![7, 2]));
}

#[test]
fn incomplete_values_wait() {
    for text in [
        "", " ", "{", "[1", "[1,", "{\"a", "{\"a\"", "{\"a\":", "\"\\", "tru",
    ] {
        assert_eq!(all(text), Ok(vec![]), "{text}");
    }
}

#[test]
fn what_cannot_become_json_is_refused_before_it_ends() {
    let texts = [
        "}",
        "]",
        ":",
        ",",
        "{,",
        "{1",
        "{\"a\"}",
        "{\"a\",",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 2",
        "[,",
        "[1,]",
        "[1}",
        "{\"a\":1]",
        "[1 2",
        "[1:",
        "// x",
        "/* x */{}",
        "'a'",
        "{a:1}",
        "[\"a\nb\"]",
        "\u{e4}",
        "[1]]",
    ];
    for text in texts {
        assert_eq!(all(text), Err(Malformed), "{text}");
    }
}

#[test]
fn sixty_four_levels_and_no_more() {
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert_eq!(all(&nested(64)), Ok(vec![128]));
    assert_eq!(all(&nested(65)), Err(Malformed));
}

#[test]
fn eight_thousand_one_hundred_and_ninety_two_tokens_and_no_more() {
    // The brackets are two of them.
    let array = |items: usize| format!("[{}]", vec!["1"; items].join(","));
    assert!(all(&array(8190)).is_ok());
    assert_eq!(all(&array(8191)), Err(Malformed));
    let object = |members: usize| {
        let members: Vec<String> = (0..members).map(|n| format!("\"{n}\":{n}")).collect();
        format!("{{{}}}", members.join(","))
    };
    assert!(all(&object(4095)).is_ok());
    assert_eq!(all(&object(4096)), Err(Malformed));
    assert_eq!(all(&"1 ".repeat(9000)).map(|values| values.len()), Ok(9000));
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec((".{0,4}", inner), 0..5)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_value_is_found_in_any_pieces(values in prop::collection::vec(json(), 1..6), piece in 1usize..20) {
        let texts: Vec<String> = values.iter().map(|value| format!("{value}\n")).collect();
        let stream = texts.concat();
        let found = lengths(stream.as_bytes(), piece).unwrap();
        prop_assert_eq!(found.len(), values.len());
        let mut start = 0;
        for (length, value) in found.into_iter().zip(values) {
            let read: serde_json::Value = serde_json::from_str(&stream[start..start + length]).unwrap();
            prop_assert_eq!(read, value);
            start += length;
        }
    }

    #[test]
    fn no_bytes_panic_and_the_pieces_make_no_difference(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]",:\ 1te"#.to_vec())], 0..60),
        piece in 1usize..8,
    ) {
        prop_assert_eq!(lengths(&bytes, piece), lengths(&bytes, 60));
    }
}
