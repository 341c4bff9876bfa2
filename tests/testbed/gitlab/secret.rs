//! Random text for tokens and queue values.

use rand::{Rng, distr::Alphanumeric};

/// `len` random letters and digits.
pub(super) fn letters(len: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(len).map(char::from).collect()
}

/// `len` random lower-case hex digits.
pub(super) fn hex(len: usize) -> String {
    let mut random = rand::rng();
    (0..len).map(|_| char::from_digit(random.random_range(0..16), 16).unwrap_or('0')).collect()
}
