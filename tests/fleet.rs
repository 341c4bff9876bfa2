//! Pools on EC2 and Auto Scaling, against the cloud stand-in with real machines that follow it.

mod adoption;
mod bad_days;
mod baseline;
mod connect;
mod credentials;
pub mod failures;
mod growth;
mod iam;
mod money;
mod scale_in;
mod settings;
mod slots;
mod tiers;
mod vanished_storage;
