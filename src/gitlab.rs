//! GitLab's runner API: the wire types, shared with the supervisor, and the operator's client of it.

pub mod wire;
