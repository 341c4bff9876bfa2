//! What a look at an environment in a cloud comes to: everything that [`tier`] decides by, gathered. Changes nothing.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::SuspendedEnvironment;
use crate::api::suspended_environment::{Phase, Tier};
use crate::clock;
use crate::environment::plan::HostWord;
use crate::environment::tier::{self, Host, Rules, View};
use crate::fleet::facts::Facts;
use crate::host::link::Link;
use crate::pool::Held;
use crate::pool::settings::Settings;
use crate::provider::Lifecycle;

/// What a look at an environment in a cloud comes to.
pub struct Look {
    facts: Arc<Facts>,
    settings: Arc<Settings>,
    mounted: Option<String>,
    link: Option<Arc<Link>>,
    has_record: Option<bool>,
    is_bound: bool,
    is_evicted: bool,
    is_leaving: bool,
    is_zone_dry: bool,
    may_stop: bool,
    is_fresh: bool,
    is_place_at_rest: bool,
    now: Timestamp,
}

impl Look {
    /// Looks; `None` where the pool has no cloud, or nothing is known of it yet.
    pub fn at(held: &Held, environment: &SuspendedEnvironment, is_bound: bool) -> Option<Self> {
        let facts = held.fleet.facts()?;
        let settings = held.settings()?;
        let name = environment.name_any();
        let place = environment.place();
        let link = place.and_then(|(instance, _)| held.hosts.link(instance));
        let mounted = place.zip(link.as_ref()).and_then(|((_, slot), link)| link.mounts().remove(&slot));
        let word = place.map_or(HostWord::NotAsked, |(instance, _)| {
            held.inventories.word(instance, &environment.spec.environment_id)
        });
        let has_record = match word {
            HostWord::NotAsked => None,
            HostWord::Asleep | HostWord::Restarted | HostWord::Active => Some(true),
            HostWord::Unknown => Some(false),
        };
        let now = clock::now();
        let is_evicted = environment.is_hot() && held.fleet.is_evicted(&name);
        Some(Self {
            mounted,
            has_record,
            is_bound,
            is_evicted,
            is_leaving: place.is_some_and(|(instance, _)| is_leaving(held, &facts, instance)),
            is_zone_dry: held.fleet.gets_none(&environment.spec.environment_id),
            may_stop: place.is_some_and(|(instance, _)| others_may_stop(held, &facts, instance, &name, now)),
            is_fresh: held.fleet.is_fresh(&name),
            is_place_at_rest: place.is_none_or(|(instance, slot)| held.fleet.is_at_rest(instance, slot)),
            link,
            facts,
            settings,
            now,
        })
    }

    /// As the planner takes it.
    pub fn view<'a>(&'a self, environment: &'a SuspendedEnvironment) -> View<'a> {
        let host = match &self.link {
            None => Host::Away,
            Some(_) => Host::Answers { has_record: self.has_record, mounted: self.mounted.as_deref() },
        };
        View {
            environment,
            rules: rules(&self.settings),
            facts: &self.facts,
            host,
            is_bound: self.is_bound,
            is_evicted: self.is_evicted,
            is_leaving: self.is_leaving,
            is_zone_dry: self.is_zone_dry,
            may_stop: self.may_stop,
            is_fresh: self.is_fresh,
            is_place_at_rest: self.is_place_at_rest,
            now: self.now,
        }
    }

    /// What the cloud shows.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What the pool is set to.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The link to its host, if that answers.
    pub fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }
}

fn rules(settings: &Settings) -> Rules<'_> {
    let spec = &settings.spec;
    Rules {
        demotion: spec.suspension.demotion.as_deref().unwrap_or_default(),
        has_volumes: spec.workspace_volume.is_some(),
    }
}

/// The tier an environment should have; `None` when it is well where it is.
pub fn target(
    held: &Held,
    environment: &SuspendedEnvironment,
    facts: &Facts,
    is_evicted: bool,
    now: Timestamp,
) -> Option<Tier> {
    let settings = held.settings()?;
    if !matches!(environment.phase(), Phase::Suspended | Phase::Demoting | Phase::Promoting) {
        return None;
    }
    let view = View {
        environment,
        rules: rules(&settings),
        facts,
        host: Host::Away,
        is_bound: environment.bound_lease().is_some(),
        is_evicted,
        is_leaving: environment.place().is_some_and(|(instance, _)| is_leaving(held, facts, instance)),
        is_zone_dry: false,
        may_stop: true,
        is_fresh: true,
        is_place_at_rest: true,
        now,
    };
    tier::target(&view).map(|target| target.tier)
}

/// Whether an instance is about to be taken away from under what sleeps on it.
fn is_leaving(held: &Held, facts: &Facts, instance: &str) -> bool {
    let lifecycle = facts.instances.get(instance).and_then(|known| known.member.as_ref());
    let is_chosen = lifecycle.is_some_and(|member| match member.lifecycle {
        Lifecycle::Terminating | Lifecycle::TerminatingWait => true,
        Lifecycle::Launching
        | Lifecycle::InService
        | Lifecycle::Retained
        | Lifecycle::Detaching
        | Lifecycle::Standby
        | Lifecycle::Warmed
        | Lifecycle::WarmedTerminatingWait
        | Lifecycle::Gone => false,
    });
    is_chosen || held.fleet.is_announced_to_go(instance)
}

/// Whether everything else on an instance may be stopped with it.
fn others_may_stop(held: &Held, facts: &Facts, instance: &str, name: &str, now: Timestamp) -> bool {
    let uses = held.book(|book| book.occupancy.uses_on(instance));
    uses.values().all(|slot| {
        let others = slot.environments.iter().filter(|known| *known != name);
        let may = |known: &String| {
            held.environment(known).is_some_and(|known| {
                let is_claimed = known.status.as_ref().and_then(|status| status.moving.as_ref());
                is_claimed.is_some_and(|moving| moving.to == Tier::Stopped)
                    || known.tier() == Tier::Stopped && known.bound_lease().is_none()
                    || target(held, &known, facts, false, now) == Some(Tier::Stopped)
            })
        };
        !slot.has_job && !slot.is_in_doubt && others.into_iter().all(may)
    })
}
