//! Open jobs as people and dashboards that know gitlab-runner look at them. Pure.

use std::time::{Duration, Instant};

use crate::api::job_lease::LeasePhase;

/// Where a job is, in the words of gitlab-runner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobPlace {
    /// `pending`, `running` or `finished`.
    pub state: &'static str,
    /// The stage of the job.
    pub stage: String,
    /// What the runner does for it.
    pub executor_stage: &'static str,
}

/// Where a job is by its lease, and by the stage its host has told last.
pub fn place(phase: LeasePhase, told: Option<&str>) -> JobPlace {
    let (state, stage, executor_stage) = match phase {
        LeasePhase::Accepted => ("pending", "prepare_executor", "created"),
        LeasePhase::Assigned => ("pending", "prepare_executor", "prepare"),
        LeasePhase::Running => ("running", told.unwrap_or("prepare_script"), "run"),
        LeasePhase::Finalizing => ("finished", told.unwrap_or_default(), "finish"),
        LeasePhase::Reported | LeasePhase::Failed => ("finished", told.unwrap_or_default(), "cleanup"),
    };
    JobPlace { state, stage: stage.to_owned(), executor_stage }
}

/// The stages of a job as its host tells them, to take their time.
#[derive(Debug, Default)]
pub struct StageWatch {
    /// What was told last, and when it was news; that of the first word is unknown.
    told: Option<(Option<String>, Option<Instant>)>,
}

impl StageWatch {
    /// The host says where the job is: the stage that has ended by that and how long it took, if both its ends were told
    /// to the same watch.
    pub fn told(&mut self, stage: Option<&str>, now: Instant) -> Option<(String, Duration)> {
        let Some((known, since)) = &mut self.told else {
            self.told = Some((stage.map(str::to_owned), None));
            return None;
        };
        if known.as_deref() == stage {
            return None;
        }
        let before = std::mem::replace(known, stage.map(str::to_owned));
        let began = since.replace(now);
        Some((before?, now.saturating_duration_since(began?)))
    }
}

/// A job as one line of the list of jobs.
pub fn line(gitlab: &str, project: &str, job: u64, place: &JobPlace, lasts: Duration) -> String {
    let JobPlace { state, stage, executor_stage } = place;
    let gitlab = gitlab.trim_end_matches('/');
    let seconds = lasts.as_secs();
    let duration = match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    };
    format!(
        "url={gitlab}/{project}/-/jobs/{job} state={state} stage={stage} executor_stage={executor_stage} \
         duration={duration}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_scripts_read_of_gitlab_runners() {
        let place = place(LeasePhase::Running, Some("step_script"));
        assert_eq!(
            line("https://gitlab.example.com/", "group/project", 42, &place, Duration::from_secs(3725)),
            "url=https://gitlab.example.com/group/project/-/jobs/42 state=running stage=step_script \
             executor_stage=run duration=1h2m5s"
        );
    }

    #[test]
    fn a_stage_takes_from_its_first_word_to_that_of_the_next_one() {
        let began = Instant::now();
        let at = |second| began + Duration::from_secs(second);
        let ended = |stage: &str, seconds| Some((stage.to_owned(), Duration::from_secs(seconds)));
        let mut fresh = StageWatch::default();
        assert_eq!(fresh.told(None, at(0)), None);
        assert_eq!(fresh.told(Some("prepare_script"), at(1)), None);
        assert_eq!(fresh.told(Some("prepare_script"), at(2)), None);
        assert_eq!(fresh.told(Some("step_script"), at(4)), ended("prepare_script", 3));
        assert_eq!(fresh.told(None, at(10)), ended("step_script", 6));
        assert_eq!(fresh.told(None, at(11)), None);
        // When a stage began that somebody finds going on, nobody can say.
        let mut late = StageWatch::default();
        assert_eq!(late.told(Some("step_script"), at(0)), None);
        assert_eq!(late.told(Some("after_script"), at(5)), None);
        assert_eq!(late.told(None, at(6)), ended("after_script", 1));
    }

    #[test]
    fn a_job_that_no_host_has_spoken_of_is_somewhere_all_the_same() {
        assert_eq!(place(LeasePhase::Accepted, None).state, "pending");
        assert_eq!(place(LeasePhase::Running, None).stage, "prepare_script");
        assert_eq!(place(LeasePhase::Finalizing, None).executor_stage, "finish");
    }
}
