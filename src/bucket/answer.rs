//! What a bucket's answer to a trial means for the pool. Pure.

use crate::api::cache::S3Cache;

/// Why caches cannot be kept where the pool says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A reason in CamelCase.
    pub reason: &'static str,
    /// One sentence that names field, value and way out. Never a secret.
    pub message: String,
}

impl Problem {
    /// A problem of that kind.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What an answer comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// There is no such object, or it is not told whether there is one.
    NotThere,
    /// It will not be done.
    Refused(Problem),
}

/// Reads an answer.
pub fn read(status: u16, body: &str, s3: &S3Cache) -> Answer {
    let code = element(body, "Code").unwrap_or_default();
    let S3Cache { bucket, region, .. } = s3;
    match (status, code) {
        (200..=299, _) => Answer::Done,
        (404, "NoSuchBucket") => Answer::Refused(Problem::new(
            "BucketMissing",
            format!("spec.cache.s3.bucket {bucket:?} does not exist; create it, or name the one that does"),
        )),
        (404, _) | (403, "AccessDenied") => Answer::NotThere,
        (301 | 307, _)
        | (
            _,
            "AuthorizationHeaderMalformed"
            | "AuthorizationQueryParametersError"
            | "PermanentRedirect"
            | "IllegalLocationConstraintException",
        ) => {
            let right = element(body, "Region")
                .map_or_else(|| "the region of the bucket".to_owned(), |right| format!("{right:?}"));
            Answer::Refused(Problem::new(
                "WrongRegion",
                format!(
                    "spec.cache.s3.region is {region:?}, and the bucket {bucket:?} is not there; set it to {right}"
                ),
            ))
        }
        (
            _,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "ExpiredToken"
            | "TokenRefreshRequired",
        ) => Answer::Refused(Problem::new(
            "CredentialsRefused",
            format!(
                "the bucket {bucket:?} does not accept the keys of spec.cache.s3 ({code}); give it new ones"
            ),
        )),
        (_, "RequestTimeTooSkewed") => Answer::Refused(Problem::new(
            "ClockSkewed",
            format!(
                "the clock of the bucket {bucket:?} and of the cluster differ by more than it takes; set them"
            ),
        )),
        (500..=599 | 429, _) => Answer::Refused(Problem::new(
            "BucketUnavailable",
            format!("the bucket {bucket:?} answers with status {status}; it is tried again"),
        )),
        (status, code) => Answer::Refused(Problem::new(
            "BucketRefuses",
            format!("the bucket {bucket:?} answers with status {status} {code}"),
        )),
    }
}

/// What it means that an object could be neither read nor written.
pub fn denied(object: &str, s3: &S3Cache) -> Problem {
    Problem::new(
        "AccessDenied",
        format!(
            "the keys of spec.cache.s3 may not write and read {object:?} in bucket {:?}; allow s3:PutObject and s3:GetObject \
             there",
            s3.bucket
        ),
    )
}

/// The text of an element that has no other inside. Long or odd text is none of what is looked for.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once('<')?;
    let is_plain = text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    is_plain.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> S3Cache {
        S3Cache {
            bucket: "ci".into(),
            region: "eu-central-1".into(),
            endpoint_url: None,
            path_style: None,
            credentials_secret_ref: None,
        }
    }

    fn reason(status: u16, body: &str) -> &'static str {
        match read(status, body, &bucket()) {
            Answer::Done => "done",
            Answer::NotThere => "not there",
            Answer::Refused(problem) => problem.reason,
        }
    }

    #[test]
    fn answers_become_meanings() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        for (status, body, meaning) in [
            (200, String::new(), "done"),
            (404, error("NoSuchKey"), "not there"),
            (404, String::new(), "not there"),
            (403, error("AccessDenied"), "not there"),
            (404, error("NoSuchBucket"), "BucketMissing"),
            (301, error("PermanentRedirect"), "WrongRegion"),
            (400, error("AuthorizationHeaderMalformed"), "WrongRegion"),
            (403, error("InvalidAccessKeyId"), "CredentialsRefused"),
            (403, error("SignatureDoesNotMatch"), "CredentialsRefused"),
            (400, error("ExpiredToken"), "CredentialsRefused"),
            (403, error("RequestTimeTooSkewed"), "ClockSkewed"),
            (503, error("SlowDown"), "BucketUnavailable"),
            (418, "<html>".to_owned(), "BucketRefuses"),
        ] {
            assert_eq!(reason(status, &body), meaning, "{status} {body}");
        }
    }

    #[test]
    fn the_right_region_is_named_where_the_answer_has_it() {
        let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>us-west-2</Region></Error>";
        let Answer::Refused(problem) = read(400, body, &bucket()) else { panic!("taken") };
        assert!(problem.message.ends_with("set it to \"us-west-2\""), "{}", problem.message);
    }

    #[test]
    fn odd_text_of_a_server_is_not_shown() {
        let body = "<Error><Code>\u{1b}[31mX</Code></Error>";
        let Answer::Refused(problem) = read(400, body, &bucket()) else { panic!("taken") };
        assert!(!problem.message.contains('\u{1b}'));
    }
}
