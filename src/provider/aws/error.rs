//! What AWS says when it does not do something, and what follows from it. Pure.
//!
//! Decides by the service's error code, and where one code stands for many things, as `ValidationError` of Auto Scaling
//! does, by its words. What it keeps of those words is short and never holds a signature, a token or a query string.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

use crate::provider::{CloudError, ErrorClass};

/// The most of the cloud's own words that is kept.
const LONGEST_MESSAGE: usize = 300;

/// What begins a part of a message that is for machines, or that repeats the signed request with its session token.
const MACHINE_PARTS: [&str; 4] = [
    "Encoded authorization failure message",
    "The Canonical String",
    "The canonical string",
    "The String-to-Sign",
];

const THROTTLED: [&str; 9] = [
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "EC2ThrottledException",
    "SlowDown",
];

const RETRY: [&str; 13] = [
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ServerInternal",
    "ServiceException",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "Unavailable",
    "RequestTimeout",
    "RequestTimeoutException",
    "EC2InstanceUnavailableException",
    "SnapshotCreationPerVolumeRateExceeded",
    "ConcurrentSnapshotLimitExceeded",
];

const NO_CAPACITY: [&str; 9] = [
    "InsufficientInstanceCapacity",
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientCapacityOnOutpost",
    "InsufficientVolumeCapacity",
    "InsufficientFreeAddressesInSubnet",
    "UnfulfillableCapacity",
    "SpotMaxPriceTooLow",
];

const GONE: [&str; 6] = [
    "InvalidInstanceID.NotFound",
    "InvalidVolume.NotFound",
    "InvalidSnapshot.NotFound",
    "InvalidAttachment.NotFound",
    "InvalidID",
    "EC2InstanceNotFoundException",
];

const REFUSED: [&str; 14] = [
    "IncorrectInstanceState",
    "IncorrectState",
    "InvalidState",
    "InvalidInstanceState",
    "VolumeInUse",
    "InvalidSnapshot.InUse",
    "ScalingActivityInProgress",
    "ResourceContention",
    "ResourceInUse",
    "InstanceRefreshInProgress",
    "EC2InstanceStateInvalidException",
    // It is stopped in another way then.
    "UnsupportedHibernationConfiguration",
    // The wish behind this token was granted, and what came of it is gone: a new wish needs a new token.
    "IdempotentInstanceTerminated",
    "OperationAborted",
];

const DENIED: [&str; 19] = [
    "AuthFailure",
    "AuthException",
    "UnauthorizedOperation",
    "AccessDenied",
    "AccessDeniedException",
    "Blocked",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "PendingVerification",
    "NotAuthorized",
];

const QUOTA: [&str; 3] =
    ["MaxSpotInstanceCountExceeded", "LimitExceededFault", "ServiceQuotaExceededException"];

/// Whether it asks for fewer calls.
pub fn is_throttling(code: &str) -> bool {
    THROTTLED.contains(&code)
}

/// What follows from an error with that code, those words and that HTTP status.
pub fn classify(code: &str, message: &str, status: Option<u16>) -> ErrorClass {
    // A start that failed inside by the account's own doing: its KMS key cannot be used.
    if code == "Client.InternalError" {
        return ErrorClass::Invalid;
    }
    let code = code.strip_prefix("Server.").or_else(|| code.strip_prefix("Client.")).unwrap_or(code);
    let listed = [
        (THROTTLED.as_slice(), ErrorClass::Retry),
        (RETRY.as_slice(), ErrorClass::Retry),
        (NO_CAPACITY.as_slice(), ErrorClass::NoCapacity),
        (GONE.as_slice(), ErrorClass::Gone),
        (REFUSED.as_slice(), ErrorClass::Refused),
        (DENIED.as_slice(), ErrorClass::Denied),
        (QUOTA.as_slice(), ErrorClass::Quota),
    ];
    if let Some((_, class)) = listed.into_iter().find(|(codes, _)| codes.contains(&code)) {
        return class;
    }
    if code.ends_with("LimitExceeded") {
        return ErrorClass::Quota;
    }
    match (code, status) {
        ("ValidationError", _) => of_validation(message),
        // A type that this zone does not offer.
        ("Unsupported" | "UnsupportedOperation", _) if message.contains("Availability Zone") => {
            ErrorClass::NoCapacity
        }
        // The device name is taken.
        ("InvalidParameterValue", _) if message.contains("already in use") => ErrorClass::Refused,
        (_, Some(401 | 403)) => ErrorClass::Denied,
        (_, Some(429 | 500..)) => ErrorClass::Retry,
        (_, _) => ErrorClass::Invalid,
    }
}

/// Auto Scaling has one code for almost everything it does not do; only its words tell what it is.
fn of_validation(message: &str) -> ErrorClass {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["insufficientinstancecapacity", "insufficient capacity", "unfulfillablecapacity"]) {
        return ErrorClass::NoCapacity;
    }
    if says(&["limitexceeded"]) {
        return ErrorClass::Quota;
    }
    // What the group launches from, and how large it may be, are settings of the group, not what the call is about.
    if says(&["min size", "max size", "minsize", "maxsize", "min value", "max value"])
        || says(&["launch template", "launch configuration", "key pair", "security group", "subnet", "ami "])
    {
        return ErrorClass::Invalid;
    }
    let is_gone =
        ["not found", "no managed instance", "not part of auto scaling group", "no active lifecycle action"];
    if says(&is_gone) {
        return ErrorClass::Gone;
    }
    let is_elsewhere = [
        "not in inservice",
        "not in service",
        "terminating",
        "detaching",
        "lifecycle state",
        "in progress",
        "warm pool",
        "retained",
    ];
    if says(&is_elsewhere) { ErrorClass::Refused } else { ErrorClass::Invalid }
}

/// What came of a call that failed, in our words.
pub fn from_sdk<E>(attempt: &str, error: &SdkError<E>) -> CloudError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let (class, code, message) = match error {
        SdkError::ServiceError(said) => {
            let status = said.raw().status().as_u16();
            let said = said.err();
            let message = said.message().unwrap_or("the service gave no reason");
            let code = said.code().map_or_else(|| format!("HTTP {status}"), str::to_owned);
            (classify(&code, message, Some(status)), code, message.to_owned())
        }
        other if has_no_credentials(other) => (ErrorClass::Denied, "NoCredentials".to_owned(), chain(other)),
        SdkError::TimeoutError(_) => {
            (ErrorClass::Retry, "TimedOut".to_owned(), "no answer within the time for a call".to_owned())
        }
        SdkError::ConstructionFailure(_) => (ErrorClass::Invalid, "NotSent".to_owned(), chain(error)),
        SdkError::ResponseError(_) => (ErrorClass::Retry, "UnreadableAnswer".to_owned(), chain(error)),
        // The SDK may learn of further ways to fail before an answer.
        SdkError::DispatchFailure(_) | _ => (ErrorClass::Retry, "Unreachable".to_owned(), chain(error)),
    };
    CloudError { class, attempt: attempt.to_owned(), code, message: shorten(&message) }
}

/// Whether there was nothing to sign the call with. That the provider took too long is no verdict on it.
fn has_no_credentials(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.filter_map(|cause| cause.downcast_ref::<CredentialsError>()).any(|error| match error {
        CredentialsError::ProviderTimedOut(_) => false,
        CredentialsError::CredentialsNotLoaded(_)
        | CredentialsError::InvalidConfiguration(_)
        | CredentialsError::ProviderError(_)
        | CredentialsError::Unhandled(_)
        | _ => true,
    })
}

/// An error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    for cause in std::iter::successors(Some(error), |cause| (*cause).source()) {
        let words = cause.to_string();
        // Some causes repeat the words of what they caused.
        if !said.iter().any(|earlier| earlier.contains(&words)) {
            said.push(words);
        }
    }
    said.join(": ")
}

/// What is kept of a message.
pub fn shorten(message: &str) -> String {
    let end = MACHINE_PARTS.iter().filter_map(|part| message.find(part)).min().unwrap_or(message.len());
    let kept = message.get(..end).unwrap_or_default();
    let words: Vec<&str> =
        kept.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let words: Vec<&str> = words.into_iter().map(without_query).collect();
    let text = words.join(" ");
    if text.chars().count() <= LONGEST_MESSAGE {
        return text;
    }
    let mut short: String = text.chars().take(LONGEST_MESSAGE - 1).collect();
    short.push('…');
    short
}

/// An address without what may be signed in it.
fn without_query(word: &str) -> &str {
    let signed = word.contains("://") || word.contains("X-Amz-") || word.contains("x-amz-");
    if !signed {
        return word;
    }
    let end = word.find(['?', '&', '=']).unwrap_or(word.len());
    word.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests;
