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
pub mod admin;
#[cfg(feature = "operator")]
pub mod allowed_groups;
#[cfg(feature = "operator")]
pub mod api;
#[cfg(feature = "operator")]
pub mod app;
#[cfg(feature = "operator")]
pub mod bounds;
#[cfg(feature = "operator")]
pub mod bucket;
pub mod clock;
#[cfg(feature = "operator")]
pub mod deed;
#[cfg(feature = "operator")]
pub mod environment;
#[cfg(feature = "operator")]
pub mod fleet;
pub mod gitlab;
#[cfg(feature = "operator")]
pub mod host;
#[cfg(feature = "operator")]
pub mod kube_ext;
#[cfg(feature = "operator")]
pub mod leader;
#[cfg(feature = "operator")]
pub mod lease;
#[cfg(feature = "operator")]
pub mod pool;
#[cfg(all(feature = "operator", feature = "aws"))]
pub mod promote;
#[cfg(test)]
mod property;
#[cfg(feature = "operator")]
pub mod provider;
pub mod spool;
#[cfg(feature = "supervisor")]
pub mod supervisor;
#[cfg(feature = "operator")]
pub mod telemetry;
#[cfg(any(feature = "operator", feature = "supervisor"))]
pub mod tls;
#[cfg(feature = "operator")]
pub mod uninstall;
