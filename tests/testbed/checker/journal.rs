//! What scripts write down on their host, one line each: `<verb> <job> <nanoseconds> <folder> <word>`.
//!
//! Lines this short are appended whole, also by scripts that write at the same moment.

use anyhow::{Context, Result, ensure};

use super::super::gitlab::JobId;

/// On the host's disk, out of every workspace.
pub const FILE: &str = "/var/tmp/journal";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The script's first line ran.
    Begin,
    /// Its last line ran.
    End,
    /// It found the mark of this job in its workspace.
    Found,
    /// The background process of its environment lives.
    Alive,
    /// It does not.
    Dead,
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub verb: Verb,
    /// By GitLab's number.
    pub job: JobId,
    /// Nanoseconds since 1970; all hosts of the bed share a clock.
    pub at: u64,
    /// The folder it ran in.
    pub folder: String,
    /// What was found.
    pub word: String,
}

impl Entry {
    /// Reads a journal.
    pub fn read_all(journal: &str) -> Result<Vec<Self>> {
        journal.lines().map(Self::read).collect()
    }

    fn read(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [verb, job, at, folder, word] = words.as_slice() else {
            anyhow::bail!("a line of a journal has {} words: {line:?}", words.len())
        };
        let verb = match *verb {
            "begin" => Verb::Begin,
            "end" => Verb::End,
            "found" => Verb::Found,
            "alive" => Verb::Alive,
            "dead" => Verb::Dead,
            other => anyhow::bail!("{other:?} is no verb of a journal"),
        };
        ensure!(folder.starts_with('/'), "{folder:?} is no folder");
        Ok(Self {
            verb,
            job: JobId(job.parse().context(line.to_owned())?),
            at: at.parse().context(line.to_owned())?,
            folder: (*folder).to_owned(),
            word: (*word).to_owned(),
        })
    }
}

/// What a script is to do besides ending with its exit code.
#[derive(Clone, Copy, Debug)]
pub struct Doing {
    /// Numbered lines to print.
    pub lines: u32,
    /// Between two of them.
    pub pause_milliseconds: u32,
    /// How it ends.
    pub exit_code: i64,
    /// It leaves a mark and a background process in its workspace.
    pub settles: bool,
    /// It looks for them.
    pub wakes: bool,
    /// The port of the chronicle it writes to, in place of its host's disk.
    pub chronicle: Option<u16>,
}

/// A script that writes down what it does.
pub fn script(doing: Doing) -> Vec<String> {
    let line = "$1 $CI_JOB_ID $(date +%s%N) $PWD ${2:--}";
    let note = match doing.chronicle {
        None => format!("note() {{ echo \"{line}\" >>{FILE}; }}"),
        // What is not kept there was not done: the script fails.
        Some(port) => format!(
            "note() {{ exec 9<>/dev/tcp/127.0.0.1/{port} && echo \"$(hostname) {line}\" >&9 && read -r -u 9 && exec 9>&-; }}"
        ),
    };
    let mut script = vec![note, "note begin".to_owned()];
    if doing.wakes {
        script.push("note found \"$(cat mark)\"".to_owned());
        script.push("if kill -0 $(cat pid); then note alive; else note dead; fi".to_owned());
    }
    if doing.settles {
        script.push("echo $CI_JOB_ID >mark".to_owned());
        script.push("(while true; do sleep 1; done) >/dev/null 2>&1 & echo $! >pid; disown".to_owned());
    }
    let Doing { lines, pause_milliseconds, exit_code, .. } = doing;
    script.push(format!(
        "for i in $(seq 1 {lines}); do echo \"$CI_JOB_NAME line $i.\"; sleep {}; done",
        f64::from(pause_milliseconds) / 1000.0
    ));
    script.extend(["note end".to_owned(), format!("exit {exit_code}")]);
    script
}
