//! Jobs that cannot be run as they are: each ends at once, with words a person can act on, and leaves nothing.

mod cancels;
mod features;
mod files;
mod keys;
mod output;
mod payloads;
mod processes;
