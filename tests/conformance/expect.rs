//! What must come of a job, and how it is compared with what came.
//!
//! Pure but for reading uploads. Every difference is one line; nothing stops at the first.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;

use super::own::Which;
use super::uploads::{self, Upload};
use crate::testbed::gitlab::{JobState, JobView};

/// What must come of a job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The state GitLab has; `success` without it.
    pub state: State,
    /// The exit code; none or 0 without it.
    pub exit_code: i64,
    /// The reason GitLab has, in either way to end; none without it.
    pub reason: Option<String>,
    /// Lines of the log in this order, others between them.
    pub log: Vec<Line>,
    /// What no line holds.
    pub absent: Vec<Line>,
    /// The first lines.
    pub first: Vec<Line>,
    /// The last lines.
    pub last: Vec<Line>,
    /// Parts of the log as it came, colours, sections and carriage returns in it, in this order.
    pub raw: Vec<String>,
    /// What no part of the log as it came is.
    pub raw_absent: Vec<String>,
    /// How many lines hold a text.
    pub count: BTreeMap<String, usize>,
    /// Bytes of the log, at least and at most.
    pub log_bytes: Option<(usize, usize)>,
    /// The states it was updated to, in order, repetitions left out.
    pub updates: Option<Vec<String>>,
    /// How often GitLab was told the result.
    pub results_told: Option<usize>,
    /// Whether GitLab was told a key.
    pub suspended: bool,
    /// Whether git asked for sources; without it, it may.
    pub fetched: Option<bool>,
    /// The uploads, all of them, in order; without it there must be none.
    pub artifacts: Vec<UploadWish>,
    /// What commands print on the job's host once it is over.
    pub host: Vec<HostWish>,
    /// How often GitLab was told that the job runs, after the first time: at least and at most.
    pub signs_of_life: Option<(usize, usize)>,
    /// How far apart the chunks of the log are.
    pub gaps: Option<Gaps>,
    /// How often GitLab was sent artifacts, whatever it answered.
    pub uploads_tried: Option<usize>,
    /// Seconds for which GitLab heard nothing after its answer 429, at least.
    pub quiet: Option<u64>,
    /// Most seconds from running to the end.
    pub within: Option<u64>,
    /// Fewest seconds from running to the end.
    pub takes: Option<u64>,
    /// The runner that ran it. The case has a stage of its own.
    pub ran_on: Option<Which>,
    /// Jobs, by name, that were over before a runner took it.
    pub after_jobs: Vec<String>,
}

/// How a job ended, for GitLab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Well.
    #[default]
    Success,
    /// Badly.
    Failed,
    /// Canceled.
    Canceled,
}

/// How far apart chunks of the log are in a part of a job's life: before it they come oftener, and the end of a log comes
/// at once.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gaps {
    /// Seconds after the job ran at which it begins.
    pub from: u64,
    /// And ends.
    pub to: u64,
    /// Fewest seconds between two chunks in it.
    pub least: u64,
}

/// Whether a line is so.
pub type LineTest = Box<dyn Fn(&str) -> bool>;

/// Something about a line as a person sees it, without colours and section marks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// It holds this.
    Holds(String),
    /// It is this.
    Is {
        /// All of it.
        line: String,
    },
    /// It matches this.
    Matches {
        /// A regular expression.
        matches: String,
    },
}

/// An upload.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadWish {
    /// `artifact_type`.
    #[serde(rename = "type", default = "archive")]
    pub kind: String,
    /// `artifact_format`.
    #[serde(default = "zip")]
    pub format: String,
    /// The name of the file.
    pub file: String,
    /// `expire_in`; as it comes without it.
    #[serde(default)]
    pub expire_in: Option<String>,
    /// Contents by path, all of them; a folder's is empty, a link's is `-> target`.
    #[serde(default)]
    pub holds: Option<BTreeMap<String, String>>,
    /// Modes by path, in octal.
    #[serde(default)]
    pub modes: BTreeMap<String, String>,
    /// Bytes of the file, at least and at most.
    #[serde(default)]
    pub bytes: Option<(usize, usize)>,
}

fn archive() -> String {
    "archive".to_owned()
}

fn zip() -> String {
    "zip".to_owned()
}

/// What a command prints.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostWish {
    /// The command, for a shell as root; `<<workspace>>` is the job's.
    pub run: String,
    /// What it prints, without the last newline.
    pub prints: String,
}

impl Expect {
    /// Whether anything is expected that a job with the same exit code could fail to do.
    pub fn says_more_than_an_exit_code(&self) -> bool {
        !self.log.is_empty()
            || !self.raw.is_empty()
            || !self.first.is_empty()
            || !self.last.is_empty()
            || !self.artifacts.is_empty()
            || !self.host.is_empty()
            || self.updates.is_some()
            || self.ran_on.is_some()
            || !self.after_jobs.is_empty()
    }

    /// What differs, a line each. `fill` puts in what is known only of the job that ran.
    pub async fn differences(&self, job: &JobView, fill: &(impl Fn(&str) -> String + Sync)) -> Vec<String> {
        let mut found = Vec::new();
        self.compare_end(job, &mut found);
        if let Err(error) = self.compare_log(job, fill, &mut found) {
            found.push(format!("the case is wrong: {error:#}"));
        }
        self.compare_uploads(job, fill, &mut found).await;
        found
    }

    fn compare_end(&self, job: &JobView, found: &mut Vec<String>) {
        let mut check = |what: &str, is: String, wished: String| {
            if is != wished {
                found.push(format!("{what} is {is}, not {wished}"));
            }
        };
        let wished = match self.state {
            State::Success => JobState::Success,
            State::Failed => JobState::Failed,
            State::Canceled => JobState::Canceled,
        };
        check("the state", format!("{:?}", job.state), format!("{wished:?}"));
        let (exit, reason) = last_word(job);
        check("the exit code", exit.to_string(), self.exit_code.to_string());
        check("the reason", format!("{reason:?}"), format!("{:?}", self.reason));
        check("being suspended", job.environment_key.is_some().to_string(), self.suspended.to_string());
        if let Some(fetched) = self.fetched {
            check("git's asking", (!job.fetches.is_empty()).to_string(), fetched.to_string());
        }
        if let Some(wished) = &self.updates {
            let mut states: Vec<&str> = job.puts.iter().map(|put| put.state.as_str()).collect();
            states.dedup();
            check("the order of updates", format!("{states:?}"), format!("{wished:?}"));
        }
        if let Some((least, most)) = self.signs_of_life {
            let accepted = job.puts.iter().filter(|put| put.state == "running" && put.answer == 200);
            let signs = accepted.count().saturating_sub(1);
            if !(least..=most).contains(&signs) {
                found.push(format!("there were {signs} signs of life, not {least} to {most}"));
            }
        }
        if let Some(gaps) = self.gaps {
            found.extend(gaps.differences(job));
        }
        if let (Some(start), Some(end)) = (job.running_at, job.finished_at) {
            let took = end.duration_since(start).as_secs_f64();
            if self.within.is_some_and(|most| took > most as f64) {
                found.push(format!("it took {took:.1} s, not within {:?}", self.within));
            }
            if self.takes.is_some_and(|fewest| took < fewest as f64) {
                found.push(format!("it took only {took:.1} s, not {:?}", self.takes));
            }
        }
    }

    fn compare_log(
        &self,
        job: &JobView,
        fill: &impl Fn(&str) -> String,
        found: &mut Vec<String>,
    ) -> Result<()> {
        let Ok(raw) = std::str::from_utf8(&job.log) else {
            found.push("the log is not UTF-8".to_owned());
            return Ok(());
        };
        let plain = as_seen(raw)?;
        let lines: Vec<&str> = plain.lines().map(|line| line.trim_end_matches('\r')).collect();
        let mut from = 0;
        for wish in &self.log {
            let test = wish.test(fill)?;
            match lines.iter().skip(from).position(|line| test(line)) {
                Some(at) => from += at + 1,
                None => {
                    let place = from.checked_sub(1).and_then(|last| lines.get(last)).unwrap_or(&"its begin");
                    found.push(format!("the log has no line {wish:?} after {place:?}"));
                }
            }
        }
        for wish in &self.absent {
            let test = wish.test(fill)?;
            if let Some(line) = lines.iter().find(|line| test(line)) {
                found.push(format!("the log has {line:?} for {wish:?}, which must be absent"));
            }
        }
        let ends = [(&self.first, 0), (&self.last, lines.len().saturating_sub(self.last.len()))];
        for (wishes, start) in ends {
            for (number, wish) in wishes.iter().enumerate() {
                let line = lines.get(start + number).copied().unwrap_or_default();
                if !wish.test(fill)?(line) {
                    found.push(format!("line {} of the log is {line:?}, not {wish:?}", start + number + 1));
                }
            }
        }
        let mut rest = raw;
        for part in &self.raw {
            let part = fill(part);
            match rest.find(&part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => found.push(format!("the log as it came has no {part:?} where it should")),
            }
        }
        for part in self.raw_absent.iter().map(|part| fill(part)).filter(|part| raw.contains(part)) {
            found.push(format!("the log as it came has {part:?}, which must be absent"));
        }
        for (text, wished) in &self.count {
            let text = fill(text);
            let count = lines.iter().filter(|line| line.contains(&text)).count();
            if count != *wished {
                found.push(format!("{count} lines hold {text:?}, not {wished}"));
            }
        }
        if let Some((least, most)) = self.log_bytes
            && !(least..=most).contains(&raw.len())
        {
            found.push(format!("the log has {} bytes, not {least} to {most}", raw.len()));
        }
        Ok(())
    }

    async fn compare_uploads(
        &self,
        job: &JobView,
        fill: &(impl Fn(&str) -> String + Sync),
        found: &mut Vec<String>,
    ) {
        let mut uploads = Vec::new();
        for artifact in &job.artifacts {
            match uploads::read(artifact).await {
                Ok(upload) => uploads.push(upload),
                Err(error) => found.push(format!("an upload cannot be read: {error:#}")),
            }
        }
        let names: Vec<&str> = uploads.iter().map(|upload| upload.file.as_str()).collect();
        let wished: Vec<String> = self.artifacts.iter().map(|wish| fill(&wish.file)).collect();
        if names != wished {
            found.push(format!("uploaded was {names:?}, not {wished:?}"));
            return;
        }
        for (upload, wish) in uploads.iter().zip(&self.artifacts) {
            wish.compare(upload, fill, found);
        }
    }
}

impl Gaps {
    fn differences(&self, job: &JobView) -> Vec<String> {
        let Some(start) = job.running_at else { return vec!["it never ran".to_owned()] };
        let times = job.patches.iter().map(|patch| patch.at.duration_since(start).as_secs_f64());
        let within: Vec<f64> =
            times.filter(|time| (self.from as f64..=self.to as f64).contains(time)).collect();
        if within.len() < 2 {
            return vec![format!("there were no two chunks within {self:?}, but {within:.1?}")];
        }
        let gaps = within.iter().zip(within.iter().skip(1)).map(|(one, next)| next - one);
        let shortest = gaps.fold(f64::INFINITY, f64::min);
        let is_short = shortest < self.least as f64;
        is_short
            .then(|| format!("chunks came at {within:.1?} s, not {} s apart", self.least))
            .into_iter()
            .collect()
    }
}

/// Exit code and reason as the runner said them last, or as GitLab has them where it said nothing.
fn last_word(job: &JobView) -> (i64, Option<String>) {
    let last = job.puts.iter().rev().find(|put| put.state == "failed" || put.state == "success");
    match last {
        Some(put) => (put.exit_code.unwrap_or(0), put.failure_reason.clone()),
        None => (job.exit_code.unwrap_or(0), job.failure_reason.clone()),
    }
}

impl Line {
    /// What tells whether a line is so.
    pub fn test(&self, fill: &impl Fn(&str) -> String) -> Result<LineTest> {
        Ok(match self {
            Self::Holds(text) => {
                let text = fill(text);
                Box::new(move |line| line.contains(&text))
            }
            Self::Is { line } => {
                let wished = fill(line);
                Box::new(move |line| line == wished)
            }
            Self::Matches { matches } => {
                let pattern = Regex::new(&fill(matches)).context("a pattern")?;
                Box::new(move |line| pattern.is_match(line))
            }
        })
    }
}

impl UploadWish {
    fn compare(&self, upload: &Upload, fill: &impl Fn(&str) -> String, found: &mut Vec<String>) {
        let file = &upload.file;
        let mut check = |what: &str, is: String, wished: String| {
            if is != wished {
                found.push(format!("{what} of {file} is {is}, not {wished}"));
            }
        };
        check("the type", upload.kind.clone(), self.kind.clone());
        check("the format", upload.format.clone(), self.format.clone());
        if let Some(expire_in) = &self.expire_in {
            check("expire_in", upload.expire_in.clone(), expire_in.clone());
        }
        if let Some(holds) = &self.holds {
            let wished: BTreeMap<String, String> =
                holds.iter().map(|(path, content)| (fill(path), fill(content))).collect();
            check("what is in", format!("{:?}", upload.entries), format!("{wished:?}"));
        }
        for (path, mode) in &self.modes {
            check(
                &format!("the mode of {path}"),
                format!("{:?}", upload.modes.get(path)),
                format!("{:?}", Some(mode)),
            );
        }
        if let Some((least, most)) = self.bytes
            && !(least..=most).contains(&upload.bytes)
        {
            found.push(format!("{file} has {} bytes, not {least} to {most}", upload.bytes));
        }
    }
}

/// The log as a person sees it: no colours, no section marks and no erasing of lines.
fn as_seen(text: &str) -> Result<String> {
    let marks = "\u{1b}\\[[0-9;]*[mK]|section_(start|end):[0-9]+:[^\r\n]*\r";
    Ok(Regex::new(marks)?.replace_all(text, "").into_owned())
}
