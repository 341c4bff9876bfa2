//! Integration tests: the bed checks itself first, then the product runs on it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails; a missing JSON field reads as null"
)]

#[cfg(feature = "operator")]
mod bad_hosts;
#[cfg(feature = "operator")]
mod bad_jobs;
#[cfg(feature = "operator")]
mod bed_control_plane;
#[cfg(feature = "operator")]
mod bed_hosts;
#[cfg(feature = "operator")]
mod bed_node;
#[cfg(feature = "operator")]
mod chaos;
#[cfg(feature = "operator")]
mod chart;
#[cfg(feature = "operator")]
mod conversation;
#[cfg(feature = "operator")]
mod crash_points;
#[cfg(feature = "operator")]
mod gitlab_stand_in;
mod layering;
#[cfg(feature = "operator")]
mod leadership;
#[cfg(feature = "operator")]
mod load;
#[cfg(feature = "operator")]
mod main_job;
#[cfg(feature = "operator")]
mod pools;
mod supervisor;
#[cfg(feature = "operator")]
mod suspension;
#[cfg(feature = "operator")]
mod testbed;
#[cfg(feature = "operator")]
mod traces;
