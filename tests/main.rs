//! Integration tests: the bed checks itself first, then the product runs on it.

mod bed_control_plane;
mod bed_hosts;
mod bed_node;
mod chart;
mod gitlab_stand_in;
mod main_job;
mod testbed;
