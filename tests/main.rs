//! Integration tests.
mod bed_control_plane;
mod testbed;
