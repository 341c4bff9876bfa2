//! The three kinds of `dormouse.dev/v1alpha1` and the words that go with them.
//!
//! Pure: types, schema rules and names. A field exists exactly when its behaviour does. Doc comments are user
//! interface: they are what `kubectl explain` prints.

pub mod cache;
pub mod condition;
pub mod crds;
pub mod duration;
pub mod job_lease;
pub mod key;
pub mod labels;
pub mod reference;
pub mod registration;
pub mod runner_pool;
pub mod suspended_environment;
pub mod usage;

pub use job_lease::JobLease;
pub use key::EnvironmentKey;
pub use runner_pool::RunnerPool;
pub use suspended_environment::SuspendedEnvironment;
