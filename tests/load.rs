//! Many jobs and many environments on one leader, on light hosts: what it costs is a ratio here, never a time.

mod fakes;
mod recovery;
mod scale;
