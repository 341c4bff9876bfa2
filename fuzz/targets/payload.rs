//! Payloads: any bytes are a job or refused. A job that is handed on is the same job, its inputs take their places or are
//! refused, its variables can be told, and what would keep a shell from starting is set aside.

#![no_main]

use dormouse::gitlab::cache;
use dormouse::gitlab::inputs::in_place;
use dormouse::gitlab::variables::{JobVariables, Surroundings, is_exportable};
use dormouse::gitlab::wire::{self, JobPayload};
use libfuzzer_sys::fuzz_target;

// The operator's half, which this is built without; it reads `super::wire`.
#[path = "../../src/gitlab/support.rs"]
mod support;

fuzz_target!(|bytes: &[u8]| {
    let Ok(job) = serde_json::from_slice::<JobPayload>(bytes) else { return };
    let written = serde_json::to_value(&job).expect("a job can be written");
    let again: JobPayload = serde_json::from_value(written.clone()).expect("what was written can be read");
    assert_eq!(serde_json::to_value(&again).expect("a job can be written"), written);
    if let Some(why) = support::unsupported(&job) {
        assert!(why.contains("`secrets`") || why.contains("`run`"), "{why}");
    }
    let has_inputs = !job.inputs.is_empty();
    let Ok(job) = in_place(job) else {
        assert!(has_inputs, "a job without inputs has none that do not fit");
        return;
    };
    assert!(has_inputs || serde_json::to_value(&job).expect("a job can be written") == written);
    let surroundings = Surroundings {
        builds_dir: "/builds",
        workspace: "/builds/project",
        temporary: "/builds/project.tmp",
        version: "1",
        short_token: "abcd",
        machine: "x86_64",
        ..Surroundings::default()
    };
    let variables = JobVariables::gather(&job, &surroundings);
    for export in variables.exports() {
        assert!(is_exportable(&export.key), "{:?}", export.key);
        assert!(!job.variables.iter().any(|hidden| {
            hidden.masked
                && hidden.raw
                && hidden.key == export.key
                && !hidden.value.is_empty()
                && !variables.secrets().contains(&hidden.value)
        }));
    }
    for cache in cache::plan(&job, &variables) {
        let key = cache.key();
        assert!(!key.split('/').any(|part| part == ".." || part == "."), "{key:?}");
    }
    // Never prints a secret: neither fails, whatever is in them.
    let _ = format!("{job:?} {variables:?}");
});
