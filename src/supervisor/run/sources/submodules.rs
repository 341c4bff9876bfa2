//! The part of the sources' script that brings submodules.

use super::script::{quoted, say};
use super::settings::{Settings, Submodules};
use crate::supervisor::run::script::quote;

/// A function that brings the submodules; it stands in the workspace.
pub fn function(settings: &Settings) -> String {
    let body = match &settings.submodules {
        Submodules::None => say("Skipping submodules"),
        Submodules::Update { recursive, depth, paths, flags } => {
            let update = Update { settings, recursive: *recursive, depth: *depth, paths, flags };
            update.body()
        }
    };
    format!("__dormouse_submodules() {{\n{body}\n}}\n")
}

struct Update<'a> {
    settings: &'a Settings,
    recursive: bool,
    depth: u32,
    paths: &'a [String],
    flags: &'a [String],
}

impl Update<'_> {
    fn body(&self) -> String {
        let deep = if self.recursive { " --recursive" } else { "" };
        let paths = match self.paths {
            [] => String::new(),
            paths => format!(" -- {}", quoted(paths)),
        };
        let depth = if self.depth > 0 { format!(" --depth={}", self.depth) } else { String::new() };
        let flags = quoted(self.flags);
        let sync = format!("git submodule --quiet sync{deep}{paths}");
        let update = format!("GIT_LFS_SKIP_SMUDGE=1 git submodule update --init{deep}{depth} {flags}{paths}");
        // Where the server does not give a single commit, all of the history has it.
        let whole = format!("GIT_LFS_SKIP_SMUDGE=1 git submodule update --init{deep} {flags}{paths}");
        let each = |command: &str| format!("git submodule --quiet foreach{deep} {}", quote(command));
        // A clone of some depth knows one branch; what a submodule follows may be another.
        let branches = if self.flags.iter().any(|flag| flag == "--remote") {
            each("git fetch --quiet origin '+refs/heads/*:refs/remotes/origin/*'")
        } else {
            ":".to_owned()
        };
        let reset = each("GIT_LFS_SKIP_SMUDGE=1 git reset --quiet --hard");
        let clean = match &self.settings.clean {
            Some(flags) => each(&format!("git clean {}", plain_quoted(flags))),
            None => ":".to_owned(),
        };
        let large_files = if self.settings.large_files {
            format!("{{ ! __dormouse_has_lfs || {}; }}", each("git lfs pull"))
        } else {
            ":".to_owned()
        };
        let title =
            if self.recursive { "Updating submodules recursively..." } else { "Updating submodules..." };
        let again = say("Updating submodules failed, trying again...");
        format!(
            "{}\n{sync} && {clean} && {reset} &&\n{{ {update} || {{ {again}; {sync} && {branches} && {whole} && {reset}; }}; }} \
             &&\n{sync} && {clean} && {large_files}",
            say(title)
        )
    }
}

/// For a plain shell, which `git submodule foreach` starts.
fn plain_quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
}
