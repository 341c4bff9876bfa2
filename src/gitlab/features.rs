//! What we tell GitLab about ourselves. A feature is listed exactly when it works: GitLab keeps jobs that need
//! another one away from us.

use serde_json::{Value, json};

use super::wire::REVISION;

/// The `info` object of every runner call.
pub fn info(name: &str) -> Value {
    json!({
        "name": name,
        "version": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "platform": "linux",
        "architecture": std::env::consts::ARCH,
        "executor": "instance",
        "shell": "bash",
        "features": features(),
    })
}

/// The features that work.
fn features() -> Value {
    json!({
        "variables": true,
        "raw_variables": true,
        "masking": true,
        "refspecs": true,
        "shared": true,
        "multi_build_steps": true,
        "return_exit_code": true,
        "artifacts": true,
        "artifacts_exclude": true,
        "cache": true,
        "fallback_cache_keys": true,
        "upload_multiple_artifacts": true,
        "upload_raw_artifacts": true,
        "trace_reset": true,
        "trace_checksum": true,
        "trace_size": true,
        "cancelable": true,
        "cancel_gracefully": true,
        "two_phase_job_commit": true,
        "job_inputs": true,
    })
}
