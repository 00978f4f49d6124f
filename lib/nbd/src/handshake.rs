//! The fixed newstyle handshake, without I/O: bytes in, bytes out.
//!
//! ```text
//!   (greeting sent)
//!        |
//!        v          4 bytes of flags           EXPORT_NAME, or GO for our export
//!   ClientFlags -------------------> Options ------------------------------------> Transmission
//!        |                           |  ^  |
//!        | unknown flag              |  |  | ABORT, lost framing, EXPORT_NAME for another export
//!        v                           +--+  v
//!      Closed          any other option   Closed
//! ```

use crate::protocol::{
    GREETING_MAGIC, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    handshake_flags, info, option, option_reply, transmission_flags,
};

/// Longest option that makes sense: GO with a name and a request for every piece of information.
pub(crate) const MAX_OPTION_BYTES: usize = OPTION_HEADER_BYTES + MAX_STRING_BYTES + 1024;

const OPTION_HEADER_BYTES: usize = 16;
const ZEROES_AFTER_EXPORT_NAME: usize = 124;

/// What clients are told about an export; fixed for the life of a connection.
#[derive(Clone, Debug)]
pub(crate) struct ExportFacts {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) preferred_bytes: u32,
    pub(crate) read_only: bool,
    pub(crate) trim: bool,
}

impl ExportFacts {
    /// Every client can flush and set FUA. `CAN_MULTI_CONN` promises that a flush on one
    /// connection covers writes that were answered on any other, and that all connections see
    /// those writes: true, because all connections of an export feed one device without a cache
    /// of their own before it, and the device's flush covers all that it completed.
    fn transmission_flags(&self, structured: bool) -> u16 {
        use transmission_flags as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_WRITE_ZEROES;
            flags |= if self.trim { flag::SEND_TRIM } else { 0 };
        }
        flags | if structured { flag::SEND_DF } else { 0 }
    }

    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// Where a handshake has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// More input is needed.
    Unfinished,
    /// Requests follow.
    Transmission {
        /// Reads are to be answered by structured replies.
        structured: bool,
    },
    /// The client is done, or asked for what is not here; what was written is still to be sent.
    Closed(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Options,
}

/// One client's handshake.
#[derive(Debug)]
pub(crate) struct Handshake {
    state: State,
    no_zeroes: bool,
    structured: bool,
}

/// An option of the client, complete.
struct ClientOption<'a> {
    number: u32,
    data: &'a [u8],
}

impl Handshake {
    /// Begins it; writes the server's greeting.
    pub(crate) fn start(output: &mut Vec<u8>) -> Self {
        let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        output.extend(GREETING_MAGIC.to_be_bytes());
        output.extend(OPTION_MAGIC.to_be_bytes());
        output.extend(flags.to_be_bytes());
        Self {
            state: State::ClientFlags,
            no_zeroes: false,
            structured: false,
        }
    }

    /// Takes at most one message from the start of `input`; returns how many bytes that were.
    /// Nothing was taken and the outcome is `Unfinished`: the message is not complete.
    pub(crate) fn advance(
        &mut self,
        export: &ExportFacts,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> (usize, Outcome) {
        match self.state {
            State::ClientFlags => self.on_client_flags(input),
            State::Options => self.on_options(export, input, output),
        }
    }

    fn on_client_flags(&mut self, input: &[u8]) -> (usize, Outcome) {
        let Some(bytes) = input.first_chunk::<4>() else {
            return (0, Outcome::Unfinished);
        };
        let flags = u32::from_be_bytes(*bytes);
        let known = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        if flags & !u32::from(known) != 0 {
            return (
                4,
                Outcome::Closed("it set handshake flags that were not offered"),
            );
        }
        self.no_zeroes = flags & u32::from(handshake_flags::NO_ZEROES) != 0;
        self.state = State::Options;
        (4, Outcome::Unfinished)
    }

    fn on_options(
        &mut self,
        export: &ExportFacts,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> (usize, Outcome) {
        match take_option(input) {
            Ok(Some((taken, option))) => (taken, self.on_option(export, &option, output)),
            Ok(None) => (0, Outcome::Unfinished),
            Err(reason) => (0, Outcome::Closed(reason)),
        }
    }

    fn on_option(
        &mut self,
        export: &ExportFacts,
        option: &ClientOption<'_>,
        output: &mut Vec<u8>,
    ) -> Outcome {
        match option.number {
            option::EXPORT_NAME => self.on_export_name(export, option, output),
            option::ABORT => on_abort(option, output),
            option::LIST => on_list(export, option, output),
            option::INFO | option::GO => self.on_go(export, option, output),
            option::STRUCTURED_REPLY => self.on_structured_reply(option, output),
            _ => answer(option, option_reply::ERR_UNSUP, &[], output),
        }
    }

    /// The old way in: it cannot be refused but by closing.
    fn on_export_name(
        &self,
        export: &ExportFacts,
        option: &ClientOption<'_>,
        output: &mut Vec<u8>,
    ) -> Outcome {
        if !export.is_called(option.data) {
            return Outcome::Closed("it asked for an export that does not exist");
        }
        output.extend(export.size_bytes.to_be_bytes());
        output.extend(export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            output.extend([0; ZEROES_AFTER_EXPORT_NAME]);
        }
        self.transmission()
    }

    fn on_go(
        &self,
        export: &ExportFacts,
        option: &ClientOption<'_>,
        output: &mut Vec<u8>,
    ) -> Outcome {
        let Some((name, wanted)) = parse_info_request(option.data) else {
            return answer(option, option_reply::ERR_INVALID, &[], output);
        };
        if !export.is_called(name) {
            return answer(option, option_reply::ERR_UNKNOWN, &[], output);
        }
        self.describe(export, option, wanted, output);
        answer(option, option_reply::ACK, &[], output);
        if option.number == option::GO {
            self.transmission()
        } else {
            Outcome::Unfinished
        }
    }

    /// Size and flags always, block sizes always (they are constraints, and clients that did not
    /// ask may ignore them), the rest if asked for.
    fn describe(
        &self,
        export: &ExportFacts,
        option: &ClientOption<'_>,
        wanted: &[[u8; 2]],
        output: &mut Vec<u8>,
    ) {
        let mut tell = |kind: u16, parts: &[&[u8]]| {
            let mut data = kind.to_be_bytes().to_vec();
            parts.iter().for_each(|part| data.extend(*part));
            answer(option, option_reply::INFO, &data, output);
        };
        let flags = export.transmission_flags(self.structured);
        tell(
            info::EXPORT,
            &[&export.size_bytes.to_be_bytes(), &flags.to_be_bytes()],
        );
        tell(
            info::BLOCK_SIZE,
            &[
                &export.block_bytes.to_be_bytes(),
                &export.preferred_bytes.to_be_bytes(),
                &MAX_PAYLOAD_BYTES.to_be_bytes(),
            ],
        );
        if wanted.contains(&info::NAME.to_be_bytes()) {
            tell(info::NAME, &[export.name.as_bytes()]);
        }
        if wanted.contains(&info::DESCRIPTION.to_be_bytes()) && !export.description.is_empty() {
            tell(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
    }

    fn on_structured_reply(&mut self, option: &ClientOption<'_>, output: &mut Vec<u8>) -> Outcome {
        if !option.data.is_empty() {
            return answer(option, option_reply::ERR_INVALID, &[], output);
        }
        self.structured = true;
        answer(option, option_reply::ACK, &[], output)
    }

    fn transmission(&self) -> Outcome {
        Outcome::Transmission {
            structured: self.structured,
        }
    }
}

fn take_option(input: &[u8]) -> Result<Option<(usize, ClientOption<'_>)>, &'static str> {
    if !starts_like(input, &OPTION_MAGIC.to_be_bytes()) {
        return Err("it does not speak NBD");
    }
    let Some(header) = input.first_chunk::<OPTION_HEADER_BYTES>() else {
        return Ok(None);
    };
    let [.., n0, n1, n2, n3, l0, l1, l2, l3] = *header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let end = OPTION_HEADER_BYTES.saturating_add(length);
    if end > MAX_OPTION_BYTES {
        return Err("it sent an option longer than any that exists");
    }
    let number = u32::from_be_bytes([n0, n1, n2, n3]);
    let option = |data| (end, ClientOption { number, data });
    Ok(input.get(OPTION_HEADER_BYTES..end).map(option))
}

/// Whether `input`, as far as it goes, is `magic`: garbage is noticed at its first byte.
fn starts_like(input: &[u8], magic: &[u8; 8]) -> bool {
    let known = input.len().min(magic.len());
    input[..known] == magic[..known]
}

/// The data of INFO and GO: the export's name, and which pieces of information are wanted.
fn parse_info_request(data: &[u8]) -> Option<(&[u8], &[[u8; 2]])> {
    let (name_bytes, rest) = data.split_first_chunk::<4>()?;
    let name_bytes = u32::from_be_bytes(*name_bytes) as usize;
    let (name, rest) = rest.split_at_checked(name_bytes)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (wanted, odd) = rest.as_chunks::<2>();
    let complete = wanted.len() == usize::from(u16::from_be_bytes(*count)) && odd.is_empty();
    (complete && name.len() <= MAX_STRING_BYTES).then_some((name, wanted))
}

fn on_abort(option: &ClientOption<'_>, output: &mut Vec<u8>) -> Outcome {
    answer(option, option_reply::ACK, &[], output);
    Outcome::Closed("it ended the handshake")
}

fn on_list(export: &ExportFacts, option: &ClientOption<'_>, output: &mut Vec<u8>) -> Outcome {
    if !option.data.is_empty() {
        return answer(option, option_reply::ERR_INVALID, &[], output);
    }
    let mut entry = length_of(export.name.as_bytes()).to_be_bytes().to_vec();
    entry.extend(export.name.as_bytes());
    entry.extend(export.description.as_bytes());
    answer(option, option_reply::SERVER, &entry, output);
    answer(option, option_reply::ACK, &[], output)
}

fn answer(option: &ClientOption<'_>, kind: u32, data: &[u8], output: &mut Vec<u8>) -> Outcome {
    output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    output.extend(option.number.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend(length_of(data).to_be_bytes());
    output.extend(data);
    Outcome::Unfinished
}

fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("strings have at most 4096 bytes")
}

#[cfg(test)]
mod tests;
