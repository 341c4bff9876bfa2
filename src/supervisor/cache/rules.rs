//! What a bucket's answer means for a cache. Pure.

use std::time::Duration;

/// How often a request is made where the bucket, or the way to it, fails.
const TRIES: u32 = 3;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Answered {
        /// Its status.
        status: u16,
        /// The beginning of its body, where it is no success.
        body: String,
    },
    /// Without one.
    Failed(String),
    /// Not in the time it may take.
    TooLate,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is done.
    Done,
    /// There is no such cache.
    NotThere,
    /// It is tried again after a while.
    Again {
        /// The while.
        wait: Duration,
        /// What went wrong.
        why: String,
    },
    /// It is not.
    GiveUp(String),
}

/// After a request for a cache.
pub fn after_get(outcome: &Outcome, tries: u32) -> Next {
    match outcome {
        Outcome::Answered { status: 404, body } if element(body, "Code") != Some("NoSuchBucket") => {
            Next::NotThere
        }
        // So says a bucket that may not be listed of what is not there.
        Outcome::Answered { status: 403, body } if is_plainly_denied(body) => Next::NotThere,
        other => after(other, tries),
    }
}

/// After an upload.
pub fn after_put(outcome: &Outcome, tries: u32) -> Next {
    after(outcome, tries)
}

fn after(outcome: &Outcome, tries: u32) -> Next {
    let again = |why: String| {
        if tries < TRIES {
            Next::Again { wait: Duration::from_secs(1 << tries.min(4)), why }
        } else {
            Next::GiveUp(why)
        }
    };
    match outcome {
        Outcome::Answered { status: 200..=299, .. } => Next::Done,
        Outcome::Answered { status: 500..=599 | 429 | 408, .. } => again(told(outcome)),
        Outcome::Answered { body, .. } if has_expired(body) => Next::GiveUp(
            "its signed address has expired: the job took longer than the keys lived that signed it, and nobody has sent a \
             newer one"
                .to_owned(),
        ),
        Outcome::Answered { .. } | Outcome::TooLate => Next::GiveUp(told(outcome)),
        Outcome::Failed(why) => again(why.clone()),
    }
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered { status, body }
            if matches!(status, 301 | 307 | 308) || body.contains("<Region>") =>
        {
            format!("the bucket is in another region than spec.cache.s3.region says (status {status})")
        }
        Outcome::Answered { status, body } => match element(body, "Code") {
            Some(code) => format!("the bucket answers {status} {code}"),
            None => format!("the bucket answers {status}"),
        },
        Outcome::Failed(why) => why.clone(),
        Outcome::TooLate => {
            "it took longer than spec.cache.requestTimeout (or CACHE_REQUEST_TIMEOUT)".to_owned()
        }
    }
}

fn has_expired(body: &str) -> bool {
    let code = element(body, "Code").unwrap_or_default();
    matches!(code, "ExpiredToken" | "TokenRefreshRequired")
        || (code == "AccessDenied" && body.contains("has expired"))
}

fn is_plainly_denied(body: &str) -> bool {
    element(body, "Code") == Some("AccessDenied") && !has_expired(body)
}

/// The text of an element that has no other inside. Long or odd text is none of what is looked for, and not shown.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once('<')?;
    (text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str, message: &str) -> Outcome {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        Outcome::Answered { status, body }
    }

    #[test]
    fn what_is_not_there_is_no_error() {
        assert_eq!(after_get(&answer(404, "NoSuchKey", ""), 1), Next::NotThere);
        assert_eq!(after_get(&Outcome::Answered { status: 404, body: String::new() }, 1), Next::NotThere);
        assert_eq!(after_get(&answer(403, "AccessDenied", "Access Denied"), 1), Next::NotThere);
    }

    #[test]
    fn a_missing_bucket_and_a_wrong_key_are_told() {
        for (status, code) in
            [(404, "NoSuchBucket"), (403, "SignatureDoesNotMatch"), (403, "InvalidAccessKeyId")]
        {
            let Next::GiveUp(why) = after_get(&answer(status, code, ""), 1) else { panic!("{code}") };
            assert!(why.contains(code), "{why}");
        }
        let Next::GiveUp(why) = after_put(&answer(403, "AccessDenied", "Access Denied"), 1) else {
            panic!("put")
        };
        assert!(why.contains("403 AccessDenied"), "{why}");
    }

    #[test]
    fn an_expired_address_is_told_as_such() {
        for outcome in [answer(403, "AccessDenied", "Request has expired"), answer(400, "ExpiredToken", "")] {
            for next in [after_get(&outcome, 1), after_put(&outcome, 1)] {
                let Next::GiveUp(why) = next else { panic!("{outcome:?}") };
                assert!(why.contains("has expired"), "{why}");
            }
        }
    }

    #[test]
    fn a_bucket_in_trouble_is_asked_three_times() {
        let slow = answer(503, "SlowDown", "");
        assert!(matches!(after_put(&slow, 1), Next::Again { .. }));
        assert!(matches!(after_put(&slow, 2), Next::Again { .. }));
        assert_eq!(after_put(&slow, 3), Next::GiveUp("the bucket answers 503 SlowDown".to_owned()));
        assert!(matches!(after_get(&Outcome::Failed("refused".into()), 1), Next::Again { .. }));
        assert_eq!(after_get(&Outcome::Failed("refused".into()), 3), Next::GiveUp("refused".into()));
        assert!(matches!(after_get(&Outcome::TooLate, 1), Next::GiveUp(_)));
    }

    #[test]
    fn another_region_is_named_and_odd_text_is_not_shown() {
        let Next::GiveUp(why) = after_put(&answer(301, "PermanentRedirect", ""), 1) else { panic!() };
        assert!(why.contains("spec.cache.s3.region"), "{why}");
        let body =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>".to_owned();
        let Next::GiveUp(why) = after_get(&Outcome::Answered { status: 400, body }, 1) else { panic!() };
        assert!(why.contains("spec.cache.s3.region"), "{why}");
        let Next::GiveUp(why) = after_put(&answer(400, "\u{1b}[31m", ""), 1) else { panic!() };
        assert_eq!(why, "the bucket answers 400");
        assert_eq!(after_put(&answer(200, "", ""), 1), Next::Done);
    }
}
