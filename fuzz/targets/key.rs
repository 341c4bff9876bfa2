//! Environment keys: any text is read or refused, and what is read is written as the same key.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/api/key.rs"]
mod key;

use key::{EnvironmentKey, MAX_KEY_LENGTH};

fuzz_target!(|text: &str| {
    let Ok(key) = text.parse::<EnvironmentKey>() else { return };
    assert!(text.len() <= MAX_KEY_LENGTH);
    assert!(key.runner_id > 0 && !key.system_id.is_empty());
    let written = key.to_string();
    assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written:?}");
    // A system ID of somebody else's can be longer once it is written our way.
    if written.len() <= MAX_KEY_LENGTH {
        assert_eq!(written.parse(), Ok(key));
    }
});
