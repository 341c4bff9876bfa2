//! What a pool and its sleeping environments cost, and what suspending saves. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::prices::{HOURS_PER_MONTH, Prices};
use crate::api::suspended_environment::Tier;
use crate::api::usage::UsageStatus;

/// An instance as far as it costs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine<'a> {
    /// Its type.
    pub machine_type: &'a str,
    /// Slots that share it.
    pub slots: u32,
    /// Whether it runs: a stopped one costs its root volume only.
    pub is_running: bool,
    /// Whether it has a public address while it runs.
    pub has_public_address: bool,
}

/// A volume as far as it costs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk<'a> {
    /// Its type.
    pub type_: &'a str,
    /// Its size.
    pub size_gib: u32,
}

/// A sleeping environment as far as it costs something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleeper<'a> {
    /// How it is kept.
    pub tier: Tier,
    /// The instance it is on, or would be on at tier Hot.
    pub machine: Machine<'a>,
    /// Its workspace volume, or the one it would have.
    pub volume: Option<Disk<'a>>,
}

/// What something costs or uses at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Instances that run.
    pub instances: f64,
    /// GiB of volumes, those of roots included.
    pub volume_gib: f64,
    /// GiB of snapshots.
    pub snapshot_gib: f64,
    /// US dollars an hour.
    pub dollars_per_hour: f64,
    /// US dollars an hour that tiers below Hot save.
    pub saved_per_hour: f64,
}

/// What has come together over time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Accrued {
    /// Hours of running instances.
    pub instance_hours: f64,
    /// Months of a GiB of volumes.
    pub volume_gib_months: f64,
    /// Months of a GiB of snapshots.
    pub snapshot_gib_months: f64,
    /// US dollars.
    pub dollars: f64,
    /// US dollars saved.
    pub saved: f64,
}

/// An hour of an instance, with its root volume.
pub fn machine_hour(prices: &Prices, machine: &Machine<'_>) -> f64 {
    let address = if machine.has_public_address { prices.address_hour() } else { 0.0 };
    let running = if machine.is_running { prices.instance_hour(machine.machine_type) + address } else { 0.0 };
    running + prices.root_hour()
}

/// What an hour of a sleeping environment costs at its tier. Hot and Stopped: its share of the instance, or of its root
/// volume, and its workspace volume. Detached: that volume. Snapshotted: its snapshot.
pub fn sleeper_hour(prices: &Prices, sleeper: &Sleeper<'_>) -> f64 {
    let share = |is_running| {
        let machine = Machine { is_running, ..sleeper.machine };
        machine_hour(prices, &machine) / f64::from(sleeper.machine.slots.max(1))
    };
    let volume = sleeper.volume.map_or(0.0, |disk| prices.volume_hour(disk.type_, disk.size_gib));
    match sleeper.tier {
        Tier::Hot => share(true) + volume,
        Tier::Stopped => share(false) + volume,
        Tier::Detached => volume,
        Tier::Snapshotted => sleeper.volume.map_or(0.0, |disk| prices.snapshot_hour(disk.size_gib)),
    }
}

/// What an hour of a sleeping environment would cost more at tier Hot.
pub fn saved_hour(prices: &Prices, sleeper: &Sleeper<'_>) -> f64 {
    let hot = Sleeper { tier: Tier::Hot, ..*sleeper };
    (sleeper_hour(prices, &hot) - sleeper_hour(prices, sleeper)).max(0.0)
}

/// What a sleeping environment uses and costs at its tier.
pub fn sleeper_rates(prices: &Prices, sleeper: &Sleeper<'_>) -> Rates {
    let share = 1.0 / f64::from(sleeper.machine.slots.max(1));
    let root = f64::from(prices.root_gib()) * share;
    let size = sleeper.volume.map_or(0.0, |disk| f64::from(disk.size_gib));
    let (instances, volume_gib, snapshot_gib) = match sleeper.tier {
        Tier::Hot => (share, root + size, 0.0),
        Tier::Stopped => (0.0, root + size, 0.0),
        Tier::Detached => (0.0, size, 0.0),
        Tier::Snapshotted => (0.0, 0.0, size),
    };
    Rates {
        instances,
        volume_gib,
        snapshot_gib,
        dollars_per_hour: sleeper_hour(prices, sleeper),
        saved_per_hour: saved_hour(prices, sleeper),
    }
}

/// What a pool uses and costs: its instances, its volumes, attached or not, the sizes of its snapshots, and what its
/// sleeping environments save.
pub fn rates(
    prices: &Prices,
    machines: &[Machine<'_>],
    volumes: &[Disk<'_>],
    snapshots: &[u32],
    sleepers: &[Sleeper<'_>],
) -> Rates {
    let roots = f64::from(prices.root_gib()) * machines.len() as f64;
    let hours = machines.iter().map(|machine| machine_hour(prices, machine));
    let hours = hours.chain(volumes.iter().map(|disk| prices.volume_hour(disk.type_, disk.size_gib)));
    let hours = hours.chain(snapshots.iter().map(|size| prices.snapshot_hour(*size)));
    Rates {
        instances: machines.iter().filter(|machine| machine.is_running).count() as f64,
        volume_gib: roots + volumes.iter().map(|disk| f64::from(disk.size_gib)).sum::<f64>(),
        snapshot_gib: snapshots.iter().map(|size| f64::from(*size)).sum(),
        dollars_per_hour: hours.sum(),
        saved_per_hour: sleepers.iter().map(|sleeper| saved_hour(prices, sleeper)).sum(),
    }
}

/// What has come together once rates have held for a while longer.
pub fn accrue(previous: &Accrued, rates: &Rates, held: Duration) -> Accrued {
    let hours = held.as_secs_f64() / 3_600.0;
    Accrued {
        instance_hours: previous.instance_hours + rates.instances * hours,
        volume_gib_months: previous.volume_gib_months + rates.volume_gib * hours / HOURS_PER_MONTH,
        snapshot_gib_months: previous.snapshot_gib_months + rates.snapshot_gib * hours / HOURS_PER_MONTH,
        dollars: previous.dollars + rates.dollars_per_hour * hours,
        saved: previous.saved + rates.saved_per_hour * hours,
    }
}

/// What has been used up to now, at the rates that have held since the last reckoning, or since the beginning.
pub fn reckon(before: Option<&UsageStatus>, since: Timestamp, rates: &Rates, now: Timestamp) -> UsageStatus {
    let read = |amount: &String| amount.parse().unwrap_or(0.0);
    let accrued = before.map_or_else(Accrued::default, |before| Accrued {
        instance_hours: read(&before.instance_hours),
        volume_gib_months: read(&before.volume_gib_months),
        snapshot_gib_months: read(&before.snapshot_gib_months),
        dollars: read(&before.dollars),
        saved: read(&before.saved_dollars),
    });
    let since = before.map_or(since, |before| before.until.0);
    // A clock that went back takes nothing away.
    let held = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let accrued = accrue(&accrued, rates, held);
    UsageStatus {
        until: Time(now.max(since)),
        instance_hours: amount(accrued.instance_hours),
        volume_gib_months: amount(accrued.volume_gib_months),
        snapshot_gib_months: amount(accrued.snapshot_gib_months),
        dollars: amount(accrued.dollars),
        saved_dollars: amount(accrued.saved),
    }
}

/// An amount that is added to again and again: six decimals, so that a minute of a snapshot is not rounded away.
fn amount(amount: f64) -> String {
    let amount = if amount.is_finite() { amount.max(0.0) + 0.0 } else { 0.0 };
    format!("{amount:.6}")
}

/// Dollars as status shows them: four decimals, for a snapshot costs a tenth of a cent an hour.
pub fn dollars(amount: f64) -> String {
    // Never a minus before nothing, and never a status that says NaN.
    // The sum of nothing is a negative zero, which `max` may keep and an addition does not.
    let amount = if amount.is_finite() { amount.max(0.0) + 0.0 } else { 0.0 };
    format!("{amount:.4}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn large(slots: u32) -> Machine<'static> {
        Machine { machine_type: "m6i.large", slots, is_running: true, has_public_address: false }
    }

    fn sleeper(tier: Tier, slots: u32) -> Sleeper<'static> {
        Sleeper { tier, machine: large(slots), volume: Some(Disk { type_: "gp3", size_gib: 20 }) }
    }

    #[test]
    fn each_tier_costs_what_it_keeps() {
        let prices = Prices::built_in().unwrap();
        let hour = |tier, slots| dollars(sleeper_hour(&prices, &sleeper(tier, slots)));
        assert_eq!(hour(Tier::Hot, 1), "0.1037", "instance 0.0960, root 0.0055, volume 0.0022");
        assert_eq!(hour(Tier::Hot, 2), "0.0529");
        assert_eq!(hour(Tier::Stopped, 1), "0.0077");
        assert_eq!(hour(Tier::Detached, 1), "0.0022");
        assert_eq!(hour(Tier::Snapshotted, 1), "0.0014");
        let saved = |tier| dollars(saved_hour(&prices, &sleeper(tier, 1)));
        assert_eq!((saved(Tier::Hot).as_str(), saved(Tier::Stopped).as_str()), ("0.0000", "0.0960"));
        assert_eq!(saved(Tier::Snapshotted), "0.1023");
    }

    #[test]
    fn a_pool_costs_its_instances_volumes_and_snapshots() {
        let prices = Prices::built_in().unwrap();
        let stopped = Machine { is_running: false, has_public_address: true, ..large(1) };
        let public = Machine { has_public_address: true, ..large(1) };
        let volume = Disk { type_: "gp3", size_gib: 20 };
        let rates = rates(&prices, &[large(2), public, stopped], &[volume], &[20, 40], &[]);
        assert_eq!((rates.instances, rates.volume_gib, rates.snapshot_gib), (2.0, 170.0, 60.0));
        assert_eq!(dollars(rates.dollars_per_hour), "0.2197");
    }

    #[test]
    fn an_environment_uses_its_share_of_what_its_tier_keeps() {
        let prices = Prices::built_in().unwrap();
        let uses = |tier| {
            let rates = sleeper_rates(&prices, &sleeper(tier, 2));
            (rates.instances, rates.volume_gib, rates.snapshot_gib)
        };
        let root = f64::from(prices.root_gib()) / 2.0;
        assert_eq!(uses(Tier::Hot), (0.5, root + 20.0, 0.0));
        assert_eq!(uses(Tier::Stopped), (0.0, root + 20.0, 0.0));
        assert_eq!(uses(Tier::Detached), (0.0, 20.0, 0.0));
        assert_eq!(uses(Tier::Snapshotted), (0.0, 0.0, 20.0));
    }

    #[test]
    fn hours_and_months_come_together() {
        let rates = Rates {
            instances: 2.0,
            volume_gib: 730.0,
            snapshot_gib: 73.0,
            dollars_per_hour: 0.5,
            saved_per_hour: 0.1,
        };
        let half = accrue(&Accrued::default(), &rates, Duration::from_secs(1_800));
        let accrued = accrue(&half, &rates, Duration::from_secs(1_800));
        assert_eq!((accrued.instance_hours, accrued.volume_gib_months), (2.0, 1.0));
        assert!((accrued.snapshot_gib_months - 0.1).abs() < 1e-12);
        assert_eq!((accrued.dollars, accrued.saved), (0.5, 0.1));
    }

    #[test]
    fn dollars_are_never_negative_nor_nonsense() {
        assert_eq!(dollars(-0.00001), "0.0000");
        assert_eq!(dollars(f64::NAN), "0.0000");
        assert_eq!(dollars(12.34567), "12.3457");
    }

    proptest! {
        #[test]
        fn a_colder_tier_never_costs_more(slots in 1u32..64, size_gib in 1u32..16_384, public in any::<bool>()) {
            let prices = Prices::built_in().unwrap();
            let machine = Machine { has_public_address: public, ..large(slots) };
            let hour = |tier| {
                let volume = Some(Disk { type_: "gp3", size_gib });
                sleeper_hour(&prices, &Sleeper { tier, machine, volume })
            };
            let hours = [Tier::Hot, Tier::Stopped, Tier::Detached, Tier::Snapshotted].map(hour);
            prop_assert!(hours.is_sorted_by(|a, b| a >= b), "{:?}", hours);
        }

        #[test]
        fn what_is_reckoned_up_at_any_times_is_what_was_used(pauses in proptest::collection::vec(60i64..100_000, 1..30)) {
            let prices = Prices::built_in().unwrap();
            let rates = sleeper_rates(&prices, &sleeper(Tier::Stopped, 2));
            let at = |second| Timestamp::from_second(second).unwrap();
            let (mut now, mut usage) = (1_000, None);
            for pause in &pauses {
                now += pause;
                usage = Some(reckon(usage.as_ref(), at(1_000), &rates, at(now)));
                // A clock that went back for a moment.
                usage = Some(reckon(usage.as_ref(), at(1_000), &rates, at(now - 60)));
            }
            let whole = reckon(None, at(1_000), &rates, at(now));
            let usage = usage.unwrap();
            prop_assert_eq!(&usage.until, &whole.until);
            let near = |a: &str, b: &str| (a.parse::<f64>().unwrap() - b.parse::<f64>().unwrap()).abs() < 1e-4;
            prop_assert!(near(&usage.dollars, &whole.dollars) && near(&usage.saved_dollars, &whole.saved_dollars));
            prop_assert!(near(&usage.volume_gib_months, &whole.volume_gib_months));
            prop_assert_eq!(&usage.instance_hours, "0.000000");
        }

        #[test]
        fn time_in_two_parts_is_the_same_time(first in 0u64..1_000_000, second in 0u64..1_000_000, instances in 0u32..99) {
            let rates = Rates { instances: f64::from(instances), dollars_per_hour: 0.3, ..Rates::default() };
            let parts = [first, second].into_iter().fold(Accrued::default(), |accrued, seconds| {
                accrue(&accrued, &rates, Duration::from_secs(seconds))
            });
            let whole = accrue(&Accrued::default(), &rates, Duration::from_secs(first + second));
            prop_assert!((parts.instance_hours - whole.instance_hours).abs() < 1e-6);
            prop_assert!((parts.dollars - whole.dollars).abs() < 1e-6);
        }
    }
}
