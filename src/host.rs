//! The operator's side of a host: SSH, the installed supervisor, its verbs.
//!
//! `connection` speaks SSH and nothing else; `install` puts the supervisor on the host; `link` is a host with a
//! supervisor that answers; `keeper` keeps one host linked and says how it is. No policy on jobs here.

pub mod connection;
pub mod install;
pub mod keeper;
pub mod link;
pub mod trust;

/// Quotes a word for a POSIX shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_inside_a_word_stays_inside_it() {
        assert_eq!(quote("a'b c"), r"'a'\''b c'");
    }
}
