//! What a person can do about an error of the cloud, in one clause. Pure.

use super::{CloudError, ErrorClass};

/// Codes of a request whose time is over, be it that of its signature or that of the credentials.
const ABOUT_TIME: [&str; 2] = ["RequestExpired", "RequestTimeTooSkewed"];

/// Codes of signatures that are not accepted; their words tell when it is for the time they were made at.
const ABOUT_SIGNATURES: [&str; 3] = ["SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure"];

/// Words of a signature that was made too early or too late.
const TIME_WORDS: [&str; 4] = ["signature expired", "not yet current", "earlier than", "later than"];

impl ErrorClass {
    /// What to do about errors of this class.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Retry => {
                "it is tried again by itself; if it lasts, look at spec.provider.aws.endpointUrl, proxy and route"
            }
            Self::NoCapacity => {
                "it is tried again by itself with growing pauses; more zones or instance types in the group help"
            }
            Self::Gone | Self::Refused => "nothing is to be done: the next look at the cloud decides anew",
            Self::Denied => {
                "check the operator's role and its trust, or the keys of spec.provider.aws.credentialsSecretRef"
            }
            Self::Quota => {
                "ask AWS for more (Service Quotas), or lower spec.maxInstances or spec.suspension.limits; it is tried \
                 again by itself with growing pauses"
            }
            Self::Invalid => {
                "change what it names: spec.provider.aws, spec.workspaceVolume, or the group and its launch template"
            }
        }
    }
}

impl CloudError {
    /// What to do about it.
    pub fn way_out(&self) -> &'static str {
        if self.is_about_time() {
            return "the clock of the operator's machine or of the API server is off, or the credentials have ended: set \
                    the clocks, or renew the credentials";
        }
        match (self.class, self.code.as_str()) {
            (ErrorClass::Denied, "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException") => {
                "allow it: config/aws/iam-policy.json of this release, and the tag dormouse.dev/cluster on the group and \
                 its instances"
            }
            (ErrorClass::Denied, "NoCredentials") => {
                "give the operator's service account a role, or the pool keys by spec.provider.aws.credentialsSecretRef"
            }
            (ErrorClass::Denied, "ExpiredToken" | "ExpiredTokenException") => {
                "the credentials have ended: renew the keys of spec.provider.aws.credentialsSecretRef, or see that the \
                 operator's role can be assumed again"
            }
            (class, _) => class.way_out(),
        }
    }

    /// It and what to do about it, for people.
    pub fn with_way_out(&self) -> String {
        format!("{self}; {}", self.way_out())
    }

    /// Whether the time at which it was signed is the matter, or may be.
    fn is_about_time(&self) -> bool {
        let code = self.code.as_str();
        let message = self.message.to_ascii_lowercase();
        let says_so = || TIME_WORDS.iter().any(|words| message.contains(words));
        ABOUT_TIME.contains(&code) || ABOUT_SIGNATURES.contains(&code) && says_so()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_to_do_about_it() {
        use ErrorClass::{Denied, Gone, Invalid, NoCapacity, Quota, Refused, Retry};
        let table = [
            (Retry, "Unreachable", "", "endpointUrl"),
            (NoCapacity, "InsufficientInstanceCapacity", "", "more zones or instance types"),
            (Gone, "InvalidVolume.NotFound", "", "the next look"),
            (Refused, "IncorrectInstanceState", "", "the next look"),
            (Denied, "AuthFailure", "AWS was not able to validate them", "credentialsSecretRef"),
            (Denied, "InvalidClientTokenId", "", "role and its trust"),
            (Denied, "UnauthorizedOperation", "", "iam-policy.json"),
            (Denied, "AccessDenied", "", "dormouse.dev/cluster"),
            (Denied, "NoCredentials", "", "service account a role"),
            (Denied, "ExpiredToken", "", "have ended"),
            (Denied, "RequestExpired", "Request has expired.", "clock"),
            (Denied, "SignatureDoesNotMatch", "Signature expired: 2026 is now earlier than 2027", "clock"),
            (Denied, "InvalidSignatureException", "Signature not yet current: 2026", "clock"),
            (Denied, "SignatureDoesNotMatch", "Check your key and signing method.", "role and its trust"),
            (Quota, "VcpuLimitExceeded", "", "Service Quotas"),
            (Invalid, "InvalidKeyPair.NotFound", "", "launch template"),
        ];
        for (class, code, message, words) in table {
            let (attempt, message) = ("do it".to_owned(), message.to_owned());
            let error = CloudError { class, attempt, code: code.to_owned(), message };
            assert!(error.way_out().contains(words), "{code}: {}", error.way_out());
            assert!(error.with_way_out().starts_with(&format!("failed to do it: {code}: ")));
        }
    }
}
