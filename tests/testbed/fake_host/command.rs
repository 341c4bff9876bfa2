//! What an operator may run on a host, read from the command line as a shell would. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// A command line that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// What kind of machine it is.
    Probe,
    /// Whether a file is there and can be run.
    Present {
        /// The file.
        path: String,
    },
    /// A file comes on standard input.
    Install {
        /// Where it goes.
        path: String,
        /// Its checksum.
        sha256: String,
    },
    /// A verb of the supervisor.
    Verb(Verb),
}

/// A verb with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verb {
    /// The supervisor that is run.
    pub program: String,
    /// Its name.
    pub name: String,
    options: BTreeMap<String, String>,
    flags: Vec<String>,
}

/// Options that have no value.
const FLAGS: [&str; 2] = ["--graceful", "--force"];

/// What each verb takes; another option is a mistake of the caller.
const VERBS: [(&str, &[&str]); 12] = [
    ("hello", &["--pool", "--pool-uid", "--epoch"]),
    ("unclaim", &["--pool-uid", "--epoch"]),
    ("list", &["--pool-uid", "--epoch"]),
    ("start", &["--from"]),
    ("attach", &["--environment", "--job", "--from", "--epoch"]),
    ("status", &["--environment", "--job"]),
    ("append", &["--environment", "--job", "--once", "--epoch"]),
    ("seal", &["--environment", "--job", "--epoch"]),
    ("cancel", &["--environment", "--job", "--epoch", "--graceful"]),
    ("suspend", &["--environment", "--job", "--epoch"]),
    ("release", &["--environment", "--epoch", "--force"]),
    ("stat", &[]),
];

/// Reads a command line.
pub fn read(line: &str) -> Result<Command> {
    let words = words(line)?;
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    match texts.as_slice() {
        ["sh", "-c", script] if script.starts_with("uname -s; uname -m; id -u;") => Ok(Command::Probe),
        ["sh", "-c", script] if script.starts_with("set -e; umask 077; mkdir -p ") => install(script),
        ["test", "-x", path] => Ok(Command::Present { path: (*path).to_owned() }),
        ["sudo", "-n", program, "--state-dir", _, verb, rest @ ..]
        | [program, "--state-dir", _, verb, rest @ ..] => self::verb(program, verb, rest),
        _ => bail!("no such command: {line}"),
    }
}

fn install(script: &str) -> Result<Command> {
    let (_, rest) = script.split_once("echo '").context("no checksum")?;
    let (sha256, _) = rest.split_once(' ').context("no checksum")?;
    let words = words(script.rsplit_once(';').map_or(script, |(_, last)| last))?;
    let path = words.last().context("no path")?;
    Ok(Command::Install { path: path.clone(), sha256: sha256.to_owned() })
}

fn verb(program: &str, name: &str, rest: &[&str]) -> Result<Command> {
    let (_, known) =
        VERBS.iter().find(|(known, _)| *known == name).with_context(|| format!("no verb {name}"))?;
    let mut verb = Verb {
        program: program.to_owned(),
        name: name.to_owned(),
        options: BTreeMap::new(),
        flags: Vec::new(),
    };
    let mut rest = rest.iter();
    while let Some(option) = rest.next() {
        ensure!(known.contains(option), "{name} has no option {option}");
        if FLAGS.contains(option) {
            verb.flags.push((*option).to_owned());
            continue;
        }
        let value = rest.next().with_context(|| format!("{option} has no value"))?;
        verb.options.insert((*option).to_owned(), (*value).to_owned());
    }
    Ok(Command::Verb(verb))
}

impl Verb {
    /// An option's value.
    pub fn text(&self, option: &str) -> Result<&str> {
        let value = self.options.get(option).with_context(|| format!("{} needs {option}", self.name))?;
        Ok(value)
    }

    /// An option's value as a number.
    pub fn number(&self, option: &str) -> Result<u64> {
        self.text(option)?.parse().with_context(|| format!("{option} is no number"))
    }

    /// Whether a flag was given.
    pub fn flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }
}

/// The words of a command line: single quotes and backslashes, as the operator quotes.
fn words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some('\'') => break,
                        Some(quoted) => word.push(quoted),
                        None => bail!("a quote is not closed: {line}"),
                    }
                }
            }
            '\\' => {
                word.get_or_insert_default().push(characters.next().context("nothing after a backslash")?)
            }
            ' ' => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}
