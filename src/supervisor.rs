//! Runs jobs on a host, detached from any connection.
