//! `run`: the process that runs one job, with nobody attached.
//!
//! It takes the order from standard input, answers on standard output whether the job is admitted, and then lets go
//! of both. The order is never written to a disk.

pub mod admission;
pub mod cancel;
pub mod duration;
pub mod job;
pub mod script;
pub mod sources;
pub mod stage;

pub use crate::gitlab::{inputs, variables};

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use self::admission::{Admission, Admitted};
use self::job::Job;
use super::refuse::{OrRefuse, unsupported};
use super::state::StateFolder;
use crate::spool::order::JobOrder;
use crate::spool::verb::{Answer, Refusal};

/// Longest order that is read, in bytes: the operator refuses payloads above 8 MiB.
pub const LONGEST_ORDER: u64 = 64 * 1024 * 1024;

/// Runs the job on standard input.
pub fn run(state: &StateFolder) -> ExitCode {
    // Fails only for a session's leader, which is what is wanted.
    let _session = rustix::process::setsid();
    let (answer, admitted) = match read_and_admit(state) {
        Ok((order, Admission::Admitted(admitted))) => {
            let record = admitted.record.clone();
            (Answer::Job(Box::new(record)), Some((order, admitted)))
        }
        Ok((_, Admission::Known(record))) => (Answer::Job(record), None),
        Err(refusal) => (Answer::Refused(refusal), None),
    };
    // Whoever asked may be gone; an admitted job runs all the same.
    let _told = tell(&answer);
    let _let_go = let_go();
    match admitted.map_or(Ok(()), |(order, admitted)| run_job(order, *admitted)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run_job(order: JobOrder, admitted: Admitted) -> Result<(), job::JobError> {
    let (folder, record) = (admitted.job.clone(), admitted.record.clone());
    match Job::new(order, admitted) {
        Ok(job) => job.run(),
        Err(error) => job::finish_unstarted(&folder, record, &error),
    }
}

fn read_and_admit(state: &StateFolder) -> Result<(JobOrder, Admission), Refusal> {
    let mut text = Vec::new();
    io::stdin().lock().take(LONGEST_ORDER).read_to_end(&mut text).or_refuse("failed to read the order")?;
    let order: JobOrder = serde_json::from_slice(&text)
        .map_err(|error| unsupported(format!("the order cannot be read: {error}")))?;
    let admission = admission::admit(state, &order)?;
    Ok((order, admission))
}

fn tell(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Gives the connection's descriptors back, so that nobody waits for this process.
fn let_go() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}
