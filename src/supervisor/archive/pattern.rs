//! The paths of `artifacts:paths`, `cache:paths` and `exclude`, as patterns over paths of the project. Pure.
//!
//! Shell-style: `*` and `?` stay within a folder, `**` crosses folders, `[a-z]` and `{a,b}` choose. A path without any
//! of them names one file or one folder.

/// A pattern below the project's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// As it was given, for the log.
    pub given: String,
    /// The folder a search begins in: the parts before the first one that is not plain.
    pub base: String,
    /// The whole of it below the project's folder, where there is something to match.
    glob: Option<String>,
}

impl Pattern {
    /// Reads a path whose variables are expanded; `None` when it leads out of the project's folder.
    pub fn read(given: &str, project: &str) -> Option<Self> {
        let below = if given.starts_with('/') {
            let project = project.trim_end_matches('/');
            given.strip_prefix(project).filter(|rest| rest.is_empty() || rest.starts_with('/'))?
        } else {
            given
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in below.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                parts.pop()?;
            } else {
                parts.push(part);
            }
        }
        let plain = parts.iter().take_while(|part| !part.contains(['*', '?', '[', '{', '\\'])).count();
        let base = parts.iter().take(plain).copied().collect::<Vec<_>>().join("/");
        let glob = (plain < parts.len()).then(|| parts.join("/"));
        Some(Self { given: given.to_owned(), base, glob })
    }

    /// Whether it names one path, [`Self::base`].
    pub fn is_plain(&self) -> bool {
        self.glob.is_none()
    }

    /// Whether a path of the project is meant.
    pub fn matches(&self, path: &[u8]) -> bool {
        match &self.glob {
            Some(glob) => fast_glob::glob_match(glob.as_bytes(), path),
            None => path == self.base.as_bytes(),
        }
    }

    /// Whether anything below a folder so many parts deep can be meant.
    pub fn reaches(&self, depth: usize) -> bool {
        match &self.glob {
            Some(glob) => glob.contains("**") || glob.contains('{') || depth < glob.split('/').count(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::read(pattern, "/b/p").unwrap().matches(path.as_bytes())
    }

    #[test]
    fn stars_stay_in_a_folder_and_double_stars_do_not() {
        for (pattern, path) in [
            ("*.o", "a.o"),
            ("**/*.o", "a.o"),
            ("**/*.o", "x/y/a.o"),
            ("dist/**/*", "dist/a/b"),
            ("dist/**", "dist/a/b"),
            ("a?c", "abc"),
            ("a[0-9]", "a7"),
            ("{x,y}/z", "y/z"),
            ("*", ".hidden"),
            ("/b/p/out/*.xml", "out/r.xml"),
            ("./out/", "out"),
            ("a/../b", "b"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.o", "x/a.o"),
            ("a?c", "a/c"),
            ("dist/*", "dist/a/b"),
            ("out", "out/r"),
            ("a[0-9]", "ab"),
            ("*.O", "a.o"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn a_search_begins_behind_the_plain_parts() {
        let base = |pattern: &str| Pattern::read(pattern, "/b/p").unwrap().base;
        assert_eq!(base("a/b/*.txt"), "a/b");
        assert_eq!(base("**"), "");
        assert_eq!(base("a/b"), "a/b");
        assert_eq!(base("."), "");
    }

    #[test]
    fn what_leads_out_of_the_project_is_no_pattern() {
        for outside in ["/etc/passwd", "../x", "a/../../x", "/b/pp/x", "/b"] {
            assert_eq!(Pattern::read(outside, "/b/p"), None, "{outside}");
        }
        assert!(Pattern::read("/b/p", "/b/p").is_some());
    }

    #[test]
    fn a_pattern_says_how_deep_to_look() {
        let reaches = |pattern: &str, depth| Pattern::read(pattern, "/b/p").unwrap().reaches(depth);
        assert!(reaches("a/*/c", 2) && !reaches("a/*/c", 3));
        assert!(reaches("**/x", 50) && reaches("{a,b/c/d}", 2));
    }

    proptest! {
        #[test]
        fn any_pattern_matches_any_path_in_bounded_time(pattern in "[a*?{},/\\[\\]\\\\!^.-]{0,24}", path in "[a/.b]{0,40}") {
            if let Some(pattern) = Pattern::read(&pattern, "/b/p") {
                let _matched = pattern.matches(path.as_bytes());
            }
        }
    }
}
