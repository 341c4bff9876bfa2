//! Integration tests: the bed checks itself first, then the product runs on it.

#[cfg(feature = "operator")]
mod bed_control_plane;
#[cfg(feature = "operator")]
mod bed_hosts;
#[cfg(feature = "operator")]
mod bed_node;
#[cfg(feature = "operator")]
mod chart;
#[cfg(feature = "operator")]
mod gitlab_stand_in;
#[cfg(feature = "operator")]
mod main_job;
#[cfg(feature = "operator")]
mod pools;
mod supervisor;
#[cfg(feature = "operator")]
mod testbed;
