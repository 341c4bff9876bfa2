//! The text of a stage's script, for `bash` on standard input.
//!
//! The body is one quoted `eval` in a subshell whose standard input is empty, so that no line of a user can end the
//! envelope or read the rest of it. Pure; the text holds secrets and must only ever go to a pipe.

use super::sources::address::{GitSettings, Setting, as_file, included};
use super::variables::JobVariables;

/// Name of the file, in the folder of file variables, that a script's end leaves its context in.
pub const CONTEXT_FILE: &str = ".dormouse-context";

/// Name of the file, beside it, with the shell's history.
pub const HISTORY_FILE: &str = ".dormouse-history";

/// Name of the file, beside it, that tells `git` the job's credentials.
const CREDENTIALS_FILE: &str = ".dormouse-git";

/// Variables that belong to a shell or to one job, and are not kept for the next.
const NEVER_KEPT: &str = "_|SHLVL|PWD|OLDPWD|BASH*|GIT_CONFIG_*|DORMOUSE_*";

/// Goes to the home folder, where there is one.
const AT_HOME: &str = "cd \"${HOME:-/}\" 2>/dev/null || :\n";

/// Lines of history that are kept: enough for a person, and far from a burden.
const HISTORY_LINES: u32 = 1000;

/// What every stage of a job begins with.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// The job's variables.
    pub variables: &'a JobVariables,
    /// Value of `CI_JOB_STATUS`.
    pub job_status: &'a str,
    /// The workspace.
    pub workspace: &'a str,
    /// Folder of file variables.
    pub temporary: &'a str,
    /// The workspace without links on the way to it, as `git` calls it.
    pub repository: &'a str,
    /// What `git` is told.
    pub git_settings: &'a GitSettings,
}

/// What one stage does.
#[derive(Debug)]
pub enum Body<'a> {
    /// Commands of the user, each shown before it runs, in the workspace.
    Commands {
        /// The commands.
        lines: &'a [String],
        /// What an earlier job of the environment has left.
        restored: Option<&'a Restored>,
        /// Whether the script's end leaves its context behind.
        keep_context: bool,
        /// Whether commands of several lines get sections of their own.
        sections: bool,
    },
    /// A script of the runner; it begins in the home folder of the job's user, as a login does.
    Plain(&'a str),
}

/// What a resumed script gets back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Working directory.
    pub cwd: String,
    /// Exported variables; the job's own win over them.
    pub variables: Vec<(String, String)>,
    /// The shell's history, for a `HISTFILE` that is not there any more.
    pub history: String,
}

impl Envelope<'_> {
    /// The whole script of a stage.
    pub fn script(&self, body: &Body<'_>) -> String {
        // Folders first: with large variables exported, no program can be started any more.
        let mut inner = folder(self.temporary, "-m 700");
        if matches!(body, Body::Commands { .. }) {
            inner.push_str(&folder(self.workspace, ""));
        }
        if let Body::Commands { restored: Some(restored), .. } = body {
            for (key, value) in &restored.variables {
                export(&mut inner, key, value, false);
            }
        }
        if matches!(body, Body::Plain(_)) {
            // Before the job's variables, which may name another.
            inner.push_str(AT_HOME);
        }
        let git_settings = self.git_settings(&mut inner, body);
        self.exports(&mut inner, &git_settings);
        match body {
            Body::Commands { lines, restored, keep_context, sections } => {
                self.enter_workspace(&mut inner, *restored);
                if *keep_context {
                    self.keep_context(&mut inner);
                }
                self.trace_if_wanted(&mut inner);
                for (number, line) in lines.iter().enumerate() {
                    if *sections {
                        sectioned(&mut inner, number, line);
                    } else {
                        command(&mut inner, line);
                    }
                }
            }
            Body::Plain(text) => {
                self.trace_if_wanted(&mut inner);
                inner.push_str(text);
            }
        }
        format!(
            "trap 'exit 1' TERM\nset -o pipefail\nset -o errexit\nset +o noclobber\n( eval {} ) < /dev/null\nexit 0\n",
            quote(&inner)
        )
    }

    fn exports(&self, out: &mut String, git_settings: &[Setting]) {
        for variable in self.variables.exports() {
            if let Some(content) = &variable.content {
                out.push_str(&format!(
                    "( umask 077; printf %s {} > {} )\n",
                    quote(content),
                    quote(&variable.value)
                ));
            }
            let is_shell_only = self.variables.is_shell_only(&variable.key);
            export(out, &variable.key, &variable.value, is_shell_only);
        }
        export(out, "CI_JOB_STATUS", self.job_status, false);
        for (key, value) in git_settings {
            out.push_str("__dormouse_n=${GIT_CONFIG_COUNT:-0}\n");
            out.push_str(&format!("export \"GIT_CONFIG_KEY_$__dormouse_n\"={}\n", quote(key)));
            out.push_str(&format!("export \"GIT_CONFIG_VALUE_$__dormouse_n\"={}\n", quote(value)));
            out.push_str("export GIT_CONFIG_COUNT=$((__dormouse_n + 1))\nunset __dormouse_n\n");
        }
        git_settings_of_old(out, git_settings);
        // Blanks around a line go, whatever the job has set IFS to.
        // Lines that are no assignment are skipped: a job may write anything into the file.
        out.push_str(
            "if [[ -f $GITLAB_ENV ]]; then while IFS=$' \\t' read -r __dormouse_line || [[ -n $__dormouse_line ]]; do\n\
             if [[ $__dormouse_line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then export \"$__dormouse_line\"; fi\n\
             done < \"$GITLAB_ENV\"; unset __dormouse_line; fi\n",
        );
    }

    /// What `git` is told in the environment of a stage. Fetching the sources, that is the job's credentials too. In the
    /// user's commands they are in a file, for the project's own repository alone.
    fn git_settings(&self, out: &mut String, body: &Body<'_>) -> Vec<Setting> {
        let GitSettings { addresses, certificates } = self.git_settings;
        match body {
            Body::Plain(_) => [addresses.as_slice(), certificates].concat(),
            Body::Commands { .. } if addresses.is_empty() => certificates.clone(),
            Body::Commands { .. } => {
                let file = format!("{}/{CREDENTIALS_FILE}", self.temporary);
                let (text, path) = (quote(&as_file(addresses)), quote(&file));
                out.push_str(&format!("( umask 077; printf %s {text} >| {path} )\n"));
                [certificates.as_slice(), &included(self.repository, &file)].concat()
            }
        }
    }

    fn enter_workspace(&self, out: &mut String, restored: Option<&Restored>) {
        out.push_str(&format!("cd {}\n", quote(self.workspace)));
        if let Some(restored) = restored.filter(|restored| !restored.cwd.is_empty()) {
            let cwd = quote(&restored.cwd);
            out.push_str(&format!("if [[ -d {cwd} && -x {cwd} ]]; then cd {cwd}; fi\n"));
        }
        if let Some(restored) = restored.filter(|restored| !restored.history.is_empty()) {
            let history = quote(&restored.history);
            out.push_str(&format!(
                "[[ -z ${{HISTFILE-}} || -e $HISTFILE ]] || printf %s {history} 2>/dev/null > \"$HISTFILE\" || :\n"
            ));
        }
    }

    /// Lets the script's end write its working directory and exported variables, but none that GitLab gave.
    fn keep_context(&self, out: &mut String) {
        let given: String =
            self.variables.exports().iter().map(|variable| format!("|{}", variable.key)).collect();
        let file = quote(&format!("{}/{CONTEXT_FILE}", self.temporary));
        let history = quote(&format!("{}/{HISTORY_FILE}", self.temporary));
        out.push_str(&format!(
            "__dormouse_keep() {{\n\
             {{ set +o xtrace; }} 2>/dev/null\n\
             {{ local IFS=$'\\n' name\n\
             printf '%s\\0' \"$PWD\"\n\
             for name in $(compgen -e); do case $name in {NEVER_KEPT}{given}) ;; \
             *) printf '%s=%s\\0' \"$name\" \"${{!name-}}\" ;; esac; done\n\
             }} 2>/dev/null >| {file} || :\n\
             if [[ -n ${{HISTFILE-}} ]]; then {{ history -a; tail -n {HISTORY_LINES} \"$HISTFILE\"; }} \
             2>/dev/null >| {history} || :; fi\n\
             }}\n\
             trap __dormouse_keep EXIT\n"
        ));
    }

    fn trace_if_wanted(&self, out: &mut String) {
        if self.variables.flag("CI_DEBUG_TRACE", false) {
            out.push_str("set -o xtrace\n");
        }
    }
}

/// git before 2.31 knows no `GIT_CONFIG_COUNT`. What it hands on to its own children is read by all of them, so it is set
/// too; a setting that is read twice is the same setting.
fn git_settings_of_old(out: &mut String, settings: &[Setting]) {
    // There, a name ends at the first `=`.
    let settings = settings.iter().filter(|(key, _)| !key.contains('='));
    let words: Vec<String> = settings
        .map(|(key, value)| format!("'{}'", format!("{key}={value}").replace('\'', r"'\''")))
        .collect();
    if !words.is_empty() {
        out.push_str(&format!(
            "export GIT_CONFIG_PARAMETERS=\"${{GIT_CONFIG_PARAMETERS:+$GIT_CONFIG_PARAMETERS }}\"{}\n",
            quote(&words.join(" "))
        ));
    }
}

fn folder(path: &str, flags: &str) -> String {
    let path = quote(path);
    format!("[[ -d {path} ]] || mkdir -p {flags} {path}\n")
}

/// A variable that is too large for programs stays the shell's own.
fn export(out: &mut String, key: &str, value: &str, is_shell_only: bool) {
    let verb = if is_shell_only { "" } else { "export " };
    out.push_str(&format!("{verb}{key}={}\n", quote(value)));
}

/// Shows a command in bold green and runs it; of several lines only the first is shown.
pub fn command(out: &mut String, line: &str) {
    let shown = match line.trim_end().split_once('\n') {
        Some((first, _)) => format!("$ {first} # collapsed multi-line command"),
        None => format!("$ {line}"),
    };
    out.push_str(&format!("echo {}\n{line}\n", quote(&format!("\x1b[32;1m{shown}\x1b[0;m"))));
}

/// Runs a command of several lines in a section of its own that opens to the whole of it; others as [`command`] does.
fn sectioned(out: &mut String, number: usize, line: &str) {
    if !line.trim_end().contains('\n') {
        return command(out, line);
    }
    let name = format!("section_script_step_{number}");
    let text = quote(&format!("\x1b[32;1m$ {}\x1b[0;m\n", line.trim_end()));
    out.push_str(&format!(
        "printf 'section_start:%(%s)T:{name}[hide_duration=true,collapsed=true]\\r\\e[0K%s' -1 {text}\n{line}\n\
         printf 'section_end:%(%s)T:{name}\\r\\e[0K' -1\n"
    ));
}

/// Quotes any text as one word of a shell; NUL, which no shell can hold, is dropped.
pub fn quote(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 3);
    quoted.push_str("$'");
    for character in text.chars() {
        match character {
            '\0' => {}
            '\'' => quoted.push_str("\\'"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_ascii_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(control)))
            }
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::property::cases(40))]
        #[test]
        fn bash_reads_a_quoted_text_back(texts in proptest::collection::vec("[^\0]{0,30}", 1..20)) {
            let words: Vec<String> = texts.iter().map(|text| quote(text)).collect();
            let script = format!("printf '%s\\0' {}", words.join(" "));
            let output = Command::new("bash").arg("-c").arg(script).output().unwrap();
            let mut wanted = texts.join("\0").into_bytes();
            wanted.push(0);
            prop_assert_eq!(output.stdout, wanted);
        }
    }

    #[test]
    fn a_section_of_a_command_holds_all_of_it() {
        let mut out = String::new();
        sectioned(&mut out, 4, "echo 100% \\\\ && {\n  echo deep\n}\n");
        let output = Command::new("bash").arg("-c").arg(out).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (start, rest) =
            text.split_once(":section_script_step_4[hide_duration=true,collapsed=true]\r\x1b[0K").unwrap();
        assert!(start.starts_with("section_start:1"), "{text}");
        assert!(
            rest.contains("$ echo 100% \\\\ && {\n  echo deep\n}\x1b[0;m\n100% \\\ndeep\nsection_end:1"),
            "{text}"
        );
    }

    #[test]
    fn only_the_first_line_of_a_multi_line_command_is_shown() {
        let mut out = String::new();
        command(&mut out, "if true; then\n  echo deep\nfi");
        assert!(out.contains("$ if true; then # collapsed multi-line command"), "{out}");
    }
}
