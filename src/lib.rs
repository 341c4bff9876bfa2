//! Dormouse: a Kubernetes operator that is a GitLab runner manager and puts job environments to sleep.
//!
//! ```text
//! GitLab --jobs/request--> pool::intake --JobLease + Secret--> lease::driver --SSH--> supervisor on the host
//!   ^                                                             |    ^                    |
//!   '------------- PATCH trace, PUT state ------------------------'    '--- log, status ----'
//!                                                                 |
//!                                              SuspendedEnvironment <-- environment controller (TTL, release)
//! ```

#[cfg(feature = "operator")]
pub mod api;
pub mod gitlab;
pub mod spool;
#[cfg(feature = "supervisor")]
pub mod supervisor;
