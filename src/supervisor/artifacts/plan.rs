//! Which artifacts a job hands over after it ended as it did, and which it gets before it begins. Pure.

use super::download::Source;
use super::upload::Item;
use crate::gitlab::wire::artifacts::{ArtifactSpec, Dependency};
use crate::supervisor::archive::selection::Choice;
use crate::supervisor::archive::write::Format;

/// The name of an archive whose job gives none, and of one whose name expands to nothing.
const UNNAMED: &str = "artifacts";
const EMPTY_NAME: &str = "default";

/// The entries that are due, as the job wrote them; one that cannot be packed comes as the reason why not.
pub fn due(entries: &[ArtifactSpec], succeeded: bool) -> Vec<Result<Item, String>> {
    let is_due = |entry: &&ArtifactSpec| match entry.when.as_str() {
        "always" => true,
        "on_failure" => !succeeded,
        // Also what is not known: artifacts of a failed job that nobody asked for would take up room.
        _ => succeeded,
    };
    entries
        .iter()
        .filter(is_due)
        // An entry without anything to look for is none.
        .filter(|entry| !entry.paths.is_empty() || entry.untracked)
        .map(|entry| {
            let kind = if entry.artifact_type.is_empty() { "archive" } else { &entry.artifact_type };
            let format = Format::named(&entry.artifact_format).ok_or_else(|| {
                format!(
                    "the artifacts of type {kind:?} have artifact_format {:?}, which this runner does not write: \
                     zip, gzip and raw are written",
                    entry.artifact_format
                )
            })?;
            Ok(Item {
                name: if entry.name.is_empty() { UNNAMED.to_owned() } else { entry.name.clone() },
                choice: Choice {
                    paths: entry.paths.clone(),
                    exclude: entry.exclude.clone(),
                    untracked: entry.untracked,
                },
                format,
                kind: kind.to_owned(),
                expire_in: entry.expire_in.clone(),
            })
        })
        .collect()
}

/// The entry with its variables in place.
pub fn expanded(item: &Item, expand: &dyn Fn(&str) -> String) -> Item {
    Item { name: expand(&item.name), choice: item.choice.expanded(expand), ..item.clone() }
}

/// The name of the file of an entry whose variables are in place.
pub fn file_name(name: &str, format: Format) -> String {
    // A branch's name has slashes; a file's has none.
    let last = name.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let base = if matches!(last.trim(), "" | "." | "..") { EMPTY_NAME } else { last };
    match format {
        Format::Zip => format!("{base}.zip"),
        Format::Gzip => format!("{base}.gz"),
        Format::Raw => base.to_owned(),
    }
}

/// The jobs whose artifacts are brought.
pub fn sources(dependencies: &[Dependency]) -> Vec<Source> {
    dependencies
        .iter()
        .filter(|dependency| !dependency.artifacts_file.filename.is_empty())
        .map(|dependency| Source {
            id: dependency.id,
            name: dependency.name.clone(),
            token: dependency.token.clone(),
            file_name: dependency.artifacts_file.filename.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(fields: serde_json::Value) -> ArtifactSpec {
        let mut all = json!({"paths": ["out/"]});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn expand(text: &str) -> String {
        text.replace("$REF", "feature/x").replace("$EMPTY", "")
    }

    fn names(when: &str, succeeded: bool) -> usize {
        due(&[entry(json!({"when": when}))], succeeded).len()
    }

    #[test]
    fn the_jobs_end_chooses_what_is_due() {
        assert_eq!((names("on_success", true), names("on_success", false)), (1, 0));
        assert_eq!((names("", true), names("", false)), (1, 0));
        assert_eq!((names("on_failure", true), names("on_failure", false)), (0, 1));
        assert_eq!((names("always", true), names("always", false)), (1, 1));
    }

    #[test]
    fn names_paths_and_excludes_are_expanded() {
        let spec = entry(json!({"name": "$REF", "paths": ["out/$REF", "$EMPTY"], "exclude": ["$REF/x"]}));
        let item = expanded(due(&[spec], true).remove(0).as_ref().unwrap(), &expand);
        assert_eq!(file_name(&item.name, item.format), "x.zip");
        assert_eq!(item.choice.paths, ["out/feature/x"]);
        assert_eq!(item.choice.exclude, ["feature/x/x"]);
        assert_eq!(item.kind, "archive");
    }

    #[test]
    fn each_format_has_its_ending_and_each_name_something() {
        let name = |name: &str, format: &str| {
            let spec = entry(json!({"name": name, "artifact_format": format, "artifact_type": "junit"}));
            let item = expanded(due(&[spec], true).remove(0).as_ref().unwrap(), &expand);
            file_name(&item.name, item.format)
        };
        assert_eq!(name("", "zip"), "artifacts.zip");
        assert_eq!(name("junit.xml", "gzip"), "junit.xml.gz");
        assert_eq!(name("report.json", "raw"), "report.json");
        assert_eq!(name("$EMPTY", "zip"), "default.zip");
        assert_eq!(name("..", ""), "default.zip");
    }

    #[test]
    fn a_format_that_is_not_written_is_named() {
        let spec = entry(json!({"artifact_format": "zipzstd"}));
        let why = due(&[spec], true).remove(0).unwrap_err();
        assert!(why.contains("zipzstd") && why.contains("gzip"), "{why}");
    }

    #[test]
    fn an_entry_without_anything_to_look_for_is_none() {
        assert!(due(&[entry(json!({"paths": []}))], true).is_empty());
        assert_eq!(due(&[entry(json!({"paths": [], "untracked": true}))], true).len(), 1);
    }

    #[test]
    fn jobs_without_an_archive_are_passed_over() {
        let dependencies: Vec<Dependency> = serde_json::from_value(json!([
            {"id": 1, "name": "a", "token": "t", "artifacts_file": {"filename": "a.zip", "size": 3}},
            {"id": 2, "name": "b", "token": "t", "artifacts_file": null},
            {"id": 3, "name": "c", "token": "t"},
        ]))
        .unwrap();
        let found = sources(&dependencies);
        assert_eq!(found.iter().map(|source| source.id).collect::<Vec<_>>(), [1]);
    }
}
