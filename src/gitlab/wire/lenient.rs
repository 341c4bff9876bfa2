//! Reads values that a server writes in another form than ours.
//!
//! `null` is the default of any type. A number may come as text and a text as a number, a list may hold nulls, and what
//! is alone may come without its list. What could be misread so that another job would run, a list where an object
//! belongs or a word where a number does, stays an error: a job that is refused with a word on why is better than one that
//! is run wrong.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A type that can be read from more forms than its own.
pub(super) trait Lenient: Sized {
    /// Reads a value. The error says which form it has, never what it is: it may be a secret.
    fn read(value: Value) -> Result<Self, String>;
}

/// Reads a field; for `deserialize_with`.
pub(super) fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Lenient,
{
    T::read(Value::deserialize(deserializer)?).map_err(D::Error::custom)
}

impl Lenient for String {
    fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::new()),
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(flag) => Ok(flag.to_string()),
            Value::Array(_) | Value::Object(_) => Err(expected("a text", &value)),
        }
    }
}

impl Lenient for bool {
    fn read(value: Value) -> Result<Self, String> {
        match &value {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            Value::Number(number) => Ok(number.as_f64() != Some(0.0)),
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" | "" => Ok(false),
                _ => Err(expected("true or false", &value)),
            },
            Value::Array(_) | Value::Object(_) => Err(expected("true or false", &value)),
        }
    }
}

impl Lenient for Option<bool> {
    fn read(value: Value) -> Result<Self, String> {
        if value.is_null() { Ok(None) } else { bool::read(value).map(Some) }
    }
}

impl Lenient for i64 {
    /// Fractions are cut off, and what is too large is the largest.
    fn read(value: Value) -> Result<Self, String> {
        let read = match &value {
            Value::Null => Some(0),
            Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|float| float as Self)),
            Value::String(text) => {
                let text = text.trim();
                let float = || text.parse::<f64>().ok().filter(|float| !float.is_nan());
                if text.is_empty() {
                    Some(0)
                } else {
                    text.parse().ok().or_else(|| float().map(|float| float as Self))
                }
            }
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        read.ok_or_else(|| expected("a number", &value))
    }
}

impl Lenient for u64 {
    /// What is below zero is zero.
    fn read(value: Value) -> Result<Self, String> {
        if let Some(number) = value.as_u64() {
            return Ok(number);
        }
        i64::read(value).map(|number| Self::try_from(number).unwrap_or_default())
    }
}

impl Lenient for u32 {
    fn read(value: Value) -> Result<Self, String> {
        u64::read(value).map(|number| Self::try_from(number).unwrap_or(Self::MAX))
    }
}

impl Lenient for Value {
    fn read(value: Value) -> Result<Self, String> {
        Ok(value)
    }
}

impl<T: Lenient> Lenient for Vec<T> {
    fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::new()),
            Value::Array(all) => all.into_iter().filter(|each| !each.is_null()).map(T::read).collect(),
            alone => T::read(alone).map(|alone| vec![alone]),
        }
    }
}

/// Reads an object of ours: its fields are lenient themselves.
macro_rules! objects {
    ($($name:ty),+ $(,)?) => {
        $(impl crate::gitlab::wire::lenient::Lenient for $name {
            fn read(value: serde_json::Value) -> Result<Self, String> {
                crate::gitlab::wire::lenient::object(value)
            }
        })+
    };
}
pub(super) use objects;

/// See [`objects`].
pub(super) fn object<T>(value: Value) -> Result<T, String>
where
    T: Default + for<'de> Deserialize<'de>,
{
    match value {
        Value::Null => Ok(T::default()),
        Value::Object(_) => serde_json::from_value(value).map_err(|error| error.to_string()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(expected("an object", &value))
        }
    }
}

fn expected(what: &str, value: &Value) -> String {
    let form = match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("{what} is expected, not {form}")
}
