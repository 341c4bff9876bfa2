//! What a job wishes of its sources, read from its variables; what cannot be read is reported and replaced.

use crate::gitlab::wire::JobPayload;
use crate::supervisor::run::variables::JobVariables;

/// How the sources come into the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Into an empty folder.
    Clone,
    /// Into what is there.
    Fetch,
    /// Not at all.
    None,
    /// Not at all, and the folder is emptied.
    Empty,
}

/// Which submodules are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submodules {
    /// None.
    None,
    /// Those of the repository, or theirs as well.
    Update {
        /// Whether submodules of submodules are fetched too.
        recursive: bool,
        /// History depth; 0 is all of it.
        depth: u32,
        /// Paths or exclusions; none means all.
        paths: Vec<String>,
        /// Further flags of `git submodule update`.
        flags: Vec<String>,
    },
}

/// All wishes of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How the sources come into the workspace.
    pub strategy: Strategy,
    /// Whether the job's commit is checked out.
    pub checkout: bool,
    /// Flags of `git clean`; `None` leaves what lies about.
    pub clean: Option<Vec<String>>,
    /// Flags of `git fetch`.
    pub fetch_flags: Vec<String>,
    /// Flags of `git clone`; without any the repository is made by a fetch.
    pub clone_flags: Vec<String>,
    /// Which submodules are fetched.
    pub submodules: Submodules,
    /// Whether large files are fetched, where `git-lfs` is there.
    pub large_files: bool,
}

impl Settings {
    /// Reads a job's wishes, and what of them could not be read.
    pub fn read(job: &JobPayload, variables: &JobVariables) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let default = if job.allow_git_fetch { Strategy::Fetch } else { Strategy::Clone };
        let strategies = [
            ("clone", Strategy::Clone),
            ("fetch", Strategy::Fetch),
            ("none", Strategy::None),
            ("empty", Strategy::Empty),
        ];
        let strategy = choice(variables, "GIT_STRATEGY", &strategies, default, &mut warnings);
        let strategy = match strategy {
            Strategy::Clone | Strategy::Fetch if job.git_info.repo_url.trim().is_empty() => {
                warnings.push("GitLab names no repository: no sources are fetched".to_owned());
                Strategy::None
            }
            strategy => strategy,
        };
        let none = Submodules::None;
        let update = |recursive, warnings: &mut Vec<String>| Submodules::Update {
            recursive,
            depth: depth(variables, job.git_info.depth, warnings),
            paths: words(variables.setting("GIT_SUBMODULE_PATHS")),
            flags: words(variables.setting("GIT_SUBMODULE_UPDATE_FLAGS")),
        };
        let reach = [("none", None), ("normal", Some(false)), ("recursive", Some(true))];
        let submodules = match choice(variables, "GIT_SUBMODULE_STRATEGY", &reach, None, &mut warnings) {
            None => none,
            Some(recursive) => update(recursive, &mut warnings),
        };
        let mut flag = |key, default| match variables.read_flag(key, default) {
            Ok(on) => on,
            Err(warning) => {
                warnings.push(warning);
                default
            }
        };
        let checkout = flag("GIT_CHECKOUT", true);
        let large_files = !flag("GIT_LFS_SKIP_SMUDGE", false);
        flag("GIT_SUBMODULE_FORCE_HTTPS", false);
        let flags = |key, default| match variables.setting(key) {
            Some("none") => None,
            flags => Some(words(flags.or(default))),
        };
        let clean = flags("GIT_CLEAN_FLAGS", Some("-ffdx"));
        let fetch_flags = flags("GIT_FETCH_EXTRA_FLAGS", Some("--prune --quiet")).unwrap_or_default();
        let clone_flags = flags("GIT_CLONE_EXTRA_FLAGS", None).unwrap_or_default();
        let settings = Self { strategy, checkout, clean, fetch_flags, clone_flags, submodules, large_files };
        (settings, warnings)
    }
}

/// One of some words; another one is reported and replaced by the default.
fn choice<T: Copy + PartialEq>(
    variables: &JobVariables,
    key: &str,
    known: &[(&str, T)],
    default: T,
    warnings: &mut Vec<String>,
) -> T {
    let Some(wanted) = variables.setting(key) else { return default };
    if let Some((_, chosen)) = known.iter().find(|(word, _)| *word == wanted) {
        return *chosen;
    }
    let all = known.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    let instead = known.iter().find(|(_, value)| *value == default).map_or("", |(word, _)| *word);
    warnings.push(format!("{key} {wanted:?} is not one of {all}: using {instead}"));
    default
}

/// `GIT_SUBMODULE_DEPTH`, or the depth of the repository itself.
fn depth(variables: &JobVariables, of_repository: u32, warnings: &mut Vec<String>) -> u32 {
    let Some(wanted) = variables.setting("GIT_SUBMODULE_DEPTH") else { return of_repository };
    wanted.parse().unwrap_or_else(|_| {
        warnings.push(format!("GIT_SUBMODULE_DEPTH {wanted:?} is no number: using {of_repository}"));
        of_repository
    })
}

fn words(text: Option<&str>) -> Vec<String> {
    text.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::wire::{GitInfo, Variable};
    use crate::supervisor::run::variables::tests::gather;

    fn read(settings: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let git_info = GitInfo { depth: 20, repo_url: "http://git.test/p.git".into(), ..GitInfo::default() };
        let job = JobPayload { allow_git_fetch: true, git_info, ..JobPayload::default() };
        let variable = |(key, value): &(&str, &str)| Variable {
            key: (*key).into(),
            value: (*value).into(),
            ..Variable::default()
        };
        Settings::read(&job, &gather(settings.iter().map(variable).collect()))
    }

    #[test]
    fn what_a_job_does_not_say_is_the_usual() {
        let (settings, warnings) = read(&[("GIT_STRATEGY", " ")]);
        assert_eq!(settings.strategy, Strategy::Fetch);
        assert_eq!(settings.fetch_flags, ["--prune", "--quiet"]);
        assert_eq!(settings.clean.as_deref(), Some(["-ffdx".to_owned()].as_slice()));
        assert!(settings.checkout && settings.large_files && settings.clone_flags.is_empty());
        assert_eq!(settings.submodules, Submodules::None);
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn flags_that_are_none_are_none() {
        let (settings, _) = read(&[
            ("GIT_CLEAN_FLAGS", "none"),
            ("GIT_FETCH_EXTRA_FLAGS", "none"),
            ("GIT_CLONE_EXTRA_FLAGS", "none"),
        ]);
        assert!(
            settings.clean.is_none() && settings.fetch_flags.is_empty() && settings.clone_flags.is_empty()
        );
    }

    #[test]
    fn a_job_without_a_repository_fetches_none_and_says_so() {
        let (settings, warnings) = Settings::read(&JobPayload::default(), &gather(Vec::new()));
        assert_eq!(settings.strategy, Strategy::None);
        assert!(warnings[0].contains("no repository"), "{warnings:?}");
    }

    #[test]
    fn submodules_take_the_repositorys_depth_unless_they_have_their_own() {
        let (settings, _) =
            read(&[("GIT_SUBMODULE_STRATEGY", "normal"), ("GIT_SUBMODULE_PATHS", "a :(exclude)b")]);
        let paths = vec!["a".to_owned(), ":(exclude)b".to_owned()];
        let wanted = Submodules::Update { recursive: false, depth: 20, paths, flags: Vec::new() };
        assert_eq!(settings.submodules, wanted);
        let own = read(&[("GIT_SUBMODULE_STRATEGY", "recursive"), ("GIT_SUBMODULE_DEPTH", "1")]).0.submodules;
        assert!(matches!(own, Submodules::Update { recursive: true, depth: 1, .. }), "{own:?}");
    }

    #[test]
    fn each_bad_value_is_reported_with_what_is_done_instead() {
        let (settings, warnings) = read(&[
            ("GIT_STRATEGY", "magic"),
            ("GIT_SUBMODULE_STRATEGY", "normal"),
            ("GIT_SUBMODULE_DEPTH", "-1"),
            ("GIT_CHECKOUT", "perhaps"),
        ]);
        assert_eq!((settings.strategy, settings.checkout), (Strategy::Fetch, true));
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for (warning, words) in
            warnings.iter().zip([["magic", "using fetch"], ["-1", "using 20"], ["perhaps", "using true"]])
        {
            assert!(words.iter().all(|word| warning.contains(word)), "{warning}");
        }
        let (_, warnings) = read(&[("GIT_SUBMODULE_STRATEGY", "all")]);
        assert!(warnings[0].contains("using none"), "{warnings:?}");
    }
}
