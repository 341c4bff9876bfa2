//! What a job a user wrote for gitlab-runner must see, as jobs that are data: `conformance/README.md` tells the format.
//!
//! Every case runs on the real operator and a real host against the strict stand-in. An area is a test; it plays its
//! cases several at a time, says how each ended, and shows at the end what differed. `DORMOUSE_CASE=area/name` plays
//! one case, or those whose name holds the text, or one of several texts with blanks between.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Result, ensure};
use futures::future::join_all;

mod archives;
mod case;
mod expect;
mod faults;
mod own;
mod play;
mod stages;
mod surface;
mod uploads;

use case::Case;

/// Cases that there are at least, of an area and of all.
const LEAST_OF_AN_AREA: usize = 5;
const LEAST_OF_ALL: usize = 330;

/// A test for each area, and the list of them.
macro_rules! areas {
    ($($area:ident),+ $(,)?) => {
        const AREAS: &[&str] = &[$(stringify!($area)),+];
        $(
            #[test]
            fn $area() -> Result<()> {
                stages::RUNTIME.block_on(play_area(stringify!($area)))
            }
        )+
    };
}

areas![
    artifacts,
    cache,
    cancel,
    deaths,
    kinds,
    log,
    manager,
    reasons,
    registration,
    reports,
    sources,
    suspend,
    timeouts,
    tokens,
    variables,
];

/// Plays the cases of an area.
async fn play_area(area: &'static str) -> Result<()> {
    let mut cases = case::read_area(area)?;
    if let Ok(wanted) = std::env::var("DORMOUSE_CASE") {
        cases.retain(|case| wanted.split_whitespace().any(|part| case.name.contains(part)));
    }
    let ended = join_all(cases.iter().map(told)).await;
    let mut failures: Vec<String> = Vec::new();
    for (case, ended) in cases.iter().zip(ended) {
        if let Err(error) = ended {
            failures.push(format!("{}: {}\n{error:#}", case.name, case.about));
        }
    }
    failures.extend(stages::complaints());
    if let Err(error) = stages::area_is_over(AREAS.len()).await {
        failures.push(format!("a stage cannot be ended: {error:#}"));
    }
    ensure!(
        failures.is_empty(),
        "{} of {} cases of {area} failed:\n\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n\n")
    );
    Ok(())
}

/// Plays a case when it is its turn, and says how it ended, whatever becomes of the test's output.
async fn told(case: &Case) -> Result<()> {
    let began = Instant::now();
    let played = played(case).await;
    let verdict = if played.is_ok() { "ok" } else { "FAILED" };
    let line = format!("conformance {} ... {verdict} ({:.1} s)\n", case.name, began.elapsed().as_secs_f64());
    std::io::stderr().write_all(line.as_bytes())?;
    played
}

async fn played(case: &Case) -> Result<()> {
    if let Some(own) = &case.own {
        return own::play(case, own).await;
    }
    let playground = stages::stage_for(case).await?;
    let _own = playground.turns.acquire().await?;
    let _all = stages::TURNS.acquire().await?;
    play::play(&playground, case).await
}

#[test]
fn every_case_can_be_read_and_every_area_is_played() -> Result<()> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(case::folder())? {
        folders.push(entry?.file_name().to_string_lossy().into_owned());
    }
    folders.sort();
    let mut areas = AREAS.to_vec();
    areas.sort_unstable();
    ensure!(folders == areas, "the folders are {folders:?}, the tests {areas:?}");
    let mut all = 0;
    for area in AREAS {
        let cases = case::read_area(area)?.len();
        ensure!(cases >= LEAST_OF_AN_AREA, "{area} has {cases} cases, not {LEAST_OF_AN_AREA}");
        all += cases;
    }
    ensure!(all >= LEAST_OF_ALL, "there are {all} cases, not {LEAST_OF_ALL}");
    Ok(())
}
