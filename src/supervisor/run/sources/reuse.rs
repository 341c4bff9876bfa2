//! What is done to a repository that an earlier job has left before sources are fetched into it, and how it is told
//! that it cannot be used.
//!
//! The earlier job could write anything into it: hooks, settings that start programs, other addresses. Only objects,
//! references and the index are trusted, for what they hold is checked by what they are named.

/// Functions of the sources' script. `__dormouse_make_ready` stands in the workspace.
pub const FUNCTIONS: &str = r#"__dormouse_make_ready() {
[[ -d .git && ! -L .git ]] || { rm -rf .git; return; }
find .git -type d -name objects ! -path '*/refs/*' -prune -o -name '*.lock' -type f -exec rm -f {} + || return
__dormouse_filter=$(git config --file .git/config remote.origin.partialclonefilter) || __dormouse_filter=
rm -rf .git/hooks .git/config .git/config.worktree .git/info/attributes || return
[[ -d .git/modules ]] || return 0
local module folder url format
find .git/modules -type d -name hooks -prune -exec rm -rf {} +
find .git/modules -type f -name config.worktree -exec rm -f {} +
while IFS= read -r -d '' module; do
[[ -f ${module%/config}/HEAD ]] || continue
folder=$(git config --file "$module" core.worktree) || folder=
url=$(git config --file "$module" remote.origin.url) || url=
format=$(git config --file "$module" extensions.objectformat) || format=
rm -f "$module"
git config --file "$module" core.repositoryformatversion "$(( ${#format} > 0 ))"
[[ -z $format ]] || git config --file "$module" extensions.objectformat "$format"
git config --file "$module" core.bare false
[[ -z $folder ]] || git config --file "$module" core.worktree "$folder"
[[ -z $url ]] || git config --file "$module" remote.origin.url "$url"
git config --file "$module" remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*'
done < <(find .git/modules -type d -name objects ! -path '*/refs/*' -prune -o -type f -name config -print0)
}
"#;
