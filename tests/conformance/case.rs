//! What a case may say, and how it is read.
//!
//! Owns the format of the files below `cases`, which `README.md` explains. Reading is strict: a field nobody knows, a
//! case that asserts nothing but an exit code and an empty `about` are errors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::expect::Expect;
use super::own::{Access, Given, Own, Which};
use super::surface::Surface;

/// A behaviour, as a job that shows it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `area/name`, from where the file is.
    #[serde(skip)]
    pub name: String,
    /// The behaviour in a sentence.
    pub about: String,
    /// Merged into the spec of the pool; such a case gets a stage with the others that ask for the same.
    #[serde(default)]
    pub pool: Option<Value>,
    /// It plays on a host with one slot, which no other case uses meanwhile: the operator may be killed there, and a
    /// job finds the workspace of the one before.
    #[serde(default)]
    pub alone: bool,
    /// It has a stage of its own, which this says what it is like.
    #[serde(default)]
    pub own: Option<Own>,
    /// Repositories by project; a job's own is called `<<project>>`.
    #[serde(default)]
    pub repositories: BTreeMap<String, Vec<Commit>>,
    /// By project, the only credentials that open its repository.
    #[serde(default)]
    pub deploy_tokens: BTreeMap<String, String>,
    /// How the objects of its repositories are named; `sha1` without it.
    #[serde(default)]
    pub object_format: ObjectFormat,
    /// Jobs that run before, in order.
    #[serde(default)]
    pub before: Vec<Job>,
    /// Jobs that run already when the job is queued, and end when they end.
    #[serde(default)]
    pub beside: Vec<Job>,
    /// The job.
    pub job: Job,
    /// What is done and seen once it is over.
    #[serde(default)]
    pub afterwards: Vec<Afterwards>,
}

/// Something that is done to a stage, and what is to be seen then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Afterwards {
    /// What.
    #[serde(default, rename = "do")]
    pub deed: Option<Deed>,
    /// What is to be seen.
    pub seen: Surface,
}

/// How objects are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectFormat {
    /// By SHA-1.
    #[default]
    Sha1,
    /// By SHA-256.
    Sha256,
}

/// A commit of a repository that a case brings along.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Where it is added.
    #[serde(default = "main_branch")]
    pub branch: String,
    /// Contents by path.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Contents by path of files that git LFS keeps.
    #[serde(default)]
    pub large_files: BTreeMap<String, String>,
    /// Submodules by path; each is at the tip of another repository's `main`.
    #[serde(default)]
    pub submodules: BTreeMap<String, Submodule>,
    /// A tag for it.
    #[serde(default)]
    pub tag: Option<String>,
    /// Other references that stand for it, such as `refs/merge-requests/1/head`.
    #[serde(default)]
    pub refs: Vec<String>,
}

/// A submodule of a repository.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submodule {
    /// The project whose repository it is.
    pub of: String,
    /// The address in `.gitmodules`.
    pub url: String,
    /// The branch in `.gitmodules`.
    #[serde(default)]
    pub branch: Option<String>,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// A job, and what is to come of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Job {
    /// Its name; the case's without one.
    pub name: Option<String>,
    /// Its project's path; `conformance/<case>` without one.
    pub project: Option<String>,
    /// Lines of the step `script`.
    pub script: Vec<String>,
    /// Lines of the step `after_script`.
    pub after_script: Vec<String>,
    /// In place of both.
    pub steps: Option<Vec<Value>>,
    /// Variables by name, sent in the order of names.
    pub variables: BTreeMap<String, Variable>,
    /// Variables after those, as they are given: duplicates, odd names.
    pub more_variables: Vec<Value>,
    /// The branch, tag or commit its sources are of; without one it has none.
    pub git: Option<String>,
    /// `git_info.depth`.
    pub git_depth: Option<u32>,
    /// `git_info.refspecs`, in place of those of its branch or tag.
    pub refspecs: Option<Vec<String>>,
    /// `allow_git_fetch`.
    pub allow_git_fetch: Option<bool>,
    /// Seconds it may take.
    pub timeout: Option<u64>,
    /// Tags the runner must have.
    pub tags: Vec<String>,
    /// The runner that alone may take it.
    pub runner: Option<Which>,
    /// Whether its ref is protected.
    pub protected: Option<bool>,
    /// The reasons the server lists.
    pub failure_reasons: Option<Vec<String>>,
    /// What the runner has to advertise to get it.
    pub needs_features: Vec<String>,
    /// Final updates that are answered with 202.
    pub chunks_pending: u32,
    /// Final updates that are answered with 412.
    pub log_resets: u32,
    /// Ends of the job at which its environment is suspended.
    pub suspend: Vec<SuspendAt>,
    /// Resumes the environment of the job before.
    pub resume: bool,
    /// Leaves the default of the time stamps alone, which these logs are easier to read without.
    pub timestamps: bool,
    /// Entries of `artifacts`; what is left out is as GitLab sends it.
    pub artifacts: Vec<Value>,
    /// Entries of `cache`; what is left out is as GitLab sends it.
    pub cache: Vec<Value>,
    /// Bytes of a file above which an upload is answered with 413.
    pub artifacts_limit: Option<usize>,
    /// What others get as its archive, whatever it uploads itself.
    pub archive: Option<Archive>,
    /// Names of jobs before whose artifacts it gets.
    pub dependencies: Vec<String>,
    /// Top-level fields of the payload that replace what the rest makes.
    pub payload: BTreeMap<String, Value>,
    /// Faults from the start, for this job only.
    pub faults: Vec<FaultSeed>,
    /// What is done to it meanwhile, in order.
    pub control: Vec<Control>,
    /// Seconds until it must be over.
    pub deadline: Option<u64>,
    /// What must come of it.
    pub expect: Expect,
}

/// An archive that no runner of ours has made.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Archive {
    /// A zip archive with these entries, by Python.
    Zip(Vec<ArchiveEntry>),
    /// A gzip file of this text.
    Gzip(String),
    /// These bytes.
    Bytes(String),
}

/// An entry of a zip archive.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveEntry {
    /// Its name.
    pub name: String,
    /// Its content, or where it points.
    #[serde(default)]
    pub text: String,
    /// Its mode with its type, in octal; an ordinary file's without it.
    #[serde(default)]
    pub mode: Option<String>,
    /// How often the text is repeated.
    #[serde(default)]
    pub times: Option<u64>,
}

/// A value of a variable.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Variable {
    /// Public and plain.
    Plain(String),
    /// With its flags.
    Flagged(Flagged),
}

/// A value and what is to be done with it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flagged {
    /// The value.
    pub value: String,
    /// It must not be seen in the log.
    #[serde(default)]
    pub masked: bool,
    /// The job gets the path of a file with it.
    #[serde(default)]
    pub file: bool,
    /// It is not expanded.
    #[serde(default)]
    pub raw: bool,
}

/// An end at which an environment is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspendAt {
    /// When it succeeds.
    Success,
    /// When it fails.
    Failure,
}

/// What goes wrong between the runner and GitLab.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSeed {
    /// Which calls.
    pub on: On,
    /// The status they are answered with.
    #[serde(default)]
    pub answer: Option<u16>,
    /// Headers of that answer, of those the stand-in knows: `Retry-After`, `Job-Status`, and `RateLimit-ResetTime` in
    /// seconds from the answer.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Seconds it takes.
    #[serde(default)]
    pub delay: Option<u64>,
    /// The answer is lost.
    #[serde(default)]
    pub lost: bool,
    /// How many calls; all of them without it.
    #[serde(default)]
    pub times: Option<u32>,
    /// How many calls pass first.
    #[serde(default)]
    pub after: u32,
}

/// Calls of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// Every update.
    Update,
    /// The update to `running`.
    Running,
    /// The last update.
    Final,
    /// Log chunks.
    Trace,
    /// Artifacts, either way.
    Artifacts,
    /// The storage GitLab sends downloads to.
    Storage,
    /// git.
    Git,
    /// Requests for a job, whichever. The case is `alone`, or has a stage of its own.
    Request,
    /// The creation of a runner. The case has a stage of its own.
    CreateRunner,
    /// The replacement of a runner's token. The case has a stage of its own.
    ResetToken,
}

impl On {
    /// Whether these are calls of a stage, about no job.
    pub fn is_of_all(self) -> bool {
        matches!(self, Self::Request | Self::CreateRunner | Self::ResetToken)
    }
}

/// Something that is done to a job.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// When.
    pub after: After,
    /// What.
    #[serde(rename = "do")]
    pub deed: Deed,
}

/// A moment in a job's life.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// Its log at GitLab holds this text.
    Log(String),
    /// A runner has asked for it and got it.
    HandedOut,
    /// It is running, for GitLab.
    Running,
    /// A command on any of the hosts succeeds; for what GitLab cannot see.
    Host(String),
    /// All of this is to be seen. The case has a stage of its own.
    Seen(Box<Surface>),
}

/// What is done to a job, or from `Pool` on to a stage of the case's own.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// A click on cancel.
    Cancel,
    /// The second click, or an administrator's.
    CancelHard,
    /// GitLab answers every call about it with 404.
    Forget,
    /// The operator dies by SIGKILL and is started again. The case is `alone`, or has a stage of its own.
    KillOperator,
    /// GitLab asks for this many seconds between updates.
    Interval(u64),
    /// From now on.
    Fault(FaultSeed),
    /// A command on every host, for instance to let a script go on.
    Host(String),
    /// GitLab drops it for this reason.
    Drop(String),
    /// Merged into the spec of the pool.
    Pool(Value),
    /// Another token is put into the Secret that the pool takes it from.
    Token(Given),
    /// An access token that may do this is put into its Secret.
    Access(Access),
    /// A Secret is deleted.
    DeleteSecret(String),
    /// The server and the pool get certificates of another authority, and connections are cut.
    ReplaceCertificates,
    /// The pool is deleted; nobody waits for its end.
    DeletePool,
}

impl Deed {
    /// Whether it is done to a stage of the case's own.
    pub fn is_of_own(&self) -> bool {
        matches!(
            self,
            Self::Pool(_)
                | Self::Token(_)
                | Self::Access(_)
                | Self::DeleteSecret(_)
                | Self::ReplaceCertificates
                | Self::DeletePool
        )
    }
}

impl Case {
    /// Everything a case says, to be looked through for mistakes that reading does not find.
    fn check(&self) -> Result<()> {
        ensure!(self.about.trim().len() > 10, "`about` does not say what is shown");
        let surfaces: Vec<&Surface> = self.surfaces().collect();
        let says_more = self.job.expect.says_more_than_an_exit_code() || !surfaces.is_empty();
        ensure!(says_more, "nothing but an exit code is expected");
        ensure!(
            surfaces.iter().all(|surface| !surface.is_empty()),
            "nothing is to be seen where `seen` stands"
        );
        let may_disturb = self.alone || self.own.is_some();
        let kills = self.controls().any(|step| matches!(step.deed, Deed::KillOperator));
        ensure!(!kills || may_disturb, "it kills the operator: say `alone: true`");
        let limits_all = self.job.faults.iter().any(|fault| fault.on == On::Request);
        ensure!(!limits_all || may_disturb, "its fault is for everybody's requests: say `alone: true`");
        ensure!(!self.alone || self.own.is_none(), "a stage of its own is `alone` already");
        let beside = self.beside.iter();
        ensure!(beside.clone().all(|job| job.control.is_empty()), "control of a job beside is the job's");
        let later = self.afterwards.iter().filter_map(|step| step.deed.as_ref());
        ensure!(later.clone().all(Deed::is_of_own), "what is done afterwards is done to the stage");
        let needs_own = !surfaces.is_empty()
            || self.controls().map(|step| &step.deed).chain(later).any(Deed::is_of_own)
            || self.every_job().any(Job::needs_own_stage);
        ensure!(!needs_own || self.own.is_some(), "it needs a stage of its own: say `own: {{}}`");
        Ok(())
    }

    /// All of its jobs.
    fn every_job(&self) -> impl Iterator<Item = &Job> {
        self.before.iter().chain(&self.beside).chain([&self.job])
    }

    /// All that is done while jobs run.
    pub fn controls(&self) -> impl Iterator<Item = &Control> {
        self.every_job().flat_map(|job| &job.control)
    }

    /// All that is to be seen besides jobs.
    fn surfaces(&self) -> impl Iterator<Item = &Surface> {
        let meanwhile = self.controls().filter_map(|step| match &step.after {
            After::Seen(surface) => Some(&**surface),
            _ => None,
        });
        meanwhile.chain(self.afterwards.iter().map(|step| &step.seen))
    }
}

impl Job {
    /// Whether it says what is there on stages of their own only.
    fn needs_own_stage(&self) -> bool {
        let faults = self.faults.iter().map(|fault| fault.on);
        self.runner.is_some()
            || self.expect.ran_on.is_some()
            || faults.into_iter().any(|on| on.is_of_all() && on != On::Request)
    }
}

/// Reads one file.
pub fn read(area: &str, path: &Path) -> Result<Case> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a case's file has no name")?;
    let mut case: Case = serde_saphyr::from_str(&text)
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("{} is no case", path.display()))?;
    case.name = format!("{area}/{stem}");
    case.check().with_context(|| format!("{} is no case", path.display()))?;
    Ok(case)
}

/// Where the areas are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases")
}

/// The cases of an area in the order of their names.
pub fn read_area(area: &str) -> Result<Vec<Case>> {
    let folder = folder().join(area);
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    paths.iter().map(|path| read(area, path)).collect()
}
