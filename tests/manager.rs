//! What people who ran gitlab-runner find of it here: its connections, its requests for jobs, its figures, its list of jobs.

pub mod connections;
mod figures;
mod requests;
