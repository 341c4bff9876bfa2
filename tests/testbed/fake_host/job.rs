//! One job on a light host: its script as a task, its log and record as a real host would keep them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use dormouse::spool::closing;
use dormouse::spool::frame::{Frame, LogChunk, StatusFrame};
use dormouse::spool::order::JobOrder;
use dormouse::spool::record::{JobRecord, JobResult, JobState, Outcome, ProcessIdentity, ScriptEnd};
use dormouse::spool::verb::{Answer, LogEnd, Refusal, RefusalReason};
use jiff::Timestamp;
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::sync::watch;

use super::machine::Stream;
use super::script::{self, Step};

/// Silence after which a beat is sent, as the real supervisor does.
const BEAT: Duration = Duration::from_secs(5);

/// Log bytes in one frame, as the real supervisor has it.
const CHUNK: usize = 64 * 1024;

/// One job.
pub struct Job {
    inside: Mutex<Inside>,
    /// Moves with every change of log or record.
    changed: watch::Sender<u64>,
}

struct Inside {
    record: JobRecord,
    alive: bool,
    log: Vec<u8>,
    appended: Vec<String>,
    canceled: bool,
}

impl Job {
    /// A job that was accepted.
    pub fn new(order: &JobOrder, boot_id: &str) -> Self {
        let record = JobRecord {
            format: dormouse::spool::FORMAT,
            job_id: order.job.id,
            environment: order.environment.clone(),
            state: JobState::Starting,
            stage: None,
            suspend: order.suspend,
            timestamps: false,
            started_at: Timestamp::now(),
            finished_at: None,
            result: None,
            sealed: false,
            runner: ProcessIdentity {
                pid: 1,
                start_ticks: 1,
                boot_id: boot_id.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
        };
        let inside = Inside { record, alive: true, log: Vec::new(), appended: Vec::new(), canceled: false };
        Self { inside: Mutex::new(inside), changed: watch::Sender::new(0) }
    }

    /// The record.
    pub fn record(&self) -> JobRecord {
        self.inside().record.clone()
    }

    /// Whether its process is alive.
    pub fn is_alive(&self) -> bool {
        self.inside().alive
    }

    /// Runs its script to the end. `end` becomes true when ticks may end.
    pub async fn run(&self, order: JobOrder, mut end: watch::Receiver<bool>) {
        self.change(|inside| inside.record.state = JobState::Running);
        self.print(&format!("Running on a light host, slot {}", order.slot));
        for notice in &order.notices {
            self.print(&format!("WARNING: {notice}"));
        }
        if let Some(resume) = &order.resume {
            self.print(&closing::resumed_line(&resume.key));
        }
        let lines = order.job.steps.iter().filter(|step| step.name == "script").flat_map(|step| &step.script);
        let result = match script::read(lines.map(String::as_str)) {
            Ok(steps) => self.perform(&steps, &mut end).await,
            Err(error) => result(Outcome::SystemFailure, ScriptEnd::NotEnded, 0, format!("{error:#}")),
        };
        self.change(|inside| {
            let result = JobResult { suspend_due: inside.record.suspend.is_due(result.script), ..result };
            inside.record.state = JobState::Finished;
            inside.record.finished_at = Some(Timestamp::now());
            // The supervisor has the last word itself where the operator has nothing to add.
            if !result.suspend_due {
                inside.append(&closing::closing_line(&result));
                inside.record.sealed = true;
            }
            inside.record.result = Some(result);
            inside.alive = false;
        });
    }

    async fn perform(&self, steps: &[Step], end: &mut watch::Receiver<bool>) -> JobResult {
        let mut changed = self.changed.subscribe();
        let canceled = async { changed.wait_for(|_| self.inside().canceled).await.is_ok() };
        let work = async {
            for step in steps {
                match step {
                    Step::Echo(words) => self.print(words),
                    Step::Sleep(time) => tokio::time::sleep(*time).await,
                    Step::Tick(pause) => self.tick(*pause, end).await,
                    Step::Exit(0) => break,
                    Step::Exit(code) => {
                        let message = format!("exit code {code}");
                        return result(Outcome::ScriptFailure, ScriptEnd::Failure, *code, message);
                    }
                }
            }
            result(Outcome::Success, ScriptEnd::Success, 0, String::new())
        };
        tokio::select! {
            done = work => done,
            _ = canceled => result(Outcome::Canceled, ScriptEnd::NotEnded, 0, "canceled".to_owned()),
        }
    }

    async fn tick(&self, pause: Duration, end: &mut watch::Receiver<bool>) {
        for number in 1u64.. {
            if *end.borrow_and_update() {
                self.print(&format!("ticks={}", number - 1));
                return;
            }
            self.print(&format!("tick {number}"));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The sender lives in the machine; a machine that is gone needs no ticks.
                changed = end.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Stops the script.
    pub fn cancel(&self) {
        self.change(|inside| inside.canceled = true);
    }

    /// Its process is gone, as after a reboot: the record stays as it is.
    pub fn die(&self) {
        self.change(|inside| inside.alive = false);
    }

    /// Appends a line once for an id; none when the log is closed.
    pub fn append(&self, once: &str, text: &str) -> Option<LogEnd> {
        let mut inside = self.inside();
        if !inside.appended.iter().any(|known| known == once) {
            if inside.record.sealed {
                return None;
            }
            inside.appended.push(once.to_owned());
            inside.append(text);
        }
        let end = inside.end();
        drop(inside);
        self.changed.send_modify(|count| *count += 1);
        Some(end)
    }

    /// Appends the last lines, unless that is done, and closes the log.
    pub fn seal(&self, text: &str) -> LogEnd {
        let mut inside = self.inside();
        if !inside.record.sealed {
            inside.append(text);
            inside.record.sealed = true;
        }
        let end = inside.end();
        drop(inside);
        self.changed.send_modify(|count| *count += 1);
        end
    }

    fn status(&self) -> StatusFrame {
        let inside = self.inside();
        StatusFrame { record: inside.record.clone(), alive: inside.alive }
    }

    fn log_from(&self, cursor: usize) -> Vec<u8> {
        let inside = self.inside();
        let rest = inside.log.get(cursor..).unwrap_or_default();
        rest.get(..rest.len().min(CHUNK)).unwrap_or_default().to_vec()
    }

    fn print(&self, line: &str) {
        self.change(|inside| inside.append(line));
    }

    fn change(&self, change: impl FnOnce(&mut Inside)) {
        change(&mut self.inside());
        self.changed.send_modify(|count| *count += 1);
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// Sends its frames, to the end of the log, until nobody listens or until a newer holder shows itself.
    pub async fn send(mut self, out: &ChannelWriteHalf<Msg>) -> Result<()> {
        let job = &self.job;
        let mut changed = job.changed.subscribe();
        let mut shown = job.status();
        let mut cursor = usize::try_from(self.from)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(job.inside().log.get(..cursor).unwrap_or_default());
        let mut frames = Vec::new();
        Frame::Answer(Answer::Job(Box::new(shown.record.clone()))).encode(&mut frames)?;
        Frame::Status(Box::new(shown.clone())).encode(&mut frames)?;
        loop {
            changed.borrow_and_update();
            // The record before the log: what was written before a seal is then read after seeing the seal.
            let now = job.status();
            loop {
                let bytes = job.log_from(cursor);
                if bytes.is_empty() {
                    break;
                }
                crc.update(&bytes);
                let offset = u64::try_from(cursor)?;
                cursor += bytes.len();
                Frame::Log(LogChunk { offset, crc32: crc.clone().finalize(), bytes }).encode(&mut frames)?;
            }
            if now != shown {
                shown = now;
                Frame::Status(Box::new(shown.clone())).encode(&mut frames)?;
            }
            if !frames.is_empty() {
                out.data_bytes(Bytes::from(std::mem::take(&mut frames))).await?;
            }
            if shown.record.sealed {
                return Ok(());
            }
            let newer = async { self.seen.wait_for(|seen| *seen > self.epoch).await.map(|seen| *seen) };
            let fenced = tokio::select! {
                // The sender lives in the job, which this stream keeps.
                _ = changed.changed() => None,
                () = tokio::time::sleep(BEAT) => {
                    Frame::Beat.encode(&mut frames)?;
                    None
                }
                Ok(seen) = newer => Some(seen),
            };
            if let Some(seen) = fenced {
                let reason = RefusalReason::StaleEpoch { seen };
                let refusal = Refusal { reason, message: "a newer holder has been here".to_owned() };
                Frame::Answer(Answer::Refused(refusal)).encode(&mut frames)?;
                return Ok(out.data_bytes(Bytes::from(frames)).await?);
            }
        }
    }
}

impl Inside {
    fn append(&mut self, text: &str) {
        self.log.extend_from_slice(text.trim_end_matches('\n').as_bytes());
        self.log.push(b'\n');
    }

    fn end(&self) -> LogEnd {
        LogEnd { length: self.log.len() as u64, crc32: crc32fast::hash(&self.log) }
    }
}

fn result(outcome: Outcome, script: ScriptEnd, exit_code: i32, message: String) -> JobResult {
    JobResult { outcome, script, exit_code, message, suspend_due: false }
}
