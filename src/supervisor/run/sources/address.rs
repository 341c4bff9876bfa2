//! The repository's address, and what every `git` of a job is told about it.

use crate::gitlab::wire::JobPayload;
use crate::supervisor::run::variables::{CA_FILE, CERTIFICATE_FILE, JobVariables, KEY_FILE};

/// Settings for every `git` of the job: the address with its credentials, and the certificates to trust.
pub fn git_settings(job: &JobPayload, variables: &JobVariables) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let Some(address) = Address::parse(&job.git_info.repo_url) else { return settings };
    let bare = format!("{}://{}/", address.scheme, address.host);
    let full = match address.credentials {
        Some(credentials) => format!("{}://{credentials}@{}/", address.scheme, address.host),
        None => bare.clone(),
    };
    if full != bare {
        settings.push((format!("url.{full}.insteadOf"), bare.clone()));
    }
    if variables.flag("GIT_SUBMODULE_FORCE_HTTPS", false) {
        let forms = ssh_forms(&address, variables);
        settings.extend(forms.into_iter().map(|form| (format!("url.{full}.insteadOf"), form)));
    }
    if let Some(file) = variables.value(CA_FILE) {
        settings.push((format!("http.{bare}.sslCAInfo"), file.to_owned()));
    }
    for (setting, variable) in [("sslCert", CERTIFICATE_FILE), ("sslKey", KEY_FILE)] {
        let file = variables.value(variable);
        settings.extend(file.map(|file| (format!("http.{bare}.{setting}"), file.to_owned())));
    }
    settings
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
            git_settings(&job, &variables),
            [
                setting("sslCAInfo", CA_FILE),
                setting("sslCert", CERTIFICATE_FILE),
                setting("sslKey", KEY_FILE),
            ]
        );
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
        let plain = git_settings(&job, &gather(Vec::new()));
        assert_eq!(
            plain,
            [("url.https://u:t@git.test:8443/.insteadOf".to_owned(), "https://git.test:8443/".to_owned())]
        );
        let forced = gather(vec![
            variable("GIT_SUBMODULE_FORCE_HTTPS", "true"),
            variable("CI_SERVER_SHELL_SSH_HOST", "ssh.test"),
            variable("CI_SERVER_SHELL_SSH_PORT", "2222"),
        ]);
        let forms: Vec<String> = git_settings(&job, &forced).into_iter().map(|(_, form)| form).collect();
        for wanted in ["git@ssh.test:", "ssh://git@ssh.test:2222/", "git@git.test:", "ssh://git@git.test/"] {
            assert!(forms.iter().any(|form| form == wanted), "{wanted} in {forms:?}");
        }
    }
}
