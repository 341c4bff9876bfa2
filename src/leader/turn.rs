//! Whether it is a replica's turn to take a pool. Pure.
//!
//! A pool is free when its Lease names nobody, is not there, or has stood unchanged for its whole time while this
//! replica was in touch with the API server: a silence it could not have heard through proves nothing. Of a free
//! pool the replica that is to hold it takes hold at once and each other one a turn later than the one before it, so
//! that a pool whose turn is missed is never left unheld.

use std::time::Duration;

use super::LEASE_DURATION;
use super::rank;

/// How much longer than the one before it a replica leaves a free pool alone.
pub const TURN: Duration = Duration::from_secs(2);

/// What a pool's Lease says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding<'a> {
    /// There is no Lease. The pool's status may still name who held it last.
    Absent {
        /// That replica.
        last: Option<&'a str>,
    },
    /// It was released.
    Free,
    /// A replica holds it.
    By(&'a str),
}

/// All that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// This replica.
    pub me: &'a str,
    /// The pool's uid.
    pub pool: &'a str,
    /// Replicas known to live.
    pub replicas: &'a [String],
    /// What the Lease says.
    pub holding: Holding<'a>,
    /// For how long it has been seen to say so.
    pub unchanged: Duration,
    /// For how long this replica has been in touch with the API server.
    pub in_touch: Duration,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Take the pool.
    Take,
    /// Look again after this time, unless something changes before.
    Wait(Duration),
}

/// Decides whether it is this replica's turn.
pub fn turn(view: &View<'_>) -> Turn {
    let replicas = view.replicas.iter().map(String::as_str);
    let (free_for, turns) = match view.holding {
        // The name is this process's alone: the answer to an earlier write was lost.
        Holding::By(holder) if holder == view.me => return Turn::Take,
        Holding::By(holder) => {
            let silent = view.unchanged.min(view.in_touch);
            let Some(free_for) = silent.checked_sub(LEASE_DURATION) else {
                return Turn::Wait(LEASE_DURATION - silent);
            };
            // Whoever let the Lease run out is not waited for.
            (free_for, rank::rank(replicas.filter(|replica| *replica != holder), view.pool, view.me))
        }
        Holding::Free => (view.unchanged, rank::rank(replicas, view.pool, view.me)),
        Holding::Absent { last } => {
            // Somebody may have deleted it: a living holder puts it back.
            let is_held = last.is_some_and(|last| last != view.me && view.replicas.iter().any(|r| r == last));
            (view.unchanged, rank::rank(replicas, view.pool, view.me) + usize::from(is_held))
        }
    };
    let due_after = TURN.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX));
    match due_after.checked_sub(free_for) {
        None | Some(Duration::ZERO) => Turn::Take,
        Some(left) => Turn::Wait(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn replicas() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).into()
    }

    fn ordered() -> Vec<String> {
        let replicas = replicas();
        rank::order(replicas.iter().map(String::as_str), "p").into_iter().map(str::to_owned).collect()
    }

    fn view<'a>(me: &'a str, replicas: &'a [String], holding: Holding<'a>) -> View<'a> {
        View { me, pool: "p", replicas, holding, unchanged: Duration::ZERO, in_touch: LONG }
    }

    #[test]
    fn the_preferred_replica_takes_a_free_pool_at_once_and_the_others_in_turn() {
        let (replicas, ordered) = (replicas(), ordered());
        for (place, me) in ordered.iter().enumerate() {
            let expected = match place {
                0 => Turn::Take,
                place => Turn::Wait(TURN * place as u32),
            };
            assert_eq!(turn(&view(me, &replicas, Holding::Free)), expected);
        }
        let late = View { unchanged: TURN * 2, ..view(&ordered[2], &replicas, Holding::Free) };
        assert_eq!(turn(&late), Turn::Take);
    }

    #[test]
    fn a_held_pool_is_left_alone_until_its_lease_has_run_out() {
        let (replicas, ordered) = (replicas(), ordered());
        let held = View { unchanged: LEASE_DURATION / 3, ..view(&ordered[0], &replicas, Holding::By("x")) };
        assert_eq!(turn(&held), Turn::Wait(LEASE_DURATION - LEASE_DURATION / 3));
        assert_eq!(turn(&View { unchanged: LEASE_DURATION, ..held }), Turn::Take);
    }

    #[test]
    fn silence_that_could_not_have_been_heard_through_does_not_count() {
        let (replicas, ordered) = (replicas(), ordered());
        let deaf = View {
            unchanged: LONG,
            in_touch: Duration::from_secs(5),
            ..view(&ordered[0], &replicas, Holding::By("x"))
        };
        assert_eq!(turn(&deaf), Turn::Wait(LEASE_DURATION - Duration::from_secs(5)));
    }

    #[test]
    fn whoever_let_a_lease_run_out_is_not_waited_for() {
        let (replicas, ordered) = (replicas(), ordered());
        let expired =
            View { unchanged: LEASE_DURATION, ..view(&ordered[1], &replicas, Holding::By(&ordered[0])) };
        assert_eq!(turn(&expired), Turn::Take);
    }

    #[test]
    fn a_living_holder_puts_a_deleted_lease_back_first() {
        let (replicas, ordered) = (replicas(), ordered());
        let last = Some(ordered[1].as_str());
        let deleted = view(&ordered[0], &replicas, Holding::Absent { last });
        assert_eq!(turn(&deleted), Turn::Wait(TURN));
        assert_eq!(turn(&view(&ordered[0], &replicas, Holding::Absent { last: Some("gone") })), Turn::Take);
        assert_eq!(turn(&view(&ordered[0], &replicas, Holding::Absent { last: None })), Turn::Take);
    }

    #[test]
    fn its_own_name_means_that_an_answer_was_lost() {
        let (replicas, ordered) = (replicas(), ordered());
        assert_eq!(turn(&view(&ordered[2], &replicas, Holding::By(&ordered[2]))), Turn::Take);
    }
}
