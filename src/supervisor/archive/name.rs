//! Names of an archive's entries, as paths below the project's folder. Pure.
//!
//! A name that could lead anywhere else is refused, never repaired: an archive that holds one is hostile or broken. A
//! backslash is an ordinary character here, as it is in every path of Linux.

/// Longest name that can be a path.
const LONGEST: usize = 4096;

/// The path an entry's name stands for, without `.` and doubled slashes.
///
/// # Errors
/// Why it is no path below a folder.
pub fn below(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.contains(&0) {
        return Err("its name holds a NUL byte");
    }
    if name.first() == Some(&b'/') {
        return Err("its name is an absolute path");
    }
    if name.len() >= LONGEST {
        return Err("its name is longer than any path");
    }
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !is_idle(part)).collect();
    if parts.contains(&b"..".as_slice()) {
        return Err("its name climbs out by `..`");
    }
    if parts.is_empty() {
        return Err("it has no name");
    }
    Ok(parts.join(&b'/'))
}

/// Whether a link in the entry `name` with this target stays below the project's folder, as far as words tell. An
/// absolute target may lead back into it.
pub fn stays_inside(name: &[u8], target: &[u8], project: &[u8]) -> bool {
    let (mut depth, rest) = if target.first() == Some(&b'/') {
        let inside =
            target.strip_prefix(project).filter(|rest| rest.first().is_none_or(|byte| *byte == b'/'));
        let Some(rest) = inside else { return false };
        (0_usize, rest)
    } else {
        (name.split(|byte| *byte == b'/').filter(|part| !is_idle(part)).count().saturating_sub(1), target)
    };
    for part in rest.split(|byte| *byte == b'/').filter(|part| !is_idle(part)) {
        depth = if part == b".." {
            match depth.checked_sub(1) {
                Some(depth) => depth,
                None => return false,
            }
        } else {
            depth + 1
        };
    }
    true
}

/// The folder and the last part of a path that [`below`] has made.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.split_at_checked(at)) {
        Some((folder, last)) => (folder, last.strip_prefix(b"/").unwrap_or(last)),
        None => (b"", path),
    }
}

fn is_idle(part: &[u8]) -> bool {
    part.is_empty() || part == b"."
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_are_kept_and_tidied() {
        for (name, path) in [
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("a\nb", "a\nb"),
            ("..\\x", "..\\x"),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ] {
            assert_eq!(below(name.as_bytes()).unwrap(), path.as_bytes(), "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_with_the_reason() {
        for (name, why) in [
            ("/etc/passwd", "absolute"),
            ("../x", ".."),
            ("a/../../x", ".."),
            ("", "no name"),
            ("./", "no name"),
            ("a\0", "NUL"),
        ] {
            assert!(below(name.as_bytes()).unwrap_err().contains(why), "{name}");
        }
        assert!(below(&[b'a'; LONGEST]).is_err());
    }

    #[test]
    fn links_that_point_outside_are_told_from_those_that_stay() {
        let inside = |name: &str, target: &str| stays_inside(name.as_bytes(), target.as_bytes(), b"/b/0/g/p");
        for (name, target) in [
            ("l", "a"),
            ("a/l", "../b"),
            ("a/b/l", "../.."),
            ("l", "/b/0/g/p"),
            ("l", "/b/0/g/p/x/../y"),
            ("l", "./a//b"),
        ] {
            assert!(inside(name, target), "{name} -> {target}");
        }
        for (name, target) in [
            ("l", ".."),
            ("a/l", "../../x"),
            ("l", "/etc"),
            ("l", "/b/0/g/pp"),
            ("l", "/b/0/g/p/../q"),
            ("l", "a/../.."),
        ] {
            assert!(!inside(name, target), "{name} -> {target}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_never_climbs_and_is_accepted_again(name in prop::collection::vec(prop::sample::select(b"./a\\\n".to_vec()), 0..24)) {
            if let Ok(path) = below(&name) {
                prop_assert!(!path.starts_with(b"/") && !path.ends_with(b"/"));
                prop_assert!(path.split(|byte| *byte == b'/').all(|part| !part.is_empty() && part != b".." && part != b"."));
                prop_assert_eq!(below(&path).unwrap(), path.clone());
                let (folder, last) = split(&path);
                prop_assert!(!last.is_empty() && !last.contains(&b'/'));
                prop_assert!(folder.is_empty() || below(folder).is_ok());
            }
        }
    }
}
