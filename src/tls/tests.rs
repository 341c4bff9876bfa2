//! The check against certificates that openssl makes.

use std::path::Path;
use std::time::Duration;

use super::*;

const DAY: u64 = 24 * 60 * 60;

/// A certificate for 127.0.0.1 that signs itself, good for two days; `key` is made once and used again.
fn self_signed(folder: &Path, basic_constraints: &str) -> CertificateDer<'static> {
    let openssl = |words: &[&str]| {
        let done = std::process::Command::new("openssl").current_dir(folder).args(words).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    if !folder.join("key").exists() {
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key"]);
    }
    let constraints = format!("basicConstraints=critical,{basic_constraints}");
    let names = "subjectAltName=IP:127.0.0.1";
    let made = ["req", "-x509", "-key", "key", "-days", "2", "-subj", "/CN=test", "-out", "certificate"];
    openssl(&[&made[..], &["-addext", &constraints, "-addext", names]].concat());
    CertificateDer::from_pem_file(folder.join("certificate")).unwrap()
}

fn check(
    named: &[&CertificateDer<'static>],
    system: &[&CertificateDer<'static>],
    shown: &CertificateDer<'static>,
    name: &str,
    in_days: i64,
) -> Result<(), Error> {
    let owned = |all: &[&CertificateDer<'static>]| all.iter().map(|each| (*each).clone()).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier::new(owned(named), owned(system), provider).unwrap();
    let now = UnixTime::now().as_secs().saturating_add_signed(in_days * DAY as i64);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(shown, &[], &name, &[], now).map(|_| ())
}

#[test]
fn a_bundles_own_certificate_is_taken_whatever_it_says_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for constraints in ["CA:FALSE", "CA:TRUE"] {
        let own = self_signed(folder.path(), constraints);
        assert_eq!(check(&[&own], &[], &own, "127.0.0.1", 0), Ok(()), "{constraints}");
    }
}

#[test]
fn it_is_refused_under_another_name_and_before_and_after_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let own = self_signed(folder.path(), "CA:TRUE");
    for (name, in_days) in [("127.0.0.2", 0), ("gitlab.test", 0), ("127.0.0.1", -1), ("127.0.0.1", 3)] {
        let refused = check(&[&own], &[], &own, name, in_days);
        assert!(matches!(refused, Err(Error::InvalidCertificate(_))), "{name} {in_days}: {refused:?}");
    }
}

#[test]
fn no_other_authority_speaks_as_a_server() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = self_signed(folder.path(), "CA:TRUE");
    // Of the same key and name, but not the one that was named.
    let again = self_signed(folder.path(), "CA:TRUE");
    assert_ne!(own, again);
    let foreign = self_signed(other.path(), "CA:TRUE");
    assert!(check(&[&own], &[], &again, "127.0.0.1", 0).is_err());
    assert!(check(&[&own], &[], &foreign, "127.0.0.1", 0).is_err());
    assert!(check(&[], &[&own], &own, "127.0.0.1", 0).is_err());
}

#[test]
fn what_cannot_be_read_is_told_apart() {
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    for bundle in ["hello", broken] {
        assert!(matches!(client_config(Some(bundle), None), Err(TlsError::Bundle(_))), "{bundle}");
    }
    assert!(matches!(client_config(None, Some(broken)), Err(TlsError::Identity(_))));
    client_config(None, None).unwrap();
}

#[test]
fn certificates_are_written_as_other_programs_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["CA:TRUE", "CA:FALSE"].map(|constraints| self_signed(folder.path(), constraints));
    // As openssl wrote it, with the second one behind it.
    let written = std::fs::read_to_string(folder.path().join("certificate")).unwrap();
    let pem = as_pem(&[first.clone(), second.clone()]);
    assert!(pem.ends_with(&written), "{pem}");
    assert_eq!(read_bundle(&pem).unwrap(), [first, second]);
    // There is always somebody to trust.
    assert!(!read_bundle(&system_pem()).unwrap().is_empty());
}
