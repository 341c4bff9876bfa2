//! Expands a text as gitlab-runner's helper does, which is as a shell does it in a here-document.
//!
//! Pure. `$NAME`, `${NAME}`, and what stands in for a variable or follows from it: `${NAME:-word}`, `${NAME-word}`,
//! `${NAME:=word}`, `${NAME=word}`, `${NAME:+word}`, `${NAME+word}`. To the helper, a variable without a value is one that is
//! not there, so that the colon makes no difference. What a shell knows beyond that is named, so that it can be told: nothing
//! vanishes unsaid.

use std::iter::Peekable;
use std::str::Chars;

/// How deeply a word may stand within another one.
const DEEPEST: usize = 16;

/// The text with its variables in place.
///
/// # Errors
/// What in it cannot be expanded.
pub fn expand(text: &str, value: &dyn Fn(&str) -> String) -> Result<String, String> {
    Reader { rest: text.chars().peekable(), value, depth: 0 }.text(Within::Document)
}

/// Where a part of the text stands: what ends it, and what a backslash does there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// The whole text. Quotes are nothing special.
    Document,
    /// The word behind an operator, up to its brace.
    Word,
    /// Double quotes in such a word.
    Quotes,
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    value: &'a dyn Fn(&str) -> String,
    depth: usize,
}

impl Reader<'_> {
    /// Reads up to the end of a part, which is left for the caller.
    fn text(&mut self, within: Within) -> Result<String, String> {
        let mut out = String::new();
        while let Some(next) = self.rest.peek().copied() {
            if matches!((within, next), (Within::Word, '}') | (Within::Quotes, '"')) {
                break;
            }
            self.rest.next();
            match (next, within) {
                ('$', _) => self.reference(within, &mut out)?,
                ('`', _) => return Err("it holds a command".to_owned()),
                ('\\', Within::Word) => {
                    out.push('\\');
                    out.extend(self.rest.next());
                }
                ('\\', Within::Document | Within::Quotes) => {
                    let stands_for_itself = |next: &char| {
                        matches!(next, '\\' | '$' | '`') || *next == '"' && within == Within::Quotes
                    };
                    out.push(self.rest.next_if(stands_for_itself).unwrap_or('\\'));
                }
                ('\'', Within::Word) => {
                    let quoted: String =
                        std::iter::from_fn(|| self.rest.next_if(|next| *next != '\'')).collect();
                    self.end('\'')?;
                    out.push_str(&quoted);
                }
                ('"', Within::Word) => {
                    let quoted = self.text(Within::Quotes)?;
                    self.end('"')?;
                    out.push_str(&quoted);
                }
                ('~', Within::Word) if out.is_empty() => return Err("it holds a home folder, ~".to_owned()),
                (plain, _) => out.push(plain),
            }
        }
        Ok(out)
    }

    /// Reads what follows a dollar sign.
    fn reference(&mut self, within: Within, out: &mut String) -> Result<(), String> {
        match self.rest.peek().copied() {
            Some('{') => {
                self.rest.next();
                out.push_str(&self.braces()?);
            }
            Some('(' | '[') => return Err("it holds a command or a sum".to_owned()),
            Some('\'' | '"') if within == Within::Word => return Err("it holds a $ before quotes".to_owned()),
            // A parameter of a shell: there is none.
            Some(one) if one.is_ascii_digit() || "@*#$?!-".contains(one) => {
                self.rest.next();
                out.push_str(&(self.value)(&one.to_string()));
            }
            Some(_) | None => {
                let name = self.name();
                match name.is_empty() {
                    true => out.push('$'),
                    false => out.push_str(&(self.value)(&name)),
                }
            }
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        std::iter::from_fn(|| self.rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '_'))
            .collect()
    }

    /// Reads a reference in braces, the opening one taken.
    fn braces(&mut self) -> Result<String, String> {
        let name = self.name();
        let is_parameter = name.bytes().all(|byte| byte.is_ascii_digit());
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) && !is_parameter {
            return Err("it holds a ${ without a plain name".to_owned());
        }
        let value = (self.value)(&name);
        let with_colon = self.rest.next_if_eq(&':').is_some();
        let operator = self.rest.next();
        match operator {
            Some('}') if !with_colon => return Ok(value),
            Some('-' | '=' | '+') => {}
            Some(other) => {
                let colon = if with_colon { ":" } else { "" };
                return Err(format!("${{{name}{colon}{other}...}} is a form that is not known"));
            }
            None => return Err("it holds a ${ without its }".to_owned()),
        }
        if self.depth == DEEPEST {
            return Err(format!("it holds words within words, more than {DEEPEST}"));
        }
        self.depth += 1;
        let word = self.text(Within::Word)?;
        self.depth -= 1;
        self.end('}')?;
        Ok(match (operator, value.is_empty()) {
            (Some('+'), true) => String::new(),
            (Some('+'), false) | (_, true) => word,
            (_, false) => value,
        })
    }

    fn end(&mut self, mark: char) -> Result<(), String> {
        self.rest.next_if_eq(&mark).map(drop).ok_or_else(|| format!("it holds something without its {mark}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(name: &str) -> String {
        match name {
            "A" => "one",
            "B" => "$A ${A} `x` \\$",
            "LONG_2" => "two",
            _ => "",
        }
        .to_owned()
    }

    #[test]
    fn variables_and_what_stands_in_for_them_are_expanded() {
        for (text, expanded) in [
            ("", ""),
            ("dist/$A/*.js", "dist/one/*.js"),
            ("$A-$LONG_2.$MISSING", "one-two."),
            ("${A}B${LONG_2}", "oneBtwo"),
            ("$A1 $1A $@ $$A", " A  A"),
            ("a$ b$/ c$ä $", "a$ b$/ c$ä $"),
            // A value is not expanded again.
            ("$B", "$A ${A} `x` \\$"),
            ("${NONE:-snapshot} ${NONE-snapshot}", "snapshot snapshot"),
            ("${A:-snapshot} ${A-}", "one one"),
            ("${NONE:=d} ${NONE=d} ${A:=d}", "d d one"),
            ("${A:+is there}${A+!}${NONE:+not}${NONE+not}", "is there!"),
            ("${NONE:-$A/${NONE:-${LONG_2}}}", "one/two"),
            ("${NONE:-'$A' \"$A\" b} '$A' \"$A\"", "$A one b 'one' \"one\""),
            (r"\$A \\ \a \` ${NONE:-\}} ${NONE:-}", r"$A \ \a ` \} "),
            ("a}b{c}", "a}b{c}"),
        ] {
            assert_eq!(expand(text, &value).as_deref(), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for text in [
            "$(date)",
            "$((1 + 1))",
            "$[1]",
            "`date`",
            "${A",
            "${A:-b",
            "${A:-'b}",
            "${A:-\"b}",
            "${}",
            "${A/o/a}",
            "${A#o}",
            "${A%e}",
            "${A:1}",
            "${A:?no}",
            "${A^^}",
            "${#A}",
            "${!A}",
            "${1A}",
            "${CI-COMMIT",
            "${NONE:-~}",
            "${NONE:-$'x'}",
            "${NONE:-$(date)}",
        ] {
            assert!(expand(text, &value).is_err(), "{text}: {:?}", expand(text, &value));
        }
        let deep = "${N:-".repeat(100_000);
        assert!(expand(&deep, &value).is_err());
    }

    proptest! {
        #[test]
        fn anything_ends_and_no_text_without_a_mark_is_changed(text in "[-$\\{\\}\\\\'\"`A-C:+=~(ä /]{0,40}") {
            let expanded = expand(&text, &value);
            if !text.contains(['$', '\\', '`']) {
                prop_assert_eq!(expanded, Ok(text));
            }
        }

        #[test]
        fn a_variable_is_its_value_wherever_it_stands(before in "[a-z/.}'\"]{0,9}", value in ".*", after in "[/. {'\"]{0,9}") {
            let lookup = |name: &str| if name == "A" { value.clone() } else { String::new() };
            for form in ["$A", "${A}", "${A:-}", "${A+$A}", "${NONE:-$A}", "${NONE-\"${A}\"}"] {
                let expanded = expand(&format!("{before}{form}{after}"), &lookup);
                prop_assert_eq!(expanded, Ok(format!("{before}{value}{after}")));
            }
        }
    }
}
