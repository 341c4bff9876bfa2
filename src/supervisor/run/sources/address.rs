//! The repository's address, and what the `git` of a job is told about it.

use crate::gitlab::wire::JobPayload;
use crate::supervisor::run::variables::{CA_FILE, CERTIFICATE_FILE, JobVariables, KEY_FILE};

/// A setting of `git`: its name and its value.
pub type Setting = (String, String);

/// What every `git` of a job is told, in no repository's own settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GitSettings {
    /// How the server's addresses become ones with the job's credentials. They are for the project's own repository: a
    /// script that fetches another one brings credentials of its own, which these would hide.
    pub addresses: Vec<Setting>,
    /// The certificates to trust and to show.
    pub certificates: Vec<Setting>,
}

/// What every `git` of the job is told. Whom the host trusts by itself (`shows_authorities`) `git` is not told: it finds
/// them, and whatever else the host's own settings say.
pub fn git_settings(job: &JobPayload, variables: &JobVariables, shows_authorities: bool) -> GitSettings {
    let mut settings = GitSettings::default();
    let Some(address) = Address::parse(&job.git_info.repo_url) else { return settings };
    let bare = format!("{}://{}/", address.scheme, address.host);
    let full = match address.credentials {
        Some(credentials) => format!("{}://{credentials}@{}/", address.scheme, address.host),
        None => bare.clone(),
    };
    if full != bare {
        settings.addresses.push((format!("url.{full}.insteadOf"), bare.clone()));
    }
    if variables.flag("GIT_SUBMODULE_FORCE_HTTPS", false) {
        let forms = ssh_forms(&address, variables);
        settings.addresses.extend(forms.into_iter().map(|form| (format!("url.{full}.insteadOf"), form)));
    }
    let knows_authorities = shows_authorities && !job.variables.iter().any(|given| given.key == CA_FILE);
    for (setting, variable) in [("sslCAInfo", CA_FILE), ("sslCert", CERTIFICATE_FILE), ("sslKey", KEY_FILE)] {
        if variable == CA_FILE && knows_authorities {
            continue;
        }
        let file = variables.value(variable);
        settings.certificates.extend(file.map(|file| (format!("http.{bare}.{setting}"), file.to_owned())));
    }
    settings
}

/// Settings as the text of a file that `git` includes.
pub fn as_file(settings: &[Setting]) -> String {
    let escaped = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"");
    let mut text = String::new();
    for (name, value) in settings {
        let (section, last) = name.rsplit_once('.').unwrap_or(("", name));
        let (section, below) = section.split_once('.').unwrap_or((section, ""));
        text.push_str(&format!("[{section} \"{}\"]\n\t{last} = \"{}\"\n", escaped(below), escaped(value)));
    }
    text
}

/// Settings that have `git` include a file in the repository of a folder, its submodules and its other work trees: not
/// in repositories that a script makes in the folder.
pub fn included(folder: &str, file: &str) -> [Setting; 2] {
    let mut pattern = String::with_capacity(folder.len());
    for character in folder.chars() {
        if matches!(character, '*' | '?' | '[' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    ["", "/"].map(|end| (format!("includeIf.gitdir:{pattern}/.git{end}.path"), file.to_owned()))
}

/// How the server's repositories are called over SSH.
fn ssh_forms(address: &Address<'_>, variables: &JobVariables) -> Vec<String> {
    let without_port = address.host.rsplit_once(':').map_or(address.host, |(host, _)| host);
    let named = ["CI_SERVER_SHELL_SSH_HOST", "CI_SERVER_HOST"].map(|key| variables.setting(key));
    let mut hosts: Vec<&str> = named.into_iter().flatten().chain([without_port]).collect();
    hosts.dedup();
    let port = variables.setting("CI_SERVER_SHELL_SSH_PORT").unwrap_or("22");
    let of = |host: &str| {
        [format!("git@{host}:"), format!("ssh://git@{host}/"), format!("ssh://git@{host}:{port}/")]
    };
    hosts.into_iter().flat_map(of).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitlab::wire::{GitInfo, Variable};
    use crate::supervisor::run::variables::{Surroundings, tests::gather};

    #[test]
    fn credentials_leave_the_address() {
        let url = "http://gitlab-ci-token:tok@127.0.0.1:80/group/p.git";
        assert_eq!(bare_address(url), "http://127.0.0.1:80/group/p.git");
        assert_eq!(bare_address("/srv/p.git"), "/srv/p.git");
    }

    #[test]
    fn git_is_told_whom_to_trust_and_what_to_show() {
        let job = JobPayload {
            git_info: GitInfo { repo_url: "https://git.test/g/p.git".into(), ..GitInfo::default() },
            ..JobPayload::default()
        };
        let surroundings = Surroundings {
            temporary: "/b/p.tmp",
            ca_bundle: Some("CA"),
            client: Some(("CERTIFICATE", "a long private key")),
            ..Surroundings::default()
        };
        let variables = JobVariables::gather(&job, &surroundings);
        let setting =
            |name: &str, file: &str| (format!("http.https://git.test/.{name}"), format!("/b/p.tmp/{file}"));
        assert_eq!(
            git_settings(&job, &variables, false).certificates,
            [
                setting("sslCAInfo", CA_FILE),
                setting("sslCert", CERTIFICATE_FILE),
                setting("sslKey", KEY_FILE),
            ]
        );
        // The host's own authorities, which a job may replace by its own.
        let of_host = git_settings(&job, &variables, true).certificates;
        assert_eq!(of_host, [setting("sslCert", CERTIFICATE_FILE), setting("sslKey", KEY_FILE)]);
        let own = Variable { key: CA_FILE.into(), value: "own".into(), file: true, ..Variable::default() };
        let job = JobPayload { variables: vec![own], ..job };
        let variables = JobVariables::gather(&job, &surroundings);
        assert_eq!(git_settings(&job, &variables, true).certificates[0], setting("sslCAInfo", CA_FILE));
        assert!(variables.secrets().iter().any(|secret| secret == "a long private key"));
    }

    #[test]
    fn ssh_addresses_of_the_server_become_https_when_the_job_says_so() {
        let variable =
            |key: &str, value: &str| Variable { key: key.into(), value: value.into(), ..Variable::default() };
        let job = JobPayload {
            git_info: GitInfo { repo_url: "https://u:t@git.test:8443/g/p.git".into(), ..GitInfo::default() },
            ..JobPayload::default()
        };
        let plain = git_settings(&job, &gather(Vec::new()), false);
        assert_eq!(
            plain.addresses,
            [("url.https://u:t@git.test:8443/.insteadOf".to_owned(), "https://git.test:8443/".to_owned())]
        );
        let forced = gather(vec![
            variable("GIT_SUBMODULE_FORCE_HTTPS", "true"),
            variable("CI_SERVER_SHELL_SSH_HOST", "ssh.test"),
            variable("CI_SERVER_SHELL_SSH_PORT", "2222"),
        ]);
        let forms: Vec<String> =
            git_settings(&job, &forced, false).addresses.into_iter().map(|(_, form)| form).collect();
        for wanted in ["git@ssh.test:", "ssh://git@ssh.test:2222/", "git@git.test:", "ssh://git@git.test/"] {
            assert!(forms.iter().any(|form| form == wanted), "{wanted} in {forms:?}");
        }
    }

    /// What `git` says in a folder, with these settings in its environment.
    fn git(folder: &std::path::Path, settings: &[Setting], words: &[&str]) -> String {
        let mut git = std::process::Command::new("git");
        git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").arg("-C").arg(folder);
        git.env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (number, (name, value)) in settings.iter().enumerate() {
            git.env(format!("GIT_CONFIG_KEY_{number}"), name);
            git.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        let output = git.args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn credentials_are_for_the_projects_repository_and_what_belongs_to_it() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let project = root.join("odd [1]*\\ \"name\"");
        let full = r#"https://u:a\b"c@git.test/"#;
        let addresses = [(format!("url.{full}.insteadOf"), "https://git.test/".to_owned())];
        let file = root.join("settings");
        std::fs::write(&file, as_file(&addresses)).unwrap();
        let settings = included(project.to_str().unwrap(), file.to_str().unwrap());
        let [own, nested, beside] = [project.clone(), project.join("lib"), root.join("odd 1")];
        for repository in [&own, &nested, &beside] {
            std::fs::create_dir_all(repository).unwrap();
            git(repository, &[], &["init", "--quiet"]);
        }
        let submodule = project.join(".git/modules/sub");
        std::fs::create_dir_all(&submodule).unwrap();
        git(&submodule, &[], &["init", "--quiet", "--bare"]);
        let bare = "https://git.test/g/p.git";
        let ask = &["ls-remote", "--get-url", bare];
        for folder in [&own, &submodule] {
            assert_eq!(git(folder, &settings, ask), format!("{full}g/p.git"), "{}", folder.display());
        }
        for folder in [&nested, &beside, &root] {
            assert_eq!(git(folder, &settings, ask), bare, "{}", folder.display());
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(git(&own, &settings, ask), bare);
    }
}
