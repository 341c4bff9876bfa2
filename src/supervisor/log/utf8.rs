//! Replaces what is not UTF-8 in a byte stream, however the stream is cut. Pure.

const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Repairs a stream; holds back at most the first bytes of one unfinished character.
#[derive(Debug, Default)]
pub struct Utf8Repair {
    held: Vec<u8>,
}

impl Utf8Repair {
    /// Takes bytes as they come and appends whole characters.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            out.extend_from_slice(valid);
            match error.error_len() {
                Some(length) => {
                    out.extend_from_slice(REPLACEMENT);
                    rest = after.get(length..).unwrap_or_default();
                }
                None => {
                    self.held = after.to_vec();
                    return;
                }
            }
        }
        out.extend_from_slice(rest);
    }

    /// Ends the stream: an unfinished character is replaced.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if !std::mem::take(&mut self.held).is_empty() {
            out.extend_from_slice(REPLACEMENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cutting_gives_what_the_standard_library_gives(
            bytes in proptest::collection::vec(any::<u8>(), 0..60), text in ".{0,20}", cut in 1usize..5,
        ) {
            let stream = [text.as_bytes(), &bytes, text.as_bytes()].concat();
            let mut repair = Utf8Repair::default();
            let mut out = Vec::new();
            for piece in stream.chunks(cut) {
                repair.push(piece, &mut out);
            }
            repair.finish(&mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8_lossy(&stream));
        }
    }
}
