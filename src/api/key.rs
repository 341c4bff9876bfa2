//! The environment key: what GitLab stores and a later job names to wake an environment.
//!
//! `<runner id>/<percent-encoded system id>/acquisition-key=<environment id>`, constant for the environment's life.
//! It is an identifier, never a credential: whoever holds it may name the environment, and the project fence
//! decides. Parsing takes any bytes and never panics.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// Characters of an environment id.
pub const ENVIRONMENT_ID_LENGTH: usize = 20;

/// GitLab stores keys up to this length.
pub const MAX_KEY_LENGTH: usize = 512;

const FIELD: &str = "acquisition-key";
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'$').remove(b'&');

/// The id of an environment: 20 lower-case base32 characters, minted with its first lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnvironmentId(String);

impl EnvironmentId {
    /// An id from random bytes; 100 bits of them are used.
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(base32(&random))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first 20 base32 characters of some bytes.
fn base32(bytes: &[u8; 16]) -> String {
    let number = u128::from_be_bytes(*bytes);
    (0..ENVIRONMENT_ID_LENGTH)
        .map(|index| {
            let five_bits = (number >> (123 - 5 * index)) & 0x1f;
            char::from(*BASE32.get(five_bits as usize).unwrap_or(&b'a'))
        })
        .collect()
}

impl FromStr for EnvironmentId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() == ENVIRONMENT_ID_LENGTH && text.bytes().all(|byte| BASE32.contains(&byte)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(KeyError::EnvironmentId)
        }
    }
}

impl fmt::Display for EnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A parsed environment key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentKey {
    /// GitLab's id of the runner that suspended it.
    pub runner_id: u64,
    /// The pool's system id.
    pub system_id: String,
    /// The environment.
    pub environment: EnvironmentId,
}

/// Why a text is not an environment key of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Longer than GitLab would store.
    #[error("it is longer than {MAX_KEY_LENGTH} characters")]
    TooLong,
    /// Fewer than three parts.
    #[error("it is not of the form <runner id>/<system id>/acquisition-key=<environment id>")]
    Form,
    /// The runner id is not a positive number.
    #[error("its runner id is not a positive number")]
    RunnerId,
    /// The system id is empty or not UTF-8.
    #[error("its system id is empty or badly encoded")]
    SystemId,
    /// The query has no acquisition key, or fields besides it.
    #[error("its last part is not acquisition-key=<environment id>")]
    Fields,
    /// The environment id is not 20 base32 characters.
    #[error("its environment id is not {ENVIRONMENT_ID_LENGTH} characters of a-z and 2-7")]
    EnvironmentId,
}

impl FromStr for EnvironmentKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_KEY_LENGTH {
            return Err(KeyError::TooLong);
        }
        let mut parts = text.splitn(3, '/');
        let (Some(runner_id), Some(system_id), Some(fields)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(KeyError::Form);
        };
        if !runner_id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(KeyError::RunnerId);
        }
        let runner_id = runner_id.parse().ok().filter(|id| *id > 0).ok_or(KeyError::RunnerId)?;
        let system_id = percent_decode_str(system_id).decode_utf8().map_err(|_| KeyError::SystemId)?;
        if system_id.is_empty() {
            return Err(KeyError::SystemId);
        }
        let (name, value) = fields.split_once('=').ok_or(KeyError::Fields)?;
        if name != FIELD || value.contains('&') {
            return Err(KeyError::Fields);
        }
        let value = percent_decode_str(value).decode_utf8().map_err(|_| KeyError::EnvironmentId)?;
        Ok(Self { runner_id, system_id: system_id.into_owned(), environment: value.parse()? })
    }
}

impl fmt::Display for EnvironmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system_id = utf8_percent_encode(&self.system_id, UNRESERVED);
        write!(f, "{}/{system_id}/{FIELD}={}", self.runner_id, self.environment)
    }
}

/// A pool's system id: derived from the pool's uid (or its seed), so that it can neither be lost nor raced.
pub fn system_id(seed: &str) -> String {
    let digest = Sha256::digest(seed.as_bytes());
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("s_{hex}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_read_back_as_it_was_written(
            runner_id in 1u64.., system_id in "\\PC{1,60}", random in any::<[u8; 16]>(),
        ) {
            let key = EnvironmentKey { runner_id, system_id, environment: EnvironmentId::from_random(random) };
            let text = key.to_string();
            prop_assume!(text.len() <= MAX_KEY_LENGTH);
            prop_assert_eq!(text.parse::<EnvironmentKey>(), Ok(key));
        }

        #[test]
        fn any_garbage_is_refused_without_a_panic(text in "\\PC{0,600}") {
            if let Ok(key) = text.parse::<EnvironmentKey>() {
                prop_assert_eq!(key.to_string().parse::<EnvironmentKey>(), Ok(key));
            }
        }

        #[test]
        fn an_environment_id_is_a_valid_object_name_part(random in any::<[u8; 16]>()) {
            let id = EnvironmentId::from_random(random);
            prop_assert_eq!(id.as_str().len(), ENVIRONMENT_ID_LENGTH);
            prop_assert!(id.as_str().parse::<EnvironmentId>().is_ok());
        }
    }

    #[test]
    fn each_wrong_part_is_named() {
        let good = "34/s_0123456789ab/acquisition-key=abcdefghijklmnopqrst";
        assert!(good.parse::<EnvironmentKey>().is_ok());
        for (text, error) in [
            ("", KeyError::Form),
            ("34/s_1", KeyError::Form),
            ("0/s_1/acquisition-key=abcdefghijklmnopqrst", KeyError::RunnerId),
            ("+4/s_1/acquisition-key=abcdefghijklmnopqrst", KeyError::RunnerId),
            ("34//acquisition-key=abcdefghijklmnopqrst", KeyError::SystemId),
            ("34/s_1/pvc=abcdefghijklmnopqrst", KeyError::Fields),
            ("34/s_1/acquisition-key=abcdefghijklmnopqrst&x=y", KeyError::Fields),
            ("34/s_1/acquisition-key=UPPER", KeyError::EnvironmentId),
        ] {
            assert_eq!(text.parse::<EnvironmentKey>(), Err(error), "{text}");
        }
        assert_eq!("x".repeat(600).parse::<EnvironmentKey>(), Err(KeyError::TooLong));
    }

    #[test]
    fn a_system_id_has_the_form_gitlab_checks() {
        let id = system_id("2f9a3c1e-0000-4000-8000-000000000001");
        assert_eq!(id.len(), 14);
        assert!(id.starts_with("s_"));
        assert_eq!(id, system_id("2f9a3c1e-0000-4000-8000-000000000001"));
    }
}
