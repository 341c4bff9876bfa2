//! GitLab's runner API: the wire types, shared with the supervisor, and the operator's side of the conversation.
//!
//! `client` and `rest` are the edges, a runner's calls and those with an access token, over the connections of `transport`:
//! answers come back as meanings, never as status codes. The rest decides, purely: `trace` which bytes to send next, `pace`
//! when to say what, `report` what an answer to a final update leads to, `backoff` how long to wait for a server that does
//! not answer, `adaptive` how many requests for a job are open, `registration` what to do about a pool's own runner.
//! `variables`, `inputs` and `cache` say what a job's own words come to; both programs read them, so that they mean the
//! same on both sides.

#[cfg(feature = "operator")]
pub mod adaptive;
#[cfg(feature = "operator")]
pub mod backoff;
pub mod cache;
#[cfg(feature = "operator")]
pub mod client;
#[cfg(feature = "operator")]
pub mod features;
pub mod inputs;
#[cfg(feature = "operator")]
pub mod pace;
#[cfg(feature = "operator")]
pub mod reason;
#[cfg(feature = "operator")]
pub mod registration;
#[cfg(feature = "operator")]
pub mod report;
#[cfg(feature = "operator")]
pub mod rest;
#[cfg(feature = "operator")]
pub mod support;
#[cfg(feature = "operator")]
pub mod trace;
#[cfg(feature = "operator")]
pub mod transport;
pub mod variables;
pub mod wire;
