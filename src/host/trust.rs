//! Whether a host's key is the one it should be.

use russh::keys::{HashAlg, PublicKey};

use crate::api::runner_pool::HostKeyPolicy;

/// What is known of a host's key before connecting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// This key and no other.
    Key(PublicKey),
    /// None yet: the first one seen is recorded before anything else is done on the host.
    FirstUse,
}

/// Why a host's key is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The pinned or recorded text is not a key.
    #[error("the host key given for it cannot be read as one line of OpenSSH, such as `ssh-ed25519 AAAA...`")]
    Unreadable,
    /// The pool wants pinned keys and the host has none.
    #[error("spec.ssh.hostKeyPolicy is Pinned and the host has no hostKey; give it one")]
    NotPinned,
    /// It offered another key.
    #[error(
        "it offers the key {offered}, expected {expected}; if the host was reinstalled, give its new hostKey or \
         remove the recorded one from status.hosts"
    )]
    Changed {
        /// Fingerprint expected.
        expected: String,
        /// Fingerprint offered.
        offered: String,
    },
}

/// What to expect of a host, from its pinned key, its recorded key and the pool's policy.
///
/// # Errors
/// When no key could be accepted.
pub fn expected(
    pinned: Option<&str>,
    recorded: Option<&str>,
    policy: HostKeyPolicy,
) -> Result<Expected, TrustError> {
    match (pinned, recorded, policy) {
        (Some(key), _, _) => parse(key),
        (None, _, HostKeyPolicy::Pinned) => Err(TrustError::NotPinned),
        (None, Some(key), HostKeyPolicy::TrustOnFirstUse) => parse(key),
        (None, None, HostKeyPolicy::TrustOnFirstUse) => Ok(Expected::FirstUse),
    }
}

fn parse(line: &str) -> Result<Expected, TrustError> {
    PublicKey::from_openssh(line.trim()).map(Expected::Key).map_err(|_| TrustError::Unreadable)
}

/// Whether an offered key is the expected one; comments do not count.
///
/// # Errors
/// When it is another one.
pub fn check(expected: &Expected, offered: &PublicKey) -> Result<(), TrustError> {
    match expected {
        Expected::FirstUse => Ok(()),
        Expected::Key(key) if key.key_data() == offered.key_data() => Ok(()),
        Expected::Key(key) => {
            Err(TrustError::Changed { expected: fingerprint(key), offered: fingerprint(offered) })
        }
    }
}

/// A key's SHA-256 fingerprint.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB6kqZYq2Vv0m1k0Yb3W0mJ1s8m1X0w9kq0V1W7g1Yp5";

    #[test]
    fn a_pinned_key_wins_over_a_recorded_one() {
        let pinned = expected(Some(A), Some(B), HostKeyPolicy::TrustOnFirstUse).unwrap();
        assert_eq!(pinned, parse(A).unwrap());
    }

    #[test]
    fn without_a_key_the_policy_decides() {
        assert_eq!(expected(None, None, HostKeyPolicy::TrustOnFirstUse), Ok(Expected::FirstUse));
        assert_eq!(expected(None, Some(A), HostKeyPolicy::Pinned), Err(TrustError::NotPinned));
        assert_eq!(expected(Some("junk"), None, HostKeyPolicy::Pinned), Err(TrustError::Unreadable));
    }

    #[test]
    fn another_key_is_refused_and_a_comment_does_not_matter() {
        let wanted = parse(A).unwrap();
        let offered = PublicKey::from_openssh(&format!("{A} root@box")).unwrap();
        assert_eq!(check(&wanted, &offered), Ok(()));
        let other = PublicKey::from_openssh(B).unwrap();
        assert!(matches!(check(&wanted, &other), Err(TrustError::Changed { .. })));
    }
}
