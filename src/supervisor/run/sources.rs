//! A job's sources: what the job wishes, the script that fetches them, and the settings that keep its credentials out
//! of the repository's own.
//!
//! Pure. `origin` is stored without credentials; `git` is told in its environment how the address is rewritten, and once
//! the sources are there, where to read that.

pub mod address;
pub mod reuse;
pub mod script;
pub mod settings;
pub mod submodules;
