//! GitLab's runner API: the wire types, shared with the supervisor, and the operator's side of the conversation.
//!
//! `client` is the edge: answers come back as meanings, never as status codes. The rest decides, purely: `trace` which
//! bytes to send next, `pace` when to say what, `report` what an answer to a final update leads to, `backoff` how long
//! to wait for a server that does not answer.

#[cfg(feature = "operator")]
pub mod backoff;
#[cfg(feature = "operator")]
pub mod client;
#[cfg(feature = "operator")]
pub mod features;
#[cfg(feature = "operator")]
pub mod pace;
#[cfg(feature = "operator")]
pub mod reason;
#[cfg(feature = "operator")]
pub mod report;
#[cfg(feature = "operator")]
pub mod support;
#[cfg(feature = "operator")]
pub mod trace;
pub mod wire;
