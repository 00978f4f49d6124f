//! Finds the ends of JSON values that follow each other without any framing.
//!
//! Every byte is looked at once, however slowly a value arrives. What is checked here is what
//! decides where a value ends and whether it may still become one: brackets, commas, colons and
//! the limits (spdk-conventions.md A.2). The inside of strings and numbers is checked when the
//! value is complete.

/// Containers may be nested this deep.
const DEPTH_MAX: u32 = 64;
/// Strings, numbers, literals, and beginnings and ends of containers in one value.
const TOKENS_MAX: usize = 8192;

/// The bytes are not JSON, or exceed a limit; nothing that follows can be made sense of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Where in a value the scanner is.
///
/// ```text
///                 ┌──────────────── ',' in an array ────────────────┐
///                 ▼                                                 │
///   start ──▶  Value ──scalar──▶ (end, or) Separator ──',' in an object──▶ Key
///              │  ▲                  ▲                                      │
///     '[' ──▶ ValueOrEnd ──']'───────┤                                   string
///     '{' ──▶ KeyOrEnd ───'}'────────┘                                      │
///                 └──string──▶ Colon ◀──────────────────────────────────────┘
///                                └──':'──▶ Value
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    Separator,
}

/// What the byte before belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Nothing,
    String,
    Escape,
    Scalar,
}

/// The state between two arrivals of bytes.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// Bytes of the current value looked at, including white space before it.
    scanned: usize,
    expect: Expect,
    within: Within,
    /// One bit a container, the innermost lowest: set for objects.
    containers: u64,
    depth: u32,
    tokens: usize,
    /// Any number of tokens is fine: the server that sends them is trusted.
    unlimited: bool,
}

impl Scanner {
    /// For replies, which may be longer than requests.
    pub(crate) fn unlimited() -> Self {
        Self {
            unlimited: true,
            ..Self::default()
        }
    }

    /// Looks at `bytes`, which begin where the last complete value ended and have only grown since
    /// the last call. Returns the length of the next value once it is complete, with the white
    /// space before it.
    pub(crate) fn next_value(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        while let Some(&byte) = bytes.get(self.scanned) {
            let ended_before = self.within == Within::Scalar && !is_scalar(byte);
            if ended_before {
                self.within = Within::Nothing;
                if self.depth == 0 {
                    return Ok(Some(self.finish()));
                }
            }
            self.scanned += 1;
            self.step(byte)?;
            if self.is_complete() {
                return Ok(Some(self.finish()));
            }
        }
        Ok(None)
    }

    fn finish(&mut self) -> usize {
        let next = Self {
            unlimited: self.unlimited,
            ..Self::default()
        };
        std::mem::replace(self, next).scanned
    }

    /// A scalar outside of containers is complete only at the byte after it.
    fn is_complete(&self) -> bool {
        self.depth == 0 && self.within == Within::Nothing && self.expect == Expect::Separator
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        match (self.within, byte) {
            (Within::String, b'"') => self.within = Within::Nothing,
            (Within::String, b'\\') => self.within = Within::Escape,
            (Within::String | Within::Escape, 0..=0x1f) => return Err(Malformed),
            (Within::Escape, _) => self.within = Within::String,
            (Within::String | Within::Scalar, _) => {}
            (Within::Nothing, b' ' | b'\t' | b'\r' | b'\n') => {}
            (Within::Nothing, b'"') => return self.begin_string(),
            (Within::Nothing, b'{') => return self.open(true),
            (Within::Nothing, b'[') => return self.open(false),
            (Within::Nothing, b'}') => return self.close(true),
            (Within::Nothing, b']') => return self.close(false),
            (Within::Nothing, b':') => return self.colon(),
            (Within::Nothing, b',') => return self.comma(),
            (Within::Nothing, _) if is_scalar(byte) => return self.begin_scalar(),
            (Within::Nothing, _) => return Err(Malformed),
        }
        Ok(())
    }

    fn begin_string(&mut self) -> Result<(), Malformed> {
        self.within = Within::String;
        match self.expect {
            Expect::Key | Expect::KeyOrEnd => {
                self.expect = Expect::Colon;
                self.count_token()
            }
            _ => self.begin_value(),
        }
    }

    fn begin_scalar(&mut self) -> Result<(), Malformed> {
        self.within = Within::Scalar;
        self.begin_value()
    }

    fn open(&mut self, is_object: bool) -> Result<(), Malformed> {
        self.begin_value()?;
        if self.depth == DEPTH_MAX {
            return Err(Malformed);
        }
        self.depth += 1;
        self.containers = self.containers << 1 | u64::from(is_object);
        self.expect = if is_object {
            Expect::KeyOrEnd
        } else {
            Expect::ValueOrEnd
        };
        Ok(())
    }

    fn close(&mut self, is_object: bool) -> Result<(), Malformed> {
        let empty = if is_object {
            Expect::KeyOrEnd
        } else {
            Expect::ValueOrEnd
        };
        let may_end = self.expect == empty || self.expect == Expect::Separator;
        if self.depth == 0 || self.in_object() != is_object || !may_end {
            return Err(Malformed);
        }
        self.depth -= 1;
        self.containers >>= 1;
        self.expect = Expect::Separator;
        self.count_token()
    }

    fn colon(&mut self) -> Result<(), Malformed> {
        if self.expect != Expect::Colon {
            return Err(Malformed);
        }
        self.expect = Expect::Value;
        Ok(())
    }

    fn comma(&mut self) -> Result<(), Malformed> {
        if self.depth == 0 || self.expect != Expect::Separator {
            return Err(Malformed);
        }
        self.expect = if self.in_object() {
            Expect::Key
        } else {
            Expect::Value
        };
        Ok(())
    }

    fn begin_value(&mut self) -> Result<(), Malformed> {
        if !matches!(self.expect, Expect::Value | Expect::ValueOrEnd) {
            return Err(Malformed);
        }
        self.expect = Expect::Separator;
        self.count_token()
    }

    fn in_object(&self) -> bool {
        self.containers & 1 != 0
    }

    fn count_token(&mut self) -> Result<(), Malformed> {
        self.tokens += 1;
        if self.tokens > TOKENS_MAX && !self.unlimited {
            return Err(Malformed);
        }
        Ok(())
    }
}

/// Bytes of which numbers and the literals are made.
fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

#[cfg(test)]
mod tests;
