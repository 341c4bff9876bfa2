//! Payloads: any bytes are a job or refused. A job that is handed on is the same job, its variables can be told, and
//! what would keep a shell from starting is set aside.

#![no_main]

use dormouse::gitlab::cache;
use dormouse::gitlab::variables::{JobVariables, Surroundings, is_exportable};
use dormouse::gitlab::wire::JobPayload;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(job) = serde_json::from_slice::<JobPayload>(bytes) else { return };
    let written = serde_json::to_value(&job).expect("a job can be written");
    let again: JobPayload = serde_json::from_value(written.clone()).expect("what was written can be read");
    assert_eq!(serde_json::to_value(&again).expect("a job can be written"), written);
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
