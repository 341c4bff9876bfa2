//! RunnerPools: what is refused, what is said, and how a pool comes back by itself.

mod admission;
mod budget;
mod credentials;
mod hosts;
mod isolation;
mod lifecycle;
mod screens;
mod trust;
