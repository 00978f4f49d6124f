//! Framing, envelopes, batches and limits, on a real socket (spdk-conventions.md A.2 and B).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::support::{Closing, Raw, Server};

fn ok(id: &str, result: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

fn error(id: &str, code: i32, message: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#)
}

fn echo(id: &str, text: &str) -> String {
    format!(r#"{{"method":"echo","params":{{"text":"{text}"}},"id":{id}}}"#)
}

#[test]
fn replies_are_compact_and_end_in_one_newline() {
    let server = Server::start();
    let mut raw = server.connect();
    raw.send("{\n  \"jsonrpc\": \"2.0\",\n  \"method\": \"at_any_time\",\n  \"id\": 1\n}");
    let expected = ok("1", "true") + "\n";
    let mut reply = vec![0; expected.len()];
    raw.stream.read_exact(&mut reply).unwrap();
    assert_eq!(String::from_utf8(reply).unwrap(), expected);
    assert_eq!(raw.ask(&echo("2", "x")), ok("2", "\"x\""));
}

#[test]
fn values_need_nothing_between_them_and_may_dribble() {
    let server = Server::start();
    let requests = echo("1", "a") + &echo("2", "b") + " \r\n\t" + &echo("3", "c");
    let expected = [ok("1", "\"a\""), ok("2", "\"b\""), ok("3", "\"c\"")];
    assert_eq!(server.exchange(&requests), expected);

    let mut raw = server.connect();
    for byte in requests.chars() {
        raw.send(&byte.to_string());
    }
    assert_eq!([raw.line(), raw.line(), raw.line()], expected);
}

#[test]
fn replies_come_in_the_order_of_completion() {
    let server = Server::start();
    let mut raw = server.connect();
    raw.send(r#"{"method":"hold","id":9}{"method":"hold","id":"b"}"#);
    assert_eq!(raw.ask(&echo("10", "first")), ok("10", "\"first\""));
    raw.send(r#"{"method":"release","id":11}"#);
    // The calls that are released and the one that releases them complete together.
    let expected = [
        ok("\"b\"", "\"released\""),
        ok("11", "2"),
        ok("9", "\"released\""),
    ];
    assert_eq!(sorted([raw.line(), raw.line(), raw.line()]), expected);
}

fn sorted<const N: usize>(mut lines: [String; N]) -> [String; N] {
    lines.sort();
    lines
}

#[test]
fn any_number_of_requests_may_be_in_flight() {
    let server = Server::start();
    let mut raw = server.connect();
    for id in 0..3000 {
        raw.send(&format!(r#"{{"method":"hold","id":{id}}}"#));
    }
    raw.send(r#"{"method":"release","id":3000}"#);
    let mut expected: BTreeSet<String> = (0..3000)
        .map(|id| ok(&id.to_string(), "\"released\""))
        .collect();
    expected.insert(ok("3000", "3000"));
    let received: BTreeSet<String> = (0..=3000).map(|_| raw.line()).collect();
    assert!(received == expected);
}

#[test]
fn envelopes_are_decoded_strictly() {
    let invalid = |id| error(id, -32600, "Invalid request");
    let rows = [
        (r#"{"id":1}"#, invalid("null")),
        (r#"{"id":1,"method":1}"#, invalid("null")),
        (
            r#"{"id":1,"method":"at_any_time","extra":1}"#,
            invalid("null"),
        ),
        (
            r#"{"id":1,"method":"at_any_time","jsonrpc":"1.0"}"#,
            invalid("null"),
        ),
        (r#"{"id":{},"method":"at_any_time"}"#, invalid("null")),
        (
            r#"{"id":1,"method":"at_any_time","params":"x"}"#,
            invalid("1"),
        ),
        (
            r#"{"id":1,"method":"at_any_time","params":null}"#,
            ok("1", "true"),
        ),
        (
            r#"{"id":1,"method":"at_any_time","jsonrpc":"2.0"}"#,
            ok("1", "true"),
        ),
        (r#"{"id":1.50,"method":"at_any_time"}"#, ok("1.50", "true")),
        (r#"{"id":-7,"method":"at_any_time"}"#, ok("-7", "true")),
        (
            r#"{"id":"a\u00e4","method":"at_any_time"}"#,
            ok(r#""a\u00e4""#, "true"),
        ),
        (r#""at_any_time""#, invalid("null")),
        ("true ", invalid("null")),
        ("5 ", invalid("null")),
    ];
    let server = Server::start();
    for (request, reply) in rows {
        assert_eq!(server.exchange(request), [reply], "{request}");
    }
}

#[test]
fn without_an_id_only_errors_are_answered() {
    let server = Server::start();
    let requests =
        r#"{"method":"at_any_time"}{"method":"at_any_time","id":null}{"method":"nothing"}"#;
    let expected = [error("null", -32601, "Method not found")];
    assert_eq!(server.exchange(requests), expected);
}

#[test]
fn a_batch_is_answered_by_one_array_in_the_order_of_completion() {
    let server = Server::start();
    let mut raw = server.connect();
    let batch = format!(
        r#"[{{"method":"hold","id":1}},{},{{"method":"at_any_time"}},5,{{"method":"nothing","id":3}}]"#,
        echo("2", "b")
    );
    raw.send(&batch);
    // Once this is answered, all but the call that is held are done.
    assert_eq!(raw.ask(&echo("4", "x")), ok("4", "\"x\""));
    assert_eq!(
        server.exchange(r#"{"method":"release","id":5}"#),
        [ok("5", "1")]
    );
    let expected = [
        ok("2", "\"b\""),
        error("null", -32600, "Invalid request"),
        error("3", -32601, "Method not found"),
        ok("1", "\"released\""),
    ];
    assert_eq!(raw.line(), format!("[{}]", expected.join(",")));
}

#[test]
fn batches_without_replies_and_without_elements() {
    let server = Server::start();
    let rows: [(&str, Vec<String>); 3] = [
        (
            r#"[{"method":"at_any_time"},{"method":"at_any_time","id":null}]"#,
            vec![],
        ),
        ("[]", vec![error("null", -32600, "Invalid request")]),
        (
            "[1]",
            vec![format!("[{}]", error("null", -32600, "Invalid request"))],
        ),
    ];
    for (batch, replies) in rows {
        assert_eq!(server.exchange(batch), replies, "{batch}");
    }
}

#[test]
fn malformed_json_closes_the_connection_and_drops_what_was_not_sent() {
    let nested = "[".repeat(65);
    let many = format!("[{}]", vec!["1"; 8191].join(","));
    let texts = [
        "{]",
        "{\"method\":}",
        "// comment\n{}",
        "[01]",
        &nested,
        &many,
    ];
    for text in texts {
        let server = Server::start();
        let mut raw = server.connect();
        raw.send(&(echo("1", "unsent") + text));
        assert_eq!(raw.closing(), Closing::End, "{text}");
    }
}

#[test]
fn a_malformed_value_harms_no_other_connection() {
    let server = Server::start();
    let (mut bad, mut good) = (server.connect(), server.connect());
    good.send(&echo("1", "half")[..20]);
    bad.send("}");
    assert_eq!(bad.closing(), Closing::End);
    assert_eq!(good.ask(&echo("1", "half")[20..]), ok("1", "\"half\""));
}

#[test]
fn a_request_that_fills_the_receive_buffer_resets_the_connection() {
    let server = Server::start();
    for filler in ["x", " "] {
        let mut raw = server.connect();
        let start = if filler == "x" { "\"" } else { "" };
        let text = start.to_owned() + &filler.repeat(300 << 10);
        // The server may be gone before all is sent.
        let _ = raw.stream.write_all(text.as_bytes());
        assert_eq!(raw.closing(), Closing::Reset, "{filler}");
    }
}

#[test]
fn a_request_just_below_the_receive_buffer_is_served() {
    let server = Server::start();
    let text = "x".repeat((256 << 10) - echo("1", "").len() - 1);
    let reply = server.connect().ask(&echo("1", &text));
    assert_eq!(reply.len(), ok("1", "\"\"").len() + text.len());
}

#[test]
fn large_replies_arrive_whole_and_too_large_ones_become_an_error() {
    let server = Server::start();
    let mut raw = server.connect();
    let repeat = |id: u32, times: u32| {
        format!(
            r#"{{"method":"echo","params":{{"text":"0123456789abcdef","times":{times}}},"id":{id}}}"#
        )
    };
    raw.send(&(repeat(1, 500_000) + &repeat(2, 2 << 20) + &repeat(3, 1)));
    let mut received = std::io::BufReader::new(&raw.stream);
    let mut line = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut received, &mut line).unwrap();
        line
    };
    assert_eq!(line().len(), 8_000_000 + ok("1", "\"\"").len() + 1);
    let text = "the reply has more than 33554432 bytes";
    assert_eq!(line().trim_end(), error("2", -32603, text));
    assert_eq!(line().trim_end(), ok("3", "\"0123456789abcdef\""));
}

#[test]
fn a_half_closed_client_gets_what_was_ready_and_loses_what_completes_later() {
    let server = Server::start();
    let mut raw = server.connect();
    assert_eq!(
        raw.ask(&(r#"{"method":"hold","id":1}"#.to_owned() + &echo("2", "x"))),
        ok("2", "\"x\"")
    );
    raw.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.closing(), Closing::End);
    // The call itself goes on, and somebody else can end it.
    assert_eq!(
        server.exchange(r#"{"method":"release","id":3}"#),
        [ok("3", "1")]
    );
}

#[test]
fn a_client_that_closes_its_side_at_once_is_answered() {
    let server = Server::start();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(server.path()).unwrap();
        let requests = echo("1", "x") + r#"{"method":"nothing","id":2}"#;
        stream.write_all(requests.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let expected = [ok("1", "\"x\""), error("2", -32601, "Method not found")];
        assert_eq!(answer, expected.map(|line| line + "\n").concat());
    }
}

#[test]
fn the_sixty_fifth_client_waits_until_another_leaves() {
    let server = Server::start();
    let mut clients: Vec<Raw> = (0..64).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask(&echo("1", "in")), ok("1", "\"in\""));
    }
    let mut waiting = server.connect();
    waiting.send(&echo("2", "late"));
    // Nothing came for it while all others were served once more.
    for client in &mut clients {
        assert_eq!(client.ask(&echo("3", "still")), ok("3", "\"still\""));
    }
    waiting.stream.set_nonblocking(true).unwrap();
    assert!(waiting.stream.read(&mut [0]).is_err());
    waiting.stream.set_nonblocking(false).unwrap();
    clients.pop();
    assert_eq!(waiting.line(), ok("2", "\"late\""));
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let server = Server::start();
    let raw = server.connect();
    let request = r#"{"method":"echo","params":{"text":"0123456789abcdef","times":60000},"id":1}"#;
    raw.stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // The server stops at about a megabyte of replies; what can be sent is then bounded by the
    // sockets' buffers.
    while sent < 100_000 && (&raw.stream).write_all(request.as_bytes()).is_ok() {
        sent += 1;
        assert_eq!(server.exchange(&echo("2", "y")), [ok("2", "\"y\"")]);
    }
    assert!(sent < 100_000);
}

#[test]
fn a_client_that_vanishes_harms_nobody() {
    let server = Server::start();
    for _ in 0..100 {
        let stream = UnixStream::connect(server.path()).unwrap();
        (&stream).write_all(echo("1", "gone").as_bytes()).unwrap();
    }
    assert_eq!(server.exchange(&echo("2", "here")), [ok("2", "\"here\"")]);
}
