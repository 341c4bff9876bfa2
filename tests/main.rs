//! Integration tests: the bed checks itself first, then the product runs on it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails; a missing JSON field reads as null"
)]

#[cfg(feature = "operator")]
mod artifacts;
#[cfg(feature = "operator")]
mod aws_config;
#[cfg(feature = "operator")]
mod bad_hosts;
#[cfg(feature = "operator")]
mod bad_jobs;
#[cfg(feature = "aws")]
mod bed_cloud;
#[cfg(feature = "operator")]
mod bed_control_plane;
#[cfg(feature = "operator")]
mod bed_hosts;
#[cfg(feature = "aws")]
mod bed_machines;
#[cfg(feature = "operator")]
mod bed_node;
#[cfg(feature = "aws")]
mod cache;
#[cfg(feature = "operator")]
mod chaos;
#[cfg(feature = "operator")]
mod chart;
#[cfg(feature = "operator")]
mod conformance;
#[cfg(feature = "operator")]
mod conversation;
#[cfg(feature = "operator")]
mod crash_points;
#[cfg(feature = "operator")]
mod fleet;
#[cfg(feature = "operator")]
mod gitlab_stand_in;
mod layering;
#[cfg(feature = "operator")]
mod leadership;
#[cfg(feature = "operator")]
mod links;
#[cfg(feature = "operator")]
mod load;
#[cfg(feature = "operator")]
mod main_job;
#[cfg(feature = "operator")]
mod manager;
#[cfg(feature = "operator")]
mod pools;
#[cfg(feature = "aws")]
mod provider_aws;
#[cfg(feature = "operator")]
mod registration;
#[cfg(feature = "operator")]
mod sources;
mod supervisor;
#[cfg(feature = "operator")]
mod suspension;
#[cfg(feature = "operator")]
mod testbed;
#[cfg(feature = "operator")]
mod traces;
