//! What GitLab's answers about artifacts mean, and when to ask again. Pure.

use std::time::Duration;

use url::Url;

/// How often an upload is tried while GitLab is not available, and on other failures.
const TRIES_UNAVAILABLE: u32 = 6;
const TRIES: u32 = 3;

/// How often a request is sent on to another place.
pub const MOST_REDIRECTS: u32 = 5;

/// Longest wait between two tries, whatever the server asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Answered {
        /// Its status.
        status: u16,
        /// Where it sends us.
        location: Option<String>,
        /// How long it wants us to wait.
        retry_after: Option<Duration>,
    },
    /// None, and why.
    Failed(String),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is done.
    Done,
    /// Ask there.
    Elsewhere(Url),
    /// Ask again after a wait.
    Again {
        /// How long.
        wait: Duration,
        /// What went wrong, for the log.
        why: String,
    },
    /// It will not be.
    GiveUp(String),
}

/// After the `tries`th try of an upload to `url`.
pub fn after_upload(url: &Url, outcome: &Outcome, tries: u32) -> Next {
    let (status, location, retry_after) = match outcome {
        Outcome::Answered { status, location, retry_after } => (*status, location.as_deref(), *retry_after),
        Outcome::Failed(why) => return again(tries, TRIES, None, why.clone()),
    };
    match status {
        200..=299 => Next::Done,
        307 => match location.map(|location| same_path_at(url, location)) {
            Some(Ok(elsewhere)) => Next::Elsewhere(elsewhere),
            Some(Err(why)) => Next::GiveUp(why),
            None => Next::GiveUp("307 without a place to go to".to_owned()),
        },
        403 => Next::GiveUp("403 forbidden: GitLab does not accept the job's token any more".to_owned()),
        413 => Next::GiveUp(
            "413 too large: take fewer files, or have the maximum artifacts size raised in GitLab".to_owned(),
        ),
        503 => again(tries, TRIES_UNAVAILABLE, retry_after, "503 service unavailable".to_owned()),
        status => again(tries, TRIES, retry_after, format!("status {status}")),
    }
}

/// After the `tries`th try of a download that ended with an answer of GitLab's own or of where it has sent us.
pub fn after_download(outcome: &Outcome, tries: u32) -> Next {
    match outcome {
        Outcome::Failed(why) => again(tries, TRIES, None, why.clone()),
        Outcome::Answered { status: 200..=299, .. } => Next::Done,
        Outcome::Answered { status: 401, .. } => {
            Next::GiveUp("401 unauthorized: GitLab does not accept the token of that job".to_owned())
        }
        Outcome::Answered { status: 403, .. } => {
            Next::GiveUp("403 forbidden: this job may not read the artifacts of that one".to_owned())
        }
        Outcome::Answered { status: 404, .. } => Next::GiveUp(
            "404 not found: the artifacts have expired or were deleted; run that job again".to_owned(),
        ),
        Outcome::Answered { status, retry_after, .. } => {
            again(tries, TRIES, *retry_after, format!("status {status}"))
        }
    }
}

fn again(tries: u32, most: u32, asked: Option<Duration>, why: String) -> Next {
    if tries >= most {
        return Next::GiveUp(format!("{why}, {tries} times"));
    }
    let wait = asked.unwrap_or_else(|| Duration::from_secs(1 << tries.saturating_sub(1).min(6)));
    Next::Again { wait: wait.min(LONGEST_WAIT), why }
}

/// The place a 307 of an upload means: its origin, and our own path there. Never from a secret connection to one that
/// is none, for the token goes along.
fn same_path_at(url: &Url, location: &str) -> Result<Url, String> {
    let no_place = |_| "307 to a place that is no address".to_owned();
    let place = url.join(location).map_err(no_place)?;
    if url.scheme() == "https" && place.scheme() != "https" || !matches!(place.scheme(), "http" | "https") {
        return Err(format!(
            "307 from {} to {}, where the job's token must not go",
            url.scheme(),
            place.scheme()
        ));
    }
    let mut elsewhere = place;
    elsewhere.set_path(url.path());
    elsewhere.set_query(url.query());
    elsewhere.set_fragment(None);
    Ok(elsewhere)
}

/// Where a download is sent on to, and whether the token may go along: only to the very same origin.
///
/// # Errors
/// A sentence when it is sent nowhere, or from a secret connection to one that is none.
pub fn sent_on(url: &Url, location: Option<&str>) -> Result<(Url, bool), String> {
    let location = location.ok_or("GitLab sends us on without a place to go to")?;
    let place = url.join(location).map_err(|_| "GitLab sends us to a place that is no address".to_owned())?;
    if url.scheme() == "https" && place.scheme() != "https" || !matches!(place.scheme(), "http" | "https") {
        return Err(format!(
            "GitLab sends us from {} to {}, which is not followed",
            url.scheme(),
            place.scheme()
        ));
    }
    let same = place.origin() == url.origin();
    Ok((place, same))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Url {
        Url::parse("https://gitlab.example/sub/api/v4/jobs/7/artifacts?artifact_type=archive").unwrap()
    }

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, location: None, retry_after: None }
    }

    fn sent_to(location: &str) -> Next {
        let location = Some(location.to_owned());
        after_upload(&url(), &Outcome::Answered { status: 307, location, retry_after: None }, 1)
    }

    #[test]
    fn an_upload_is_tried_as_often_as_its_failure_deserves() {
        let tries = |outcome: &Outcome| {
            (1..).find(|tries| matches!(after_upload(&url(), outcome, *tries), Next::GiveUp(_))).unwrap()
        };
        assert_eq!(tries(&answered(503)), 6);
        assert_eq!(tries(&answered(500)), 3);
        assert_eq!(tries(&Outcome::Failed("broken pipe".into())), 3);
        assert_eq!(tries(&answered(413)), 1);
        assert_eq!(tries(&answered(403)), 1);
        assert_eq!(after_upload(&url(), &answered(201), 1), Next::Done);
    }

    #[test]
    fn a_307_is_another_origin_with_the_same_path() {
        let Next::Elsewhere(place) = sent_to("https://primary.example:8443/api/v4/other?x=1") else {
            panic!("not sent on")
        };
        assert_eq!(
            place.as_str(),
            "https://primary.example:8443/sub/api/v4/jobs/7/artifacts?artifact_type=archive"
        );
        assert!(matches!(sent_to("http://primary.example/"), Next::GiveUp(_)));
        assert!(matches!(sent_to("file:///etc"), Next::GiveUp(_)));
        assert!(matches!(after_upload(&url(), &answered(307), 1), Next::GiveUp(_)));
    }

    #[test]
    fn what_is_gone_or_forbidden_is_not_asked_for_again() {
        for status in [401, 403, 404] {
            assert!(matches!(after_download(&answered(status), 1), Next::GiveUp(_)), "{status}");
        }
        assert!(matches!(after_download(&answered(502), 2), Next::Again { .. }));
        assert!(matches!(after_download(&answered(502), 3), Next::GiveUp(_)));
    }

    #[test]
    fn waits_grow_and_heed_the_server_within_reason() {
        let wait = |retry_after, tries| match after_download(
            &Outcome::Answered { status: 502, location: None, retry_after },
            tries,
        ) {
            Next::Again { wait, .. } => wait.as_secs(),
            _ => 0,
        };
        assert_eq!((wait(None, 1), wait(None, 2)), (1, 2));
        assert_eq!(wait(Some(Duration::from_secs(7)), 1), 7);
        assert_eq!(wait(Some(Duration::from_secs(86_400)), 1), 60);
    }

    #[test]
    fn the_token_goes_to_no_other_origin() {
        let goes = |location| sent_on(&url(), Some(location)).map(|(_, token)| token);
        assert_eq!(goes("https://storage.example/a?sig=1"), Ok(false));
        assert_eq!(goes("https://gitlab.example:444/x"), Ok(false));
        assert_eq!(goes("/elsewhere"), Ok(true));
        assert!(goes("http://gitlab.example/").is_err());
        assert!(sent_on(&url(), None).is_err());
    }
}
