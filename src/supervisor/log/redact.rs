//! Hides what looks like a secret though nobody declared it: values of well-known URL parameters and what follows
//! well-known token prefixes.
//!
//! Decides byte by byte and holds nothing back: the name before a secret may be shown, so only the secret's own
//! bytes are withheld. Pure.

use super::mask::MASKED;

/// URL parameters whose values are credentials.
const PARAMETERS: [&str; 6] = [
    "private_token",
    "authenticity_token",
    "rss_token",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
];

/// Prefixes of GitLab's own tokens.
const PREFIXES: [&str; 14] = [
    "glpat-",
    "gloas-",
    "gldt-",
    "glrt-",
    "glcbt-",
    "glrtr-",
    "glptt-",
    "glft-",
    "glimt-",
    "glagent-",
    "glsoat-",
    "glffct-",
    "_gitlab_session=",
    "GR1348941",
];

/// How many prefixes a server may add: each costs a comparison on a matching last byte.
const MAX_EXTRA_PREFIXES: usize = 15;

/// The longest prefix that is honoured, in bytes; it bounds how far back the matcher remembers.
const MAX_PREFIX: usize = 64;

/// Hides the values of credential parameters in URLs.
#[derive(Debug, Default)]
pub struct ParameterRedactor {
    state: ParameterState,
}

#[derive(Debug, Default)]
enum ParameterState {
    /// Outside of any parameter.
    #[default]
    Text,
    /// After `?` or `&`: the name so far, lower case.
    Name(Vec<u8>),
    /// In a credential's value, whose replacement is already shown.
    Value,
}

impl ParameterRedactor {
    /// Takes bytes as they come and appends what may be shown.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        loop {
            // Most of a log is no parameter and is taken at once.
            if let ParameterState::Text = self.state {
                let length = rest.iter().position(|byte| begins_name(*byte)).unwrap_or(rest.len());
                let (text, after) = rest.split_at(length);
                out.extend_from_slice(text);
                rest = after;
            }
            let Some((byte, after)) = rest.split_first() else { return };
            rest = after;
            self.state = match std::mem::take(&mut self.state) {
                ParameterState::Value if !ends_value(*byte) => ParameterState::Value,
                ParameterState::Name(name)
                    if *byte == b'=' && PARAMETERS.iter().any(|known| known.as_bytes() == name) =>
                {
                    out.push(*byte);
                    out.extend_from_slice(MASKED);
                    ParameterState::Value
                }
                ParameterState::Name(mut name) if is_name(*byte) && name.len() < MAX_PREFIX => {
                    out.push(*byte);
                    name.push(byte.to_ascii_lowercase());
                    ParameterState::Name(name)
                }
                ParameterState::Text | ParameterState::Name(_) | ParameterState::Value => {
                    out.push(*byte);
                    if begins_name(*byte) { ParameterState::Name(Vec::new()) } else { ParameterState::Text }
                }
            };
        }
    }
}

fn begins_name(byte: u8) -> bool {
    matches!(byte, b'?' | b'&')
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn ends_value(byte: u8) -> bool {
    byte.is_ascii_whitespace()
        || byte.is_ascii_control()
        || matches!(byte, b'&' | b'?' | b'"' | b'\'' | b'<' | b'>')
}

/// Hides what follows a token prefix; the prefix itself stays, it says what kind of secret leaked.
#[derive(Debug)]
pub struct PrefixRedactor {
    prefixes: Vec<Vec<u8>>,
    /// The bytes that prefixes end with: at any other there is nothing to compare.
    last_bytes: Vec<u8>,
    /// The last bytes shown, long enough for the longest prefix.
    tail: Vec<u8>,
    longest: usize,
    state: PrefixState,
}

#[derive(Debug, PartialEq, Eq)]
enum PrefixState {
    Text,
    /// Right behind a prefix; nothing is hidden yet.
    Behind,
    /// In a token, whose replacement is already shown.
    Token,
}

impl PrefixRedactor {
    /// A redactor for the built-in prefixes and the server's own.
    pub fn new<'a>(server_prefixes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut prefixes: Vec<Vec<u8>> = server_prefixes
            .into_iter()
            .map(str::trim)
            .filter(|prefix| !prefix.is_empty() && prefix.len() <= MAX_PREFIX)
            .take(MAX_EXTRA_PREFIXES)
            .chain(PREFIXES)
            .map(|prefix| prefix.as_bytes().to_vec())
            .collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let longest = prefixes.iter().map(Vec::len).max().unwrap_or(0);
        let mut last_bytes: Vec<u8> = prefixes.iter().filter_map(|prefix| prefix.last().copied()).collect();
        last_bytes.sort_unstable();
        last_bytes.dedup();
        Self {
            prefixes,
            last_bytes,
            tail: Vec::with_capacity(2 * MAX_PREFIX),
            longest,
            state: PrefixState::Text,
        }
    }

    /// Takes bytes as they come and appends what may be shown.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        loop {
            if self.state == PrefixState::Text {
                let is_last = |byte: &u8| self.last_bytes.contains(byte);
                let (text, after) = rest.split_at(rest.iter().position(is_last).unwrap_or(rest.len()));
                out.extend_from_slice(text);
                self.remember(text);
                rest = after;
            }
            let Some((byte, after)) = rest.split_first() else { return };
            rest = after;
            if self.state != PrefixState::Text && is_token(*byte) {
                if self.state == PrefixState::Behind {
                    out.extend_from_slice(MASKED);
                }
                self.state = PrefixState::Token;
                self.tail.clear();
                continue;
            }
            out.push(*byte);
            self.remember(&[*byte]);
            let behind = self.last_bytes.contains(byte)
                && self.prefixes.iter().any(|prefix| self.tail.ends_with(prefix));
            self.state = if behind { PrefixState::Behind } else { PrefixState::Text };
        }
    }

    fn remember(&mut self, shown: &[u8]) {
        let last = shown.get(shown.len().saturating_sub(self.longest)..).unwrap_or_default();
        if self.tail.len() + last.len() > 2 * MAX_PREFIX {
            self.tail.drain(..self.tail.len().saturating_sub(self.longest));
        }
        self.tail.extend_from_slice(last);
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'=' | b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parameters(text: &str) -> String {
        let mut out = Vec::new();
        ParameterRedactor::default().push(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn prefixes(text: &str) -> String {
        let mut out = Vec::new();
        PrefixRedactor::new(["acme-"]).push(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn credential_parameters_are_hidden_and_others_are_not() {
        assert_eq!(
            parameters("GET /a?page=2&Private_Token=abc&x=1 done"),
            "GET /a?page=2&Private_Token=[MASKED]&x=1 done"
        );
        assert_eq!(parameters("private_token=abc"), "private_token=abc");
    }

    #[test]
    fn a_token_is_hidden_behind_its_prefix() {
        assert_eq!(prefixes("use glpat-abc.DEF_1 now"), "use glpat-[MASKED] now");
        assert_eq!(prefixes("acme-1 and glpat- alone"), "acme-[MASKED] and glpat- alone");
    }

    proptest! {
        #[test]
        fn no_cutting_changes_the_outcome(text in "(glpat-|acme-|[a-z &?=]|rss_token=){0,40}", cut in 1usize..9) {
            let mut redactor = PrefixRedactor::new(["acme-"]);
            let mut parameter = ParameterRedactor::default();
            let (mut by_prefix, mut by_parameter) = (Vec::new(), Vec::new());
            for piece in text.as_bytes().chunks(cut) {
                redactor.push(piece, &mut by_prefix);
                parameter.push(piece, &mut by_parameter);
            }
            prop_assert_eq!(String::from_utf8(by_prefix).unwrap(), prefixes(&text));
            prop_assert_eq!(String::from_utf8(by_parameter).unwrap(), parameters(&text));
        }
    }
}
