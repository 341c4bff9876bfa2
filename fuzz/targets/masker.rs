//! The log's masks: no secret is shown, however it is cut or mixed with others, and no cutting changes what is shown.

#![no_main]

use dormouse::supervisor::log::Hidden;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// What stands for a secret.
const MASKED: &str = "[MASKED]";

#[derive(Debug, Arbitrary)]
struct Given {
    secrets: Vec<String>,
    prefixes: Vec<String>,
    text: Vec<Piece>,
    cuts: Vec<u8>,
}

/// Text that knows the secrets: chance alone would not say one.
#[derive(Debug, Arbitrary)]
enum Piece {
    Secret(u8),
    Beginning(u8, u8),
    End(u8, u8),
    Prefix(u8),
    Bytes(Vec<u8>),
}

fn choose(from: &[String], index: u8) -> &[u8] {
    from.get(usize::from(index) % from.len().max(1)).map_or(&[], |text| text.as_bytes())
}

impl Given {
    fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for piece in &self.text {
            text.extend_from_slice(match piece {
                Piece::Secret(which) => choose(&self.secrets, *which),
                Piece::Beginning(which, length) => {
                    let secret = choose(&self.secrets, *which);
                    &secret[..secret.len().min(usize::from(*length))]
                }
                Piece::End(which, start) => {
                    let secret = choose(&self.secrets, *which);
                    &secret[secret.len().min(usize::from(*start))..]
                }
                Piece::Prefix(which) => choose(&self.prefixes, *which),
                Piece::Bytes(bytes) => bytes,
            });
        }
        text
    }

    fn shown<'a>(&self, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut hidden = Hidden::new(self.secrets.clone(), &self.prefixes).expect("secrets this small fit");
        let mut out = Vec::new();
        pieces.for_each(|piece| hidden.push(piece, &mut out));
        hidden.finish(&mut out);
        out
    }

    /// The text in the pieces that the cuts make of it.
    fn cut<'a>(&self, mut rest: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for cut in &self.cuts {
            let (piece, after) = rest.split_at(rest.len().min(usize::from(*cut)));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        pieces
    }
}

/// Whether a prefix can be found in the mask itself: what follows it there is hidden once more, and the mask is in pieces.
fn cuts_masks(prefix: &str) -> bool {
    let prefix = prefix.trim();
    prefix.contains(['[', ']']) || (!prefix.is_empty() && MASKED.contains(prefix))
}

fuzz_target!(|given: Given| {
    let text = given.text();
    let whole = given.shown(std::iter::once(text.as_slice()));
    let cut = given.shown(given.cut(&text).into_iter());
    assert_eq!(cut, whole, "{given:?}");
    let shown = String::from_utf8(whole).expect("what is shown is UTF-8");
    // A piece of a mask is not what was hidden, but may be the same text.
    if given.prefixes.iter().any(|prefix| cuts_masks(prefix)) {
        return;
    }
    for secret in given.secrets.iter().filter(|secret| !secret.is_empty()) {
        // A repaired byte is no secret, and neither is the mask itself.
        if secret.contains(char::REPLACEMENT_CHARACTER) {
            continue;
        }
        assert!(!shown.split(MASKED).any(|part| part.contains(secret.as_str())), "{secret:?} in {shown:?}");
    }
});
