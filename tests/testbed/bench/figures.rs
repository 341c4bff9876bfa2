//! The little arithmetic figures are made with.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

/// Milliseconds from one time to a later one.
pub fn milliseconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

/// The middle one.
pub fn median(samples: &[f64]) -> Result<f64> {
    percentile(samples, 50)
}

/// The smallest sample that this many of a hundred do not exceed.
pub fn percentile(samples: &[f64], percent: usize) -> Result<f64> {
    ensure!(!samples.is_empty() && percent <= 100, "no percentile {percent} of {} samples", samples.len());
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().context("a rank beyond the samples")
}

/// The largest.
pub fn largest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// A count as a figure.
pub fn count(number: usize) -> f64 {
    // Counts here are far below 2^32, so nothing is lost.
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

/// A figure as people read it: no more digits than mean something.
pub fn shown(figure: f64) -> String {
    let text = if figure.abs() >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.2}") };
    match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text,
    }
}
