//! How many inputs a property test is given.

use proptest::test_runner::Config;

/// As many as say enough in the time that the suite has; `PROPTEST_CASES` asks for another number.
pub fn cases(usual: u32) -> Config {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => Config::default(),
        None => Config::with_cases(usual),
    }
}
