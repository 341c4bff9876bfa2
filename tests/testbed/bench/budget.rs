//! A figure beside its budget, and the report of all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::figures;
use super::machine::Machine;
use super::plot;

/// What a figure must be to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    /// The limit is still good.
    AtMost,
    /// The limit is already too much.
    Below,
    /// The limit is not enough.
    Above,
}

/// A promise.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Its name, without blanks.
    pub name: &'static str,
    /// What the figure must be to the limit.
    pub bound: Bound,
    /// The limit.
    pub limit: f64,
    /// The unit of figure and limit, without blanks.
    pub unit: &'static str,
}

impl Budget {
    fn holds(&self, figure: f64) -> bool {
        match self.bound {
            Bound::AtMost => figure <= self.limit,
            Bound::Below => figure < self.limit,
            Bound::Above => figure > self.limit,
        }
    }
}

/// One line of the report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    name: &'static str,
    figure: f64,
    bound: Bound,
    limit: f64,
    unit: &'static str,
    verdict: &'static str,
    method: String,
    /// What the figure was made from, in the order it was seen; empty if it was counted once.
    samples: Vec<f64>,
}

/// Figures against the size of something, for a table and a plot.
#[derive(Debug, Serialize)]
pub struct Series {
    name: &'static str,
    of: &'static str,
    unit: &'static str,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// An empty one.
    pub fn new(name: &'static str, of: &'static str, unit: &'static str) -> Self {
        Self { name, of, unit, points: Vec::new() }
    }

    /// Adds a figure and prints it.
    pub fn add(&mut self, x: f64, y: f64) {
        println!(
            "figure {} {} {}: {} {}",
            self.name,
            figures::shown(x),
            self.of,
            figures::shown(y),
            self.unit
        );
        self.points.push((x, y));
    }

    /// The figure added last.
    pub fn last(&self) -> Option<f64> {
        self.points.last().map(|(_, y)| *y)
    }

    /// The figure at a size.
    pub fn at(&self, x: f64) -> Option<f64> {
        self.points.iter().find(|(known, _)| known.total_cmp(&x).is_eq()).map(|(_, y)| *y)
    }
}

#[derive(Debug, Serialize)]
struct Failure {
    measurement: &'static str,
    cause: String,
}

/// All figures of one run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    at: Timestamp,
    quick: bool,
    machine: Machine,
    budgets: Vec<Line>,
    series: Vec<Series>,
    failures: Vec<Failure>,
}

impl Report {
    /// An empty one.
    pub fn new(quick: bool) -> Result<Self> {
        let machine = Machine::look()?;
        Ok(Self {
            at: Timestamp::now(),
            quick,
            machine,
            budgets: Vec::new(),
            series: Vec::new(),
            failures: Vec::new(),
        })
    }

    /// Compares a figure with its budget and prints the line.
    pub fn add(&mut self, budget: Budget, figure: f64, method: impl Into<String>, samples: &[f64]) {
        let verdict = if budget.holds(figure) { "ok" } else { "over" };
        let Budget { name, bound, limit, unit } = budget;
        println!("budget {name} {} {} {unit} {verdict}", figures::shown(figure), figures::shown(limit));
        self.budgets.push(Line {
            name,
            figure,
            bound,
            limit,
            unit,
            verdict,
            method: method.into(),
            samples: samples.to_vec(),
        });
    }

    /// Keeps a series and shows it.
    pub fn plot(&mut self, series: Series) {
        println!("\n{}\n{}", series.name, plot::bars(&series.points, series.of, series.unit));
        self.series.push(series);
    }

    /// Notes a measurement that could not be made.
    pub fn fail(&mut self, measurement: &'static str, error: &anyhow::Error) {
        eprintln!("{measurement} could not be measured: {error:#}");
        self.failures.push(Failure { measurement, cause: format!("{error:#}") });
    }

    /// Whether everything was measured and nothing is over its budget.
    pub fn is_all_ok(&self) -> bool {
        self.failures.is_empty() && self.budgets.iter().all(|line| line.verdict == "ok")
    }

    /// Writes it to `target/bench.json`.
    pub fn write(&self) -> Result<()> {
        let path = path();
        let parent = path.parent().context("the report has no folder")?;
        std::fs::create_dir_all(parent)?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        eprintln!("method and machine are in {}", path.display());
        Ok(())
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench.json")
}
