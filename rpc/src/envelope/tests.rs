use serde_json::json;

use super::*;

fn single(text: &str) -> Parsed {
    match Incoming::parse(text.as_bytes()).unwrap() {
        Incoming::Single(parsed) => parsed,
        Incoming::Batch(_) => panic!("{text} is a batch"),
    }
}

fn id(text: &str) -> Id {
    Id(Some(text.into()))
}

fn invalid(id: Id) -> Parsed {
    Err(BadRequest::invalid(id))
}

#[test]
fn a_request_needs_a_method_and_nothing_else() {
    let request = single(r#" {"method":"m"} "#).unwrap();
    assert_eq!((request.method.as_str(), request.params), ("m", None));
    assert_eq!(request.id, Id(None));
    let request = single(r#"{"id":null,"params":null,"method":"m","jsonrpc":"2.0"}"#).unwrap();
    assert_eq!((request.id, request.params), (Id(None), None));
    let request = single(r#"{"method":"m","params":{"a":[1]},"id":1}"#).unwrap();
    assert_eq!(request.params, Some(json!({"a": [1]})));
}

#[test]
fn envelope_violations_are_told_without_the_id() {
    let texts = [
        r#"{"id":1}"#,
        r#"{"id":1,"method":5}"#,
        r#"{"id":1,"method":null}"#,
        r#"{"id":1,"method":"m","extra":0}"#,
        r#"{"id":1,"id":2,"method":"m"}"#,
        r#"{"id":1,"method":"m","method":"m"}"#,
        r#"{"id":1,"method":"m","jsonrpc":"1.0"}"#,
        r#"{"id":1,"method":"m","jsonrpc":2.0}"#,
        r#"{"id":1,"method":"m","jsonrpc":null}"#,
        r#"{"id":true,"method":"m"}"#,
        r#"{"id":[1],"method":"m"}"#,
        r#"{"id":{},"method":"m"}"#,
        "5",
        "null",
        "true",
        r#""m""#,
    ];
    for text in texts {
        assert_eq!(single(text), invalid(Id(None)), "{text}");
    }
}

#[test]
fn bad_params_are_told_with_the_id() {
    for params in ["5", "true", r#""x""#] {
        let text = format!(r#"{{"id":7,"method":"m","params":{params}}}"#);
        assert_eq!(single(&text), invalid(id("7")), "{text}");
    }
    let duplicate = single(r#"{"id":7,"method":"m","params":{"a":{"b":1,"b":2}}}"#).unwrap_err();
    assert_eq!((duplicate.id, duplicate.error.code), (id("7"), -32602));
    assert!(duplicate.error.message.contains("'b' is there twice"));
}

#[test]
fn ids_keep_their_text() {
    for text in [
        "1.50",
        "-0",
        "1e5",
        "99999999999999999999",
        r#""a\u0041\"""#,
    ] {
        let request = single(&format!(r#"{{"method":"m","id":{text}}}"#)).unwrap();
        let reply = request.id.reply(&Ok(json!(true))).unwrap();
        assert_eq!(
            reply,
            format!(r#"{{"jsonrpc":"2.0","id":{text},"result":true}}"#)
        );
    }
}

#[test]
fn without_an_id_successes_are_silent_and_errors_are_not() {
    assert_eq!(Id(None).reply(&Ok(json!(1))), None);
    let error = RpcError::new(-19, "No \"such\" device");
    assert_eq!(
        Id(None).reply(&Err(error)).unwrap(),
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-19,"message":"No \"such\" device"}}"#
    );
}

#[test]
fn a_batch_is_read_element_by_element() {
    let Ok(Incoming::Batch(elements)) = Incoming::parse(br#"[1,{"method":"m","id":2},[]]"#) else {
        panic!("not a batch");
    };
    assert_eq!(
        (&elements[0], &elements[2]),
        (&invalid(Id(None)), &invalid(Id(None)))
    );
    assert_eq!(elements[1].as_ref().unwrap().id, id("2"));
    assert_eq!(
        Incoming::parse(b" [ ] "),
        Ok(Incoming::Single(invalid(Id(None))))
    );
}

#[test]
fn what_only_looks_complete_is_malformed() {
    for text in ["[01]", "[tru]", "[\"\\x\"]", "[1.]", "[\"\\u12\"]"] {
        assert_eq!(Incoming::parse(text.as_bytes()), Err(Malformed), "{text}");
    }
    assert_eq!(Incoming::parse(b"[\"\xff\"]"), Err(Malformed));
}
