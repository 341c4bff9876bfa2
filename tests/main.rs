//! Integration tests.
mod bed_control_plane;
mod bed_hosts;
mod testbed;
