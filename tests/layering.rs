//! Decisions are pure: the modules that make them name no client, no clock, no environment and no random source.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Files and folders of pure modules, below `src`.
const PURE: [&str; 28] = [
    "api/condition.rs",
    "api/duration.rs",
    "api/job_lease.rs",
    "api/key.rs",
    "api/labels.rs",
    "api/runner_pool.rs",
    "api/suspended_environment.rs",
    "environment/check.rs",
    "environment/limits.rs",
    "environment/plan.rs",
    "environment/sweep.rs",
    "gitlab/backoff.rs",
    "gitlab/pace.rs",
    "gitlab/reason.rs",
    "gitlab/report.rs",
    "gitlab/support.rs",
    "gitlab/trace.rs",
    "gitlab/wire.rs",
    "host/trust.rs",
    "lease/wish.rs",
    "lease/record.rs",
    "pool/slots.rs",
    "pool/status.rs",
    "spool.rs",
    "spool",
    "supervisor/log/mask.rs",
    "supervisor/log/redact.rs",
    "supervisor/log/utf8.rs",
];

/// What a decision has no business with.
const FORBIDDEN: [&str; 12] = [
    "::now()",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::process",
    "rand::",
    "tokio::",
    "reqwest",
    "kube::Client",
    "kube::Api",
    "russh::client",
    "tracing::",
];

#[test]
fn pure_modules_touch_nothing_outside() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut read = 0;
    for pure in PURE {
        let path = source.join(pure);
        let files = if path.is_dir() {
            fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?
        } else {
            vec![path]
        };
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            // Tests may do what they like.
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in product.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for word in FORBIDDEN {
                    ensure!(!line.contains(word), "{} names {word}: {line}", file.display());
                }
            }
            read += 1;
        }
    }
    ensure!(read > PURE.len(), "only {read} files were read");
    Ok(())
}

#[test]
fn the_supervisor_knows_nothing_of_kubernetes_and_the_operator_nothing_of_its_insides() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let name = path.strip_prefix(&source)?.display().to_string();
            let forbidden: &[&str] = if name.starts_with("supervisor") {
                &["crate::api", "crate::host", "crate::lease", "crate::pool", "kube::", "tokio::"]
            } else if name.starts_with("bin") || name == "lib.rs" {
                &[]
            } else {
                &["crate::supervisor"]
            };
            for word in forbidden {
                ensure!(!text.contains(word), "{name} names {word}");
            }
            read += 1;
        }
    }
    ensure!(read > 40, "only {read} files were read");
    Ok(())
}
