//! Frames: any bytes are frames or refused, however they are cut, and what is a frame is written as the same one.

#![no_main]

use dormouse::spool::frame::{Decoder, Frame};
use libfuzzer_sys::fuzz_target;

/// The frames, and whether the stream ended with an error.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fuzz_target!(|given: (u8, &[u8])| {
    let (cut, bytes) = given;
    let whole = decode(std::iter::once(bytes));
    assert_eq!(decode(bytes.chunks(usize::from(cut) + 1)), whole);
    let mut written = Vec::new();
    for frame in &whole.0 {
        frame.encode(&mut written).expect("what was read can be written");
    }
    assert_eq!(decode(std::iter::once(written.as_slice())), (whole.0, false));
});
