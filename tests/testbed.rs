//! The test bed: real servers on loopback addresses, started by the project itself.
//!
//! Owns the processes, folders, ports, mounts and cgroups it makes and leaves none behind, not even
//! when the program that uses it is killed with SIGKILL. May assume Linux and the programs that
//! `install-packages.sh`, `build-tools.sh` and `build-cloud.sh` bring. Must never listen on or dial an address outside
//! 127.0.0.0/8. The example program `testbed/main.rs` is made of the same modules.
#![allow(dead_code, reason = "each of the programs made of these modules uses a part of them")]

#[cfg(feature = "aws")]
pub mod bucket;
pub mod checker;
pub mod chronicle;
#[cfg(feature = "aws")]
pub mod cloud;
pub mod control_plane;
pub mod crowd;
pub mod errand;
pub mod fake_host;
pub mod gitlab;
pub mod hosts;
pub mod image;
#[cfg(feature = "aws")]
pub mod machines;
pub mod mishap;
pub mod node;
pub mod operator;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod scratch;
pub mod stage;
pub mod tls;
pub mod tools;
pub mod wait;
