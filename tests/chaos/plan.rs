//! What goes wrong when, as a pure function of a seed.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::testbed::cloud::Fault;
use crate::testbed::control_plane::Part;
use crate::testbed::gitlab::{Action, Target};
use crate::testbed::hosts::HostSpec;
use crate::testbed::mishap::Mishap;
use crate::testbed::proxy::Line;

/// Hosts of the stage.
const HOSTS: usize = 4;
/// Replicas, where everything goes wrong.
const REPLICAS: usize = 2;

/// Where all chance of a run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// Of `$DORMOUSE_SEED`, or a new one.
    pub fn pick() -> Result<Self> {
        match std::env::var("DORMOUSE_SEED") {
            Ok(text) => Self::parse(&text).with_context(|| format!("DORMOUSE_SEED={text:?} is no seed")),
            Err(_) => Ok(Self(rand::random())),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(Self(u64::from_str_radix(text.trim_start_matches("0x"), 16)?))
    }

    /// The seed of a round of a longer run; the first has the run's own, so that any can be replayed by itself.
    pub fn of_round(self, round: u64) -> Self {
        Self(self.0.wrapping_add(round))
    }

    /// Chance for one purpose, which others do not disturb.
    pub fn dice(self, purpose: u64) -> StdRng {
        StdRng::seed_from_u64(self.0 ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {:#x}; replay with DORMOUSE_SEED={:#x}", self.0, self.0)
    }
}

/// Mishaps that last at the same time. They end in the order they begin.
#[derive(Clone, Debug)]
pub struct Blow {
    /// Before it.
    pub pause: Duration,
    /// What happens.
    pub mishaps: Vec<Mishap>,
    /// How long.
    pub lasts: Duration,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?} for {:?}: {:?}", self.pause, self.lasts, self.mishaps)
    }
}

/// Kills of the operator and nothing else: some in the middle of its take-over, some in its quiet days. One of eight
/// leaves a Lease that has to run out.
pub fn kills(seed: Seed, count: usize) -> Vec<Blow> {
    let mut dice = seed.dice(1);
    let runs_out = dice.random_range(0..8);
    let mut has_to_wait = false;
    (0..count)
        .map(|number| {
            let milliseconds = match dice.random_range(0..2) {
                _ if has_to_wait => 16_000..20_000,
                0 => 100..1500,
                _ => 1500..5000,
            };
            has_to_wait = number % 8 == runs_out;
            Blow {
                pause: between(&mut dice, milliseconds),
                mishaps: vec![Mishap::ReplicaKilled { replica: 0, gives_up: !has_to_wait }],
                lasts: between(&mut dice, 0..400),
            }
        })
        .collect()
}

/// So many kills of either replica, and between them, or around them, everything else that must not cost a job.
pub fn everything(seed: Seed, kills: usize) -> Vec<Blow> {
    let mut dice = seed.dice(2);
    let mut blows = Vec::new();
    for mut kill in self::kills(seed, kills) {
        let victim = dice.random_range(0..REPLICAS);
        for mishap in &mut kill.mishaps {
            if let Mishap::ReplicaKilled { replica, .. } = mishap {
                *replica = victim;
            }
        }
        if dice.random_range(0..10) == 0 {
            let seconds = dice.random_range(-3600..3600);
            kill.mishaps.insert(0, Mishap::ClockOff { replica: victim, seconds });
        }
        match dice.random_range(0..10) {
            0..2 => blows.extend([other(&mut dice), kill]),
            2..4 => {
                let mut both = other(&mut dice);
                both.mishaps.extend(kill.mishaps);
                blows.push(both);
            }
            _ => blows.push(kill),
        }
    }
    blows
}

/// So many kills of the operator, half of them while a cloud throttles, answers late, or its answers are lost.
pub fn in_a_cloud(seed: Seed, count: usize) -> Vec<Blow> {
    let mut dice = seed.dice(3);
    let mut blows = kills(seed, count);
    for blow in &mut blows {
        if dice.random_range(0..2) == 0 {
            blow.mishaps.insert(0, Mishap::Cloud(cloud_fault(&mut dice)));
            // It begins while the old holder lives, and lasts into the days of the next.
            blow.lasts += between(&mut dice, 0..1500);
        }
    }
    blows
}

fn cloud_fault(dice: &mut StdRng) -> Fault {
    let actions = [
        ("ec2", "CreateVolume"),
        ("ec2", "AttachVolume"),
        ("ec2", "DetachVolume"),
        ("ec2", "DeleteVolume"),
        ("ec2", "CreateSnapshot"),
        ("ec2", "DeleteSnapshot"),
        ("ec2", "StopInstances"),
        ("ec2", "StartInstances"),
        ("ec2", "TerminateInstances"),
        ("ec2", "CreateTags"),
        ("autoscaling", "SetDesiredCapacity"),
        ("autoscaling", "DetachInstances"),
        ("autoscaling", "TerminateInstanceInAutoScalingGroup"),
        ("*", "*"),
    ];
    let (service, action) = *actions.choose(dice).unwrap_or(&("*", "*"));
    let fault = match dice.random_range(0..3) {
        0 => Fault::error(service, action, 503, "RequestLimitExceeded"),
        1 => Fault::latency(service, action, between(dice, 100..2000)),
        _ => Fault::cut(service, action),
    };
    fault.times(dice.random_range(1..6))
}

/// A mishap that is not the operator's death.
fn other(dice: &mut StdRng) -> Blow {
    let host = dice.random_range(0..HOSTS);
    let slow =
        Line::Slow { bytes_per_second: dice.random_range(2_000..200_000), latency: between(dice, 1..200) };
    let line = *[Line::Refused, Line::Silent, slow].choose(dice).unwrap_or(&Line::Refused);
    let part = *[Part::ApiServer, Part::Etcd].choose(dice).unwrap_or(&Part::ApiServer);
    let refusal = |status: u16| Action::Refuse(status, Vec::new());
    let actions = [
        refusal(500),
        refusal(502),
        Action::Refuse(429, vec![("retry-after", "2".to_owned())]),
        Action::CutBeforeHandling,
        Action::CutAfterHandling,
        Action::HalfOpen,
        Action::Delay(between(dice, 50..3000)),
    ];
    let action = actions.choose(dice).cloned().unwrap_or(Action::HalfOpen);
    let targets = [Target::Trace, Target::FinalUpdate, Target::Update, Target::RequestJob];
    let target = targets.choose(dice).cloned().unwrap_or(Target::Trace);
    // Up to more than a Lease: the pool may be lost by it.
    let (mishap, milliseconds) = match dice.random_range(0..13) {
        0 => (Mishap::ApiServerPath(line), 500..20_000),
        1 => (Mishap::GitLabPath(line), 500..10_000),
        2 => (Mishap::PartKilled(part), 100..5_000),
        3 => (Mishap::PartFrozen(part), 500..20_000),
        4 => (Mishap::GitLabDown, 100..10_000),
        5 => (Mishap::GitLab(target, action), 500..5_000),
        6 => (Mishap::HostPath(host, line), 500..20_000),
        7 => (Mishap::HostReset(host), 0..100),
        8 => (Mishap::SessionsKilled(host), 0..100),
        9 => {
            let sessions = HostSpec { max_sessions: dice.random_range(1..4), ..HostSpec::default() };
            (Mishap::SshdRestarted(host, sessions), 500..10_000)
        }
        10 => (Mishap::HostFrozen(host), 500..10_000),
        11 => (Mishap::ReplicaTerminated(dice.random_range(0..REPLICAS)), 0..1000),
        _ => (Mishap::ReplicaFrozen(dice.random_range(0..REPLICAS)), 500..20_000),
    };
    Blow { pause: between(dice, 100..1500), mishaps: vec![mishap], lasts: between(dice, milliseconds) }
}

/// A time in milliseconds.
pub fn between(dice: &mut StdRng, milliseconds: Range<u64>) -> Duration {
    Duration::from_millis(dice.random_range(milliseconds))
}

#[test]
fn a_plan_is_its_seeds_and_no_others() {
    let plan = |seed| format!("{:?}", everything(Seed(seed), 50));
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
}

#[test]
fn a_plan_has_as_many_kills_as_wanted_and_each_kind_of_mishap_comes_in_time() {
    let kills_in = |blows: &[Blow]| {
        let mishaps = blows.iter().flat_map(|blow| &blow.mishaps);
        mishaps.filter(|mishap| matches!(mishap, Mishap::ReplicaKilled { .. })).count()
    };
    assert_eq!(kills_in(&kills(Seed(1), 8)), 8);
    assert_eq!(kills_in(&everything(Seed(1), 500)), 500);
    let mut kinds = std::collections::BTreeSet::new();
    for mishap in everything(Seed(1), 500).iter().flat_map(|blow| &blow.mishaps) {
        let text = format!("{mishap:?}");
        kinds.insert(text.split(['(', ' ']).next().unwrap_or_default().to_owned());
    }
    assert_eq!(kinds.len(), 15, "{kinds:?}");
}

#[test]
fn a_clouds_plan_is_its_seeds_with_each_kind_of_fault() {
    let plan = |seed| format!("{:?}", in_a_cloud(Seed(seed), 100));
    assert_eq!(plan(7), plan(7));
    for kind in ["Error", "Latency", "Cut"] {
        assert!(plan(7).contains(kind), "{kind}");
    }
    let kills = plan(7).matches("ReplicaKilled").count();
    assert_eq!(kills, 100);
}

#[test]
fn a_seed_is_read_as_it_is_printed() {
    let seed = Seed(0xfeed);
    let printed = seed.to_string();
    assert_eq!(Seed::parse(printed.rsplit('=').next().unwrap()).unwrap(), seed);
    assert!(Seed::parse("seed").is_err());
}
