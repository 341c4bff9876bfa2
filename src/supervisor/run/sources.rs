//! The script that fetches a job's sources, and the settings that keep its credentials out of every file.
//!
//! Pure. `origin` is stored without credentials; `git` gets them from its environment, which rewrites the address.

use super::script::quote;
use super::variables::{CA_FILE, JobVariables};
use crate::gitlab::wire::JobPayload;

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

impl Strategy {
    /// Reads `GIT_STRATEGY`; a value nobody knows is reported and replaced by the default.
    pub fn of(job: &JobPayload, wanted: Option<&str>) -> (Self, Option<String>) {
        let default = if job.allow_git_fetch { Self::Fetch } else { Self::Clone };
        match wanted.map(str::trim) {
            None | Some("") => (default, None),
            Some("clone") => (Self::Clone, None),
            Some("fetch") => (Self::Fetch, None),
            Some("none") => (Self::None, None),
            Some("empty") => (Self::Empty, None),
            Some(other) => {
                let instead = if default == Self::Fetch { "fetch" } else { "clone" };
                (default, Some(format!("GIT_STRATEGY {other:?} is not known, using {instead}")))
            }
        }
    }
}

/// Settings for every `git` of the job: the address with its credentials, and the certificates to trust.
pub fn git_settings(job: &JobPayload, variables: &JobVariables) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    if let Some(address) = Address::parse(&job.git_info.repo_url) {
        let bare = format!("{}://{}/", address.scheme, address.host);
        if let Some(credentials) = address.credentials {
            let full = format!("{}://{credentials}@{}/", address.scheme, address.host);
            settings.push((format!("url.{full}.insteadOf"), bare.clone()));
        }
        if let Some(file) = variables.value(CA_FILE) {
            settings.push((format!("http.{bare}.sslCAInfo"), file.to_owned()));
        }
    }
    settings
}

/// The repository's address without credentials.
pub fn bare_address(repo_url: &str) -> String {
    match Address::parse(repo_url) {
        Some(address) => format!("{}://{}/{}", address.scheme, address.host, address.path),
        None => repo_url.to_owned(),
    }
}

struct Address<'a> {
    scheme: &'a str,
    credentials: Option<&'a str>,
    host: &'a str,
    path: &'a str,
}

impl<'a> Address<'a> {
    /// Reads an HTTP address; others carry no credentials.
    fn parse(address: &'a str) -> Option<Self> {
        let (scheme, rest) = address.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, authority),
        };
        Some(Self { scheme, credentials, host, path })
    }
}

/// The script of `get_sources`, or `None` when nothing is fetched.
pub fn script(
    strategy: Strategy,
    job: &JobPayload,
    variables: &JobVariables,
    workspace: &str,
) -> Option<String> {
    let folder = quote(workspace);
    let mut out = String::new();
    hook(&mut out, job, "pre_get_sources_script");
    match strategy {
        Strategy::None if out.is_empty() && !has_hook(job, "post_get_sources_script") => return None,
        Strategy::None => {}
        Strategy::Empty => out.push_str(&format!("{}mkdir -p {folder}\n", removal(&folder))),
        Strategy::Clone => {
            out.push_str(&removal(&folder));
            fetch(&mut out, job, variables, &folder);
        }
        Strategy::Fetch => fetch(&mut out, job, variables, &folder),
    }
    hook(&mut out, job, "post_get_sources_script");
    Some(out)
}

/// Removes a folder, also where the last job has left folders that may not be written to.
fn removal(folder: &str) -> String {
    format!("rm -rf {folder} 2>/dev/null || {{ chmod -R u+rwX {folder}; rm -rf {folder}; }}\n")
}

fn has_hook(job: &JobPayload, name: &str) -> bool {
    job.hooks.iter().any(|hook| hook.name == name && !hook.script.is_empty())
}

fn hook(out: &mut String, job: &JobPayload, name: &str) {
    for hook in job.hooks.iter().filter(|hook| hook.name == name) {
        for line in &hook.script {
            out.push_str(line);
            out.push('\n');
        }
    }
}

fn fetch(out: &mut String, job: &JobPayload, variables: &JobVariables, folder: &str) {
    let git = &job.git_info;
    let depth = git.depth;
    // Hooks and templates are a user's, or an earlier job's: none runs while sources are fetched.
    out.push_str(
        "export GIT_TERMINAL_PROMPT=0 GCM_INTERACTIVE=Never\n\
         git() { command git -c core.hooksPath=/dev/null -c gc.auto=0 \"$@\"; }\n",
    );
    if depth > 0 {
        out.push_str(&format!("echo {}\n", quote(&green(&format!("Fetching changes, depth {depth}...")))));
    } else {
        out.push_str(&format!("echo {}\n", quote(&green("Fetching changes..."))));
    }
    // What the last job has made read-only is opened and tried once more.
    out.push_str(&format!("__dormouse_try() {{ \"$@\" || {{ chmod -R u+rwX {folder}; \"$@\"; }}; }}\n"));
    out.push_str(&format!("mkdir -p {folder}\n[[ -w {folder} ]] || chmod -R u+rwX {folder}\ncd {folder}\n"));
    out.push_str(
        "if [[ -d .git ]]; then\n\
         rm -f .git/index.lock .git/shallow.lock .git/HEAD.lock .git/config.lock .git/packed-refs.lock\n\
         [[ ! -d .git/refs ]] || find .git/refs -name '*.lock' -type f -delete\n",
    );
    let format = if git.repo_object_format == "sha256" { " --object-format=sha256" } else { "" };
    let address = quote(&bare_address(&git.repo_url));
    out.push_str(&format!("else\ngit init --quiet --template= --initial-branch=none{format}\nfi\n"));
    out.push_str(&format!(
        "git remote add origin {address} 2>/dev/null || git remote set-url origin {address}\n"
    ));
    let extra = words(variables.setting("GIT_FETCH_EXTRA_FLAGS").unwrap_or("--prune --quiet"));
    let refspecs = if git.refspecs.is_empty() {
        "'+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*'".to_owned()
    } else {
        git.refspecs.iter().map(|refspec| quote(refspec)).collect::<Vec<_>>().join(" ")
    };
    let depth_flag = if depth > 0 {
        format!("--depth={depth}")
    } else {
        out.push_str("__dormouse_all=()\n[[ ! -f .git/shallow ]] || __dormouse_all=(--unshallow)\n");
        "\"${__dormouse_all[@]}\"".to_owned()
    };
    out.push_str(&format!("git fetch {depth_flag} {extra} origin {refspecs}\n"));
    checkout(out, job, variables);
}

fn checkout(out: &mut String, job: &JobPayload, variables: &JobVariables) {
    let git = &job.git_info;
    if !variables.flag("GIT_CHECKOUT", true) {
        out.push_str("echo 'Skipping the checkout (GIT_CHECKOUT is false)'\n");
        return;
    }
    let short: String = git.sha.chars().take(8).collect();
    let line = green(&format!("Checking out {short} as detached HEAD (ref {})...", git.ref_name));
    out.push_str(&format!("echo {}\n", quote(&line)));
    out.push_str(&format!("__dormouse_try git checkout --force --quiet --detach {}\n", quote(&git.sha)));
    match variables.setting("GIT_CLEAN_FLAGS").unwrap_or("-ffdx") {
        "none" => {}
        flags => out.push_str(&format!("__dormouse_try git clean {}\n", words(flags))),
    }
}

/// Words of a setting, each quoted: a setting cannot carry shell code.
fn words(text: &str) -> String {
    text.split_ascii_whitespace().map(quote).collect::<Vec<_>>().join(" ")
}

fn green(text: &str) -> String {
    format!("\x1b[32;1m{text}\x1b[0;m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_address() {
        let url = "http://gitlab-ci-token:tok@127.0.0.1:80/group/p.git";
        assert_eq!(bare_address(url), "http://127.0.0.1:80/group/p.git");
        assert_eq!(bare_address("/srv/p.git"), "/srv/p.git");
    }

    #[test]
    fn an_unknown_strategy_is_reported_and_replaced() {
        let job = JobPayload { allow_git_fetch: true, ..JobPayload::default() };
        let (strategy, warning) = Strategy::of(&job, Some("magic"));
        assert_eq!(strategy, Strategy::Fetch);
        assert!(warning.unwrap().contains("magic"));
    }
}
