//! A file with everything that RPC clients ask and are answered.

use std::fs::File;
use std::io::Write;

use jiff::Zoned;
use rnbd_rpc::Traffic;

/// A line for each request and each reply, with its time.
pub(crate) fn to_file(file: File) -> impl Fn(Traffic, &str) + 'static {
    move |traffic, text| {
        let line = line(&Zoned::now(), traffic, text);
        // One call for a line, so that lines of several programs do not mix.
        if let Err(error) = (&file).write_all(line.as_bytes()) {
            log::warn!("cannot write the RPC log: {error}");
        }
    }
}

fn line(time: &Zoned, traffic: Traffic, text: &str) -> String {
    let time = time.strftime("[%Y-%m-%d %H:%M:%S.%6f]");
    let what = match traffic {
        Traffic::Request => "request",
        Traffic::Reply => "response",
    };
    format!("{time} {what}: {}\n", on_one_line(text))
}

/// Clients may indent what they send.
fn on_one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn a_line_says_when_what_and_which() {
        let time: Timestamp = "2026-01-02T03:04:05.000006Z".parse().unwrap();
        let time = time.to_zoned(TimeZone::UTC);
        assert_eq!(
            line(&time, Traffic::Request, "{\n  \"method\": \"m\"\n}"),
            "[2026-01-02 03:04:05.000006] request: { \"method\": \"m\" }\n"
        );
        let reply = line(&time, Traffic::Reply, "{\"id\":1}");
        assert!(reply.ends_with(" response: {\"id\":1}\n"), "{reply}");
    }
}
