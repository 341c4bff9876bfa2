//! Hides secret phrases in a byte stream, however the stream is cut.
//!
//! The longest phrase that starts leftmost wins. Bytes that could be the beginning of a phrase are held back until
//! the next bytes decide, so at most one phrase's length is ever withheld. Pure; never logs a phrase.

use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};

/// What stands in the log in place of a secret.
pub const MASKED: &[u8] = b"[MASKED]";

/// Hides phrases in a stream.
pub struct PhraseMask {
    finder: Option<AhoCorasick>,
    phrases: Vec<Phrase>,
    held: Vec<u8>,
}

impl fmt::Debug for PhraseMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhraseMask").field("phrases", &self.phrases.len()).finish_non_exhaustive()
    }
}

impl PhraseMask {
    /// A mask for `phrases`; empty ones and repetitions are dropped.
    ///
    /// # Errors
    /// When the phrases together are too large to search for.
    pub fn new<I, P>(phrases: I) -> Result<Self, aho_corasick::BuildError>
    where
        I: IntoIterator<Item = P>,
        P: Into<Vec<u8>>,
    {
        let mut phrases: Vec<Vec<u8>> =
            phrases.into_iter().map(Into::into).filter(|phrase| !phrase.is_empty()).collect();
        phrases.sort_unstable();
        phrases.dedup();
        let finder = if phrases.is_empty() {
            None
        } else {
            Some(AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&phrases)?)
        };
        Ok(Self { finder, phrases: phrases.into_iter().map(Phrase::new).collect(), held: Vec::new() })
    }

    /// Takes bytes as they come and appends to `out` what is safe to show.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let Some(finder) = &self.finder else {
            out.extend_from_slice(bytes);
            return;
        };
        self.held.extend_from_slice(bytes);
        let mut done = 0;
        let mut undecided = self.held.len() - longest_beginning(&self.phrases, &self.held);
        while done < undecided {
            let rest = self.held.get(done..).unwrap_or_default();
            let Some(found) = finder.find(rest).filter(|found| done + found.start() < undecided) else {
                out.extend_from_slice(self.held.get(done..undecided).unwrap_or_default());
                done = undecided;
                break;
            };
            out.extend_from_slice(rest.get(..found.start()).unwrap_or_default());
            out.extend_from_slice(MASKED);
            done += found.end();
            if done > undecided {
                let rest = self.held.get(done..).unwrap_or_default();
                undecided = self.held.len() - longest_beginning(&self.phrases, rest);
            }
        }
        self.held.drain(..done);
    }

    /// Ends the stream: what was held back is decided as it stands.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        match &self.finder {
            Some(finder) => {
                let mut done = 0;
                for found in finder.find_iter(&held) {
                    out.extend_from_slice(held.get(done..found.start()).unwrap_or_default());
                    out.extend_from_slice(MASKED);
                    done = found.end();
                }
                out.extend_from_slice(held.get(done..).unwrap_or_default());
            }
            None => out.extend_from_slice(&held),
        }
    }
}

/// Length of the longest end of `bytes` that is a beginning, but not the whole, of a phrase.
fn longest_beginning(phrases: &[Phrase], bytes: &[u8]) -> usize {
    phrases.iter().map(|phrase| phrase.beginning_at_end_of(bytes)).max().unwrap_or(0)
}

/// A phrase with its table of borders: `borders[n]` is the length of the longest proper beginning of the phrase's
/// first `n + 1` bytes that is also their end. With it the end of a stream is matched without looking back.
struct Phrase {
    bytes: Vec<u8>,
    borders: Vec<u32>,
}

impl Phrase {
    fn new(bytes: Vec<u8>) -> Self {
        let mut phrase = Self { borders: Vec::with_capacity(bytes.len()), bytes };
        let mut matched = 0;
        for index in 0..phrase.bytes.len() {
            if index > 0 {
                let byte = phrase.bytes.get(index).copied().unwrap_or_default();
                matched = phrase.advance(matched, byte);
            }
            phrase.borders.push(u32::try_from(matched).unwrap_or(u32::MAX));
        }
        phrase
    }

    /// How much of the phrase is matched after `byte`, when `matched` bytes of it were matched before.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        loop {
            if self.bytes.get(matched) == Some(&byte) {
                return matched + 1;
            }
            if matched == 0 {
                return 0;
            }
            matched = self.border(matched);
        }
    }

    /// Length of the longest proper border of the phrase's first `length` bytes.
    fn border(&self, length: usize) -> usize {
        length.checked_sub(1).and_then(|last| self.borders.get(last)).map_or(0, |border| *border as usize)
    }

    fn beginning_at_end_of(&self, bytes: &[u8]) -> usize {
        let window = bytes.len().saturating_sub(self.bytes.len() - 1);
        let mut matched = 0;
        for byte in bytes.get(window..).unwrap_or_default() {
            matched = self.advance(matched, *byte);
            if matched == self.bytes.len() {
                matched = self.border(matched);
            }
        }
        matched
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(phrases: &[&str], pieces: &[&[u8]]) -> Vec<u8> {
        let mut mask = PhraseMask::new(phrases.iter().map(|phrase| phrase.as_bytes())).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            mask.push(piece, &mut out);
        }
        mask.finish(&mut out);
        out
    }

    #[test]
    fn a_phrase_cut_in_two_is_hidden() {
        assert_eq!(mask(&["secret"], &[b"a sec", b"ret b"]), b"a [MASKED] b");
    }

    #[test]
    fn the_longer_of_two_phrases_with_one_beginning_wins() {
        assert_eq!(mask(&["pass", "password"], &[b"pass", b"word passing"]), b"[MASKED] [MASKED]ing");
    }

    #[test]
    fn a_beginning_that_leads_nowhere_is_shown() {
        assert_eq!(mask(&["secret"], &[b"sec", b"ond secre"]), b"second secre");
    }

    #[test]
    fn a_prompt_that_begins_no_phrase_is_not_held_back() {
        let mut mask = PhraseMask::new(["secret"]).unwrap();
        let mut out = Vec::new();
        mask.push(b"Continue? ", &mut out);
        assert_eq!(out, b"Continue? ");
    }

    proptest! {
        #[test]
        fn no_cutting_changes_the_outcome_and_none_shows_a_phrase(
            phrases in proptest::collection::vec("[ab]{1,6}", 1..5),
            text in "[abc]{0,80}",
            cuts in proptest::collection::vec(1usize..7, 0..60),
        ) {
            let phrases: Vec<&str> = phrases.iter().map(String::as_str).collect();
            let whole = mask(&phrases, &[text.as_bytes()]);
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let cut = mask(&phrases, &pieces);
            prop_assert_eq!(&cut, &whole);
            let shown = String::from_utf8(cut).unwrap();
            for phrase in phrases {
                prop_assert!(!shown.contains(phrase), "{} in {}", phrase, shown);
            }
        }

        #[test]
        fn what_is_held_back_is_shorter_than_the_longest_phrase(
            phrases in proptest::collection::vec("[ab]{1,6}", 1..5), text in "[abc]{0,80}",
        ) {
            let longest = phrases.iter().map(String::len).max().unwrap();
            let mut mask = PhraseMask::new(phrases).unwrap();
            let mut out = Vec::new();
            for byte in text.bytes() {
                mask.push(&[byte], &mut out);
                prop_assert!(mask.held.len() < longest);
            }
        }
    }
}
