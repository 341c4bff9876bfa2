//! Durations as Kubernetes writes them (`90s`, `15m`, `168h`), with a schema that refuses anything else.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A Go-style duration: numbers with the units `h`, `m` and `s`.
pub type Duration = kube::core::Duration;

/// What a duration is written like.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(h|m|s))+$";

/// Schema of a [`Duration`]: kube's own is a bare string, which would accept `7d` and fail later.
pub fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 32 })
}

/// A duration in seconds, for the defaults below.
pub fn seconds(seconds: u64) -> Duration {
    std::time::Duration::from_secs(seconds).into()
}

/// The duration as the standard library's type.
pub fn std(duration: Duration) -> std::time::Duration {
    duration.into()
}
