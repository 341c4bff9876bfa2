//! A job's sources: what the job wishes, the script that fetches them, and the settings that keep its credentials out
//! of every file.
//!
//! Pure. `origin` is stored without credentials; `git` gets them from its environment, which rewrites the address.

pub mod address;
pub mod reuse;
pub mod script;
pub mod settings;
pub mod submodules;
