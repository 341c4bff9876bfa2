//! A series as bars, for a terminal and for a document.

use super::figures;

/// Width of the longest bar.
const WIDTH: f64 = 40.0;

/// One line a point: size, bar, figure.
pub fn bars(points: &[(f64, f64)], of: &str, unit: &str) -> String {
    let largest = points.iter().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max);
    let lines = points.iter().map(|(x, y)| {
        let bar = "#".repeat(length(y / largest));
        format!("{:>8} {of} |{bar:<41}{} {unit}\n", figures::shown(*x), figures::shown(*y))
    });
    lines.collect()
}

/// A share of the width in whole characters: as many as are not beyond it.
fn length(share: f64) -> usize {
    (1..=40u8).take_while(|width| f64::from(*width) <= share * WIDTH + 0.5).count()
}
