//! Runs jobs on a host, detached from any connection, and keeps their environments.
//!
//! Each verb is one short process: it reads the state folder, does one thing, answers and ends. The only long life
//! is that of a job's own process (`run`). Nothing is kept in memory that the next verb would need, so any of them
//! may be killed at any time. Talks to the instance's own metadata service when it is told to, and in errands to GitLab
//! about a job's artifacts and to a bucket, by signed addresses, about its caches; knows nothing of Kubernetes, only the order.
//!
//! ```text
//! start --order--> run --script--> launch -> bash        environment.json, holdings.json, job.json, log
//!   |               '----errand--> launch -> artifacts                                              |
//!   '--- frames <--- attach <-----------------------------------------------------------------------'
//! ```

pub mod append;
pub mod archive;
pub mod arguments;
pub mod artifacts;
pub mod attach;
pub mod cache;
pub mod cancel;
pub mod claim;
pub mod context;
pub mod counter;
pub mod errand;
pub mod expansion;
pub mod export;
pub mod hello;
pub mod holdings;
pub mod http;
pub mod import;
pub mod launch;
pub mod leave;
pub mod list;
pub mod log;
pub mod memory;
pub mod metadata;
pub mod mounts;
pub mod process;
pub mod quiesce;
pub mod refuse;
pub mod release;
pub mod removal;
pub mod renew;
pub mod run;
pub mod start;
pub mod stat;
pub mod state;
pub mod suspend;
pub mod tree;
pub mod user;
pub mod volume;
pub mod workspace;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use self::arguments::{Arguments, Verb};
use self::refuse::OrRefuse;
use self::run::cancel::CancelWish;
use self::state::StateFolder;
use crate::spool::cache::CacheUrls;
use crate::spool::verb::{Answer, Interruption, Refusal};

/// Longest text that `append` and `seal` take, in bytes as they come.
const LONGEST_TEXT: u64 = 64 * 1024;

/// Longest addresses that `renew` takes, in bytes.
const LONGEST_ADDRESSES: u64 = 8 * 1024 * 1024;

/// Exit code when the command line cannot be read.
const USAGE: u8 = 2;

/// Does what the command line says.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match arguments::parse(words) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("dormouse-supervisor: {message}");
            return ExitCode::from(USAGE);
        }
    };
    if let Verb::Launch(options) = &arguments.verb {
        return launch::run(options);
    }
    match perform(arguments) {
        Ok(code) => code,
        // Nobody listens any more: that is how a stream usually ends.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse-supervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: Arguments) -> io::Result<ExitCode> {
    let state = StateFolder::open(arguments.state_dir.as_deref())
        .map_err(|error| io::Error::new(error.kind(), format!("failed to open the state folder: {error}")))?;
    match arguments.verb {
        Verb::Run => return Ok(run::run(&state)),
        Verb::Start { from } => start::start(&state, from)?,
        Verb::Attach { job, from, epoch } => attach::attach(&state, &job, from, epoch)?,
        verb => print(&answer(&state, verb).unwrap_or_else(Answer::Refused))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(state: &StateFolder, verb: Verb) -> Result<Answer, Refusal> {
    Ok(match verb {
        Verb::Hello { pool, pool_uid, epoch, metadata } => {
            Answer::Hello(Box::new(hello::hello(state, &pool, &pool_uid, epoch, metadata)?))
        }
        Verb::Unclaim { pool_uid, epoch } => {
            list::unclaim(state, &pool_uid, epoch)?;
            Answer::Done
        }
        Verb::List { pool_uid, epoch } => Answer::List(list::list(state, &pool_uid, epoch)?),
        Verb::Status { job } => Answer::Job(Box::new(list::status(state, &job)?)),
        Verb::Append { job, once, epoch } => {
            Answer::Log(append::append(state, &job, &once, epoch, &read_text()?)?)
        }
        Verb::Seal { job, epoch } => Answer::Log(append::seal(state, &job, epoch, &read_text()?)?),
        Verb::Cancel { job, graceful, epoch } => {
            let wish = if graceful { CancelWish::Graceful } else { CancelWish::Abort };
            cancel::cancel(state, &job, wish, epoch)?;
            Answer::Done
        }
        Verb::Interrupt { job, epoch } => {
            cancel::interrupt(state, &job, &read_interruption()?, epoch)?;
            Answer::Done
        }
        Verb::Renew { job, epoch } => {
            renew::renew(state, &job, &read_addresses()?, epoch)?;
            Answer::Done
        }
        Verb::Suspend { job, epoch } => Answer::Environment(Box::new(suspend::suspend(state, &job, epoch)?)),
        Verb::Release { environment, force, epoch } => {
            release::release(state, &environment, force, epoch)?;
            Answer::Done
        }
        Verb::Stat { builds_dir } => Answer::Stat(stat::stat(state, builds_dir)?),
        Verb::VolumeMount(order) => Answer::Volume(volume::mount::mount(state, &order)?),
        Verb::VolumeUnmount { place, epoch } => {
            Answer::Unmounted(volume::unmount::unmount(state, &place, epoch)?)
        }
        Verb::Export { environment, epoch } => {
            Answer::Exported(Box::new(export::export(state, &environment, epoch)?))
        }
        Verb::Import { place, epoch } => {
            let export = import::read_export(io::stdin().lock())?;
            Answer::Environment(Box::new(import::import(state, &place, epoch, export)?))
        }
        Verb::Leave { environment, epoch } => {
            leave::leave(state, &environment, epoch)?;
            Answer::Done
        }
        Verb::Quiesce { epoch } => {
            quiesce::quiesce(state, epoch)?;
            Answer::Done
        }
        Verb::Notices { epoch } => Answer::Notices(metadata::notices(state, epoch)?),
        Verb::Start { .. } | Verb::Attach { .. } | Verb::Run | Verb::Launch(_) => {
            return Err(refuse::unsupported("this verb answers with frames"));
        }
    })
}

/// The text is quoted as JSON, so that one which a lost connection has cut short, to nothing even, is not taken for
/// the whole.
fn read_text() -> Result<String, Refusal> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(LONGEST_TEXT).read_to_end(&mut bytes).or_refuse("failed to read the text")?;
    serde_json::from_slice(&bytes)
        .map_err(|error| refuse::unsupported(format!("the text is not whole: {error}")))
}

fn read_interruption() -> Result<Interruption, Refusal> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(LONGEST_TEXT)
        .read_to_end(&mut bytes)
        .or_refuse("failed to read the interruption")?;
    serde_json::from_slice(&bytes)
        .map_err(|error| refuse::unsupported(format!("the interruption is not whole: {error}")))
}

fn read_addresses() -> Result<CacheUrls, Refusal> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(LONGEST_ADDRESSES)
        .read_to_end(&mut bytes)
        .or_refuse("failed to read the addresses")?;
    // Not what is wrong with them: the error would show a part.
    serde_json::from_slice(&bytes).map_err(|_| refuse::unsupported("the addresses are not whole"))
}

fn print(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
