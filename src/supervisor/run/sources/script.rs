//! The text of the sources' script.
//!
//! What fetches runs in a subshell, so that the hooks around it see nothing of its functions and settings. Its steps
//! are chained, not left to `errexit`: a step that fails in a repository of an earlier job is looked into.

use super::address::bare_address;
use super::reuse;
use super::settings::{Settings, Strategy};
use super::submodules;
use crate::gitlab::wire::JobPayload;
use crate::spool::order::JobSettings;
use crate::supervisor::run::script::{command, quote};

/// The script of `get_sources`, or `None` when there is nothing to do. Hooks are around what is fetched: where nothing
/// is, none runs.
pub fn script(settings: &Settings, job: &JobPayload, pool: &JobSettings, workspace: &str) -> Option<String> {
    let folder = quote(workspace);
    let mut out = String::new();
    match settings.strategy {
        Strategy::None => return None,
        Strategy::Empty => return Some(format!("{}mkdir -p {folder}\n", removal(&folder))),
        Strategy::Clone | Strategy::Fetch => {}
    }
    pool_hook(&mut out, &pool.pre_get_sources_script);
    hook(&mut out, job, "pre_get_sources_script");
    if settings.strategy == Strategy::Clone {
        out.push_str(&removal(&folder));
    }
    fetch(&mut out, settings, job, &folder);
    let mut after = String::new();
    pool_hook(&mut after, &pool.post_get_sources_script);
    hook(&mut after, job, "post_get_sources_script");
    if !after.is_empty() {
        out.push_str(&format!("mkdir -p {folder}\ncd {folder}\n{after}"));
    }
    Some(out)
}

/// The script that clears the work tree for another attempt; what has been fetched is kept.
pub fn clear(workspace: &str) -> String {
    let folder = quote(workspace);
    let find = format!("find {folder} -mindepth 1 -maxdepth 1 ! -name .git -exec rm -rf {{}} +");
    format!("[[ ! -d {folder} ]] || {find} 2>/dev/null || {{ chmod -R u+rwX {folder}; {find}; }}\n")
}

/// Removes a folder, also where the last job has left folders that may not be written to.
fn removal(folder: &str) -> String {
    format!("rm -rf {folder} 2>/dev/null || {{ chmod -R u+rwX {folder}; rm -rf {folder}; }}\n")
}

fn pool_hook(out: &mut String, script: &str) {
    if !script.trim().is_empty() {
        command(out, script);
    }
}

fn hook(out: &mut String, job: &JobPayload, name: &str) {
    for hook in job.hooks.iter().filter(|hook| hook.name == name) {
        for line in &hook.script {
            command(out, line);
        }
    }
}

fn fetch(out: &mut String, settings: &Settings, job: &JobPayload, folder: &str) {
    // Hooks and templates are a user's, or an earlier job's: none runs while sources are fetched.
    out.push_str(
        "(\nexport GIT_TERMINAL_PROMPT=0 GCM_INTERACTIVE=Never\n\
         git() { command git -c core.hooksPath=/dev/null -c gc.autoDetach=false -c submodule.recurse=false \
         -c init.defaultBranch=none -c advice.detachedHead=false \"$@\"; }\n\
         __dormouse_has_lfs() { git lfs version > /dev/null 2>&1; }\n",
    );
    out.push_str(&large_files(settings));
    // What the last job has made read-only is opened and tried once more.
    out.push_str(&format!("__dormouse_try() {{ \"$@\" || {{ chmod -R u+rwX {folder}; \"$@\"; }}; }}\n"));
    out.push_str(reuse::FUNCTIONS);
    out.push_str(&open(settings, job, folder));
    out.push_str(&fetching(settings, job));
    out.push_str(&checkout(settings, job));
    out.push_str(&submodules::function(settings));
    out.push_str(&fault_is_here(job));
    out.push_str(
        "__dormouse_sources() { __dormouse_open && __dormouse_fetch && __dormouse_checkout && \
         __dormouse_submodules; }\n",
    );
    out.push_str(&format!(
        "__dormouse_reused=; [[ ! -e {folder}/.git ]] || __dormouse_reused=yes\n\
         __dormouse_sources || {{\n__dormouse_code=$?\n\
         [[ -n $__dormouse_reused ]] && __dormouse_fault_is_here || exit \"$__dormouse_code\"\n{}\n\
         cd /\n{}__dormouse_sources\n}}\n)\n",
        say("What an earlier job has left cannot be used, fetching anew..."),
        removal(folder),
    ));
}

/// Makes the repository, or makes the one that is there fit for use.
fn open(settings: &Settings, job: &JobPayload, folder: &str) -> String {
    let git = &job.git_info;
    let (format, check) = if git.repo_object_format == "sha256" {
        let refused =
            "ERROR: the repository's objects are named by SHA-256, which git knows since 2.29; the host has";
        let check = format!(
            "[[ $(git init -h 2>&1) == *object-format* ]] || {{ echo {} \"$(git version)\"; return 1; }}\n",
            quote(refused)
        );
        (" --object-format=sha256", check)
    } else {
        ("", String::new())
    };
    let address = quote(&bare_address(&git.repo_url));
    let depth = if git.depth > 0 { format!(" --depth={}", git.depth) } else { String::new() };
    let clone = if settings.strategy == Strategy::Clone && !settings.clone_flags.is_empty() {
        format!(
            "[[ -e {folder} ]] || git clone --quiet --no-checkout --template= {depth} {} -- {address} {folder} || \
             return\n",
            quoted(&settings.clone_flags)
        )
    } else {
        String::new()
    };
    // A partial clone that has lost its settings would take what it never fetched for damage.
    format!(
        "__dormouse_open() {{\n__dormouse_filter=\n{check}{clone}\
         mkdir -p {folder} && {{ [[ -w {folder} ]] || chmod -R u+rwX {folder}; }} && cd {folder} || return\n\
         __dormouse_try __dormouse_make_ready && git init --quiet --template={format} && \
         git config remote.origin.url {address} && \
         git config remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*' || return\n\
         ! compgen -G '.git/objects/pack/*.promisor' > /dev/null || {{ git config remote.origin.promisor true && \
         {{ [[ -z $__dormouse_filter ]] || git config remote.origin.partialclonefilter \"$__dormouse_filter\"; }}; }}\n}}\n"
    )
}

fn fetching(settings: &Settings, job: &JobPayload) -> String {
    let git = &job.git_info;
    let refspecs = if git.refspecs.is_empty() {
        "'+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*'".to_owned()
    } else {
        quoted(&git.refspecs)
    };
    let flags = quoted(&settings.fetch_flags);
    let (title, depth) = if git.depth > 0 {
        (format!("Fetching changes with git depth set to {}...", git.depth), format!("--depth={}", git.depth))
    } else {
        ("Fetching changes...".to_owned(), "\"${all[@]}\"".to_owned())
    };
    format!(
        "__dormouse_fetch() {{\n{}\nlocal all=()\n[[ ! -f .git/shallow ]] || all=(--unshallow)\n\
         git fetch {depth} {flags} origin {refspecs}\n}}\n",
        say(&title)
    )
}

fn checkout(settings: &Settings, job: &JobPayload) -> String {
    let git = &job.git_info;
    if !settings.checkout {
        let line = say("Skipping Git checkout (GIT_CHECKOUT is false)");
        return format!("__dormouse_checkout() {{ {line}; }}\n");
    }
    let short: String = git.sha.chars().take(8).collect();
    let line = say(&format!("Checking out {short} as detached HEAD (ref is {})...", git.ref_name));
    let clean = match &settings.clean {
        Some(flags) => format!("__dormouse_try git clean {}", quoted(flags)),
        None => ":".to_owned(),
    };
    format!(
        "__dormouse_checkout() {{\n{line}\n\
         GIT_LFS_SKIP_SMUDGE=1 __dormouse_try git checkout --force --quiet --detach {} && {clean} && __dormouse_large_files\n}}\n",
        quote(&git.sha)
    )
}

/// All large files at once are faster than one after the other, and come too where no filter is set up.
fn large_files(settings: &Settings) -> String {
    let body = if settings.large_files {
        let missing = "WARNING: git-lfs is not installed on the host: files that git LFS keeps stay pointers";
        format!(
            "if __dormouse_has_lfs; then git lfs pull; \
             elif git grep --quiet filter=lfs HEAD -- '*.gitattributes' 2> /dev/null; then echo {}; fi",
            quote(&format!("\x1b[33;1m{missing}\x1b[0;m"))
        )
    } else {
        ":".to_owned()
    };
    format!("__dormouse_large_files() {{ {body}; }}\n")
}

/// Whether what failed is the fault of the repository that is there: the server answers, and has what is asked for.
fn fault_is_here(job: &JobPayload) -> String {
    let sources = job.git_info.refspecs.iter().filter_map(|refspec| {
        let (source, _) = refspec.trim_start_matches('+').split_once(':')?;
        (source.starts_with("refs/") && !source.contains('*')).then(|| source.to_owned())
    });
    let address = quote(&bare_address(&job.git_info.repo_url));
    format!(
        "__dormouse_fault_is_here() {{\nlocal there ref refs=({})\n\
         there=$(cd / && git ls-remote {address} HEAD \"${{refs[@]}}\") || return\n\
         for ref in \"${{refs[@]}}\"; do [[ $there$'\\n' == *$'\\t'\"$ref\"$'\\n'* ]] || \
         {{ echo \"The server has no $ref.\"; return 1; }}; done\n}}\n",
        quoted(&sources.collect::<Vec<_>>())
    )
}

/// Each word quoted: a setting cannot carry shell code.
pub(super) fn quoted(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// Shows a line of the runner's in green.
pub(super) fn say(text: &str) -> String {
    format!("echo {}", quote(&format!("\x1b[32;1m{text}\x1b[0;m")))
}
