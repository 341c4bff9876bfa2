//! Decisions are pure: the modules that make them name no client, no clock, no environment and no random source.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Files and folders of pure modules, below `src`.
const PURE: &[&str] = &[
    "allowed_groups.rs",
    "api/cache.rs",
    "api/condition.rs",
    "api/duration.rs",
    "api/job_lease.rs",
    "api/key.rs",
    "api/labels.rs",
    "api/registration.rs",
    "api/runner_pool.rs",
    "api/suspended_environment.rs",
    "api/usage.rs",
    "bucket/answer.rs",
    "bucket/sign.rs",
    "environment/check.rs",
    "environment/limits.rs",
    "environment/plan.rs",
    "environment/surrender.rs",
    "environment/sweep.rs",
    "environment/tier.rs",
    "environment/tier",
    "fleet/cost.rs",
    "fleet/group.rs",
    "fleet/facts.rs",
    "fleet/orphans.rs",
    "fleet/plan.rs",
    "fleet/plan",
    "fleet/policy.rs",
    "fleet/prices.rs",
    "fleet/scale.rs",
    "fleet/view.rs",
    "gitlab/adaptive.rs",
    "gitlab/backoff.rs",
    "gitlab/cache.rs",
    "gitlab/client/answer.rs",
    "gitlab/inputs.rs",
    "gitlab/pace.rs",
    "gitlab/reason.rs",
    "gitlab/registration.rs",
    "gitlab/report.rs",
    "gitlab/support.rs",
    "gitlab/trace.rs",
    "gitlab/variables.rs",
    "gitlab/wire.rs",
    "gitlab/wire/artifacts.rs",
    "gitlab/wire/lenient.rs",
    "host/trust.rs",
    "leader/rank.rs",
    "leader/turn.rs",
    "lease/interruption.rs",
    "lease/seen.rs",
    "lease/wish.rs",
    "lease/record.rs",
    "pool/agenda.rs",
    "pool/book.rs",
    "pool/machines.rs",
    "pool/picture.rs",
    "pool/slots.rs",
    "pool/status.rs",
    "pool/told.rs",
    "provider.rs",
    "provider/change.rs",
    "provider/tags/environment.rs",
    "provider/aws/action.rs",
    "provider/aws/error.rs",
    "provider/aws/limit.rs",
    "provider/aws/shape.rs",
    "provider/aws/shortage.rs",
    "provider/observer/schedule.rs",
    "provider/tags.rs",
    "provider/way_out.rs",
    "spool.rs",
    "spool",
    "supervisor/archive/name.rs",
    "supervisor/archive/pattern.rs",
    "supervisor/archive/zip/entry.rs",
    "supervisor/archive/zip/header.rs",
    "supervisor/artifacts/plan.rs",
    "supervisor/artifacts/rules.rs",
    "supervisor/expansion/shell.rs",
    "supervisor/http/proxy.rs",
    "supervisor/cache/rules.rs",
    "supervisor/log/mask.rs",
    "supervisor/log/redact.rs",
    "supervisor/log/utf8.rs",
    "supervisor/run/duration.rs",
    "supervisor/run/sources.rs",
    "supervisor/run/sources",
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

/// Files that may speak of writes to Kubernetes in its client's own words. Each makes them as deeds, but for Events.
const WRITERS: [&str; 8] = [
    "environment/saved.rs",
    "kube_ext/events.rs",
    "kube_ext/store.rs",
    "leader/claim.rs",
    "leader/roster.rs",
    "lease/payload.rs",
    "pool/runner_secret.rs",
    // Not the operator: a verb of a person's.
    "promote.rs",
];

#[test]
fn every_crash_point_names_one_write_and_no_write_is_made_past_them() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let listed = fs::read_to_string(source.join("deed.rs"))?;
    let (_, listed) = listed.split_once("points! {").context("the list of points")?;
    let points: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.trim().split_once(" \""))
        .map(|(variant, _)| variant)
        .filter(|variant| !variant.is_empty() && variant.chars().all(char::is_alphanumeric))
        .collect();
    ensure!(points.len() > 40, "the list is short: {points:?}");
    let mut product = String::new();
    for (name, text) in sources(&source)? {
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let writes = ["PostParams", "PatchParams", "DeleteParams"].iter().any(|word| text.contains(word));
        ensure!(!writes || WRITERS.contains(&name.as_str()), "{name} writes to Kubernetes past the edges");
        if name != "deed.rs" {
            product.push_str(text);
        }
    }
    for point in points {
        let uses = product
            .match_indices(&format!("Point::{point}"))
            .filter(|(at, found)| {
                !product[at + found.len()..].starts_with(|next: char| next.is_alphanumeric())
            })
            .count();
        ensure!(uses == 1, "Point::{point} names {uses} writes");
    }
    Ok(())
}

/// Every source file below a folder, with its path from there.
pub fn sources(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.strip_prefix(folder)?.display().to_string(), fs::read_to_string(&path)?));
            }
        }
    }
    Ok(files)
}

#[test]
fn the_supervisor_knows_nothing_of_kubernetes_and_the_operator_nothing_of_its_insides() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&source)?;
    ensure!(files.len() > 40, "only {} files were read", files.len());
    for (name, text) in files {
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
    }
    Ok(())
}

#[test]
fn what_the_documents_promise_is_held_by_tests_that_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/reliability.md"))?;
    let tests = sources(&root.join("tests"))?;
    let mut named = 0;
    for word in document.split('`').skip(1).step_by(2).filter(|word| word.contains("::")) {
        let (module, name) = word.rsplit_once("::").context("a path")?;
        let file = format!("{}.rs", module.replace("::", "/"));
        let text = tests.iter().find(|(path, _)| *path == file).map(|(_, text)| text);
        // A whole module is named by its path, an area of cases by its folder.
        let is_area = root.join(format!("tests/{}/cases/{name}", module.replace("::", "/"))).is_dir();
        let exists = is_area
            || text.is_some_and(|text| text.contains(&format!("fn {name}(")))
            || tests.iter().any(|(path, _)| *path == format!("{}.rs", word.replace("::", "/")));
        ensure!(exists, "docs/reliability.md names {word}, which is no test");
        named += 1;
    }
    ensure!(named > 30, "only {named} tests are named");
    let listed = fs::read_to_string(root.join("src/deed.rs"))?;
    let (_, listed) = listed.split_once("points! {").context("the list of points")?;
    for point in
        listed.lines().filter_map(|line| line.trim().split('"').nth(1)).filter(|name| name.contains('-'))
    {
        ensure!(document.contains(&format!("`{point}`")), "docs/reliability.md does not tell of {point}");
    }
    Ok(())
}
