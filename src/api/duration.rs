//! Durations as Kubernetes writes them: `90s`, `15m`, `168h`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the API server accepts for a duration.
pub const PATTERN: &str = "^([0-9]+(h|m|s))+$";

/// A duration in whole seconds, read from any Go-style text with the units `h`, `m` and `s`, and written in the
/// largest units that keep it whole: what people typed comes back as they typed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duration(std::time::Duration);

impl Duration {
    /// A duration of that many seconds.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// As the standard library's type.
    pub fn std(self) -> std::time::Duration {
        self.0
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return f.write_str("0s");
        }
        for (amount, unit) in [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")] {
            if amount > 0 {
                write!(f, "{amount}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = kube::core::Duration::from_str(&text).map_err(de::Error::custom)?;
        if duration.is_negative() {
            return Err(de::Error::custom(format!("{text:?} is negative")));
        }
        Ok(Self(std::time::Duration::from_secs(std::time::Duration::from(duration).as_secs())))
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// Refuses what could not be read, such as `7d`, at the API server already.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_in_the_largest_units_that_keep_it_whole() {
        for (seconds, text) in [(0, "0s"), (10, "10s"), (900, "15m"), (604_800, "168h"), (5400, "1h30m")] {
            let duration = Duration::from_seconds(seconds);
            assert_eq!(duration.to_string(), text);
            assert_eq!(serde_json::from_str::<Duration>(&format!("{text:?}")).unwrap(), duration);
        }
        assert!(serde_json::from_str::<Duration>("\"7d\"").is_err());
        assert!(serde_json::from_str::<Duration>("\"-1h\"").is_err());
    }
}
