//! What the client of one job was told, and what it may be forgiven.
//!
//! The rule in one place: sending a wrong offset, repeating a final update or going on after an
//! abort is a violation, unless the client could not know better. It could not when a fault hit one
//! of its requests for this job, when the server was down, or when a new client process took over.
//! The first two are seen here; the third is announced by the test (`Restarts::Told`) or taken
//! from a new connection (`Restarts::OnNewConnection`). Each such event is good for one wrong
//! offset and one repetition.

use std::collections::BTreeSet;

/// How the stand-in learns that a new client process works on a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Restarts {
    /// Only from `GitLab::client_restarted` and `GitLab::expect_redelivery`.
    #[default]
    Told,
    /// The first request for a job on a connection may come from a new process. Clients with many
    /// connections are forgiven too much by it; it is for beds that run without a test.
    OnNewConnection,
}

/// One job's client, as seen from the server.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    wrong_offsets: u32,
    repetitions: u32,
    connections: BTreeSet<u64>,
    /// A final update was answered with 200.
    pub was_final_accepted: bool,
    /// An update was answered with 403 or 404.
    pub was_update_refused: bool,
    /// A log chunk was answered with 403.
    pub was_trace_refused: bool,
    /// What the first final update said: state and checksum.
    pub first_final: Option<(String, Option<String>)>,
}

impl Conduct {
    /// The client may have missed something.
    pub fn excuse(&mut self) {
        self.wrong_offsets += 1;
        self.repetitions += 1;
    }

    /// The client may repeat a final update once.
    pub fn expect_repetition(&mut self) {
        self.repetitions += 1;
    }

    /// Notes the connection a request for the job came on.
    pub fn meet(&mut self, connection: u64, restarts: Restarts) {
        let is_new = self.connections.insert(connection) && self.connections.len() > 1;
        if is_new && restarts == Restarts::OnNewConnection {
            self.excuse();
        }
    }

    /// Uses up an excuse for a wrong offset, if there is one.
    pub fn forgive_offset(&mut self) -> bool {
        take_one(&mut self.wrong_offsets)
    }

    /// Uses up an excuse for a repetition, if there is one.
    pub fn forgive_repetition(&mut self) -> bool {
        take_one(&mut self.repetitions)
    }
}

fn take_one(count: &mut u32) -> bool {
    let has_one = *count > 0;
    *count = count.saturating_sub(1);
    has_one
}
