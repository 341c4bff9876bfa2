//! What the size of a workspace costs a resume: nothing.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::gitlab::JobSpec;
use super::super::stage::{Setting, Stage};
use super::Options;
use super::budget::{Bound, Budget, Report};
use super::{figures, load};

const SMALL: Budget = Budget { name: "resume-hot-small", bound: Bound::Below, limit: 300.0, unit: "ms" };
const LARGE: Budget = Budget { name: "resume-hot-large", bound: Bound::Below, limit: 300.0, unit: "ms" };
const RATIO: Budget =
    Budget { name: "resume-hot-large-to-small", bound: Bound::AtMost, limit: 1.1, unit: "times" };

/// Free space asked for beyond what the workspaces take.
const SPARE: u64 = 2 << 30;

/// Resumes of each size before the first that counts.
const WARM_UP: usize = 2;

/// A workspace of one project.
#[derive(Clone, Copy, Debug)]
struct Workspace {
    name: &'static str,
    folders: u64,
    files_in_each: u64,
    bytes_in_each: u64,
}

impl Workspace {
    const fn files(self) -> u64 {
        self.folders * self.files_in_each
    }

    const fn bytes(self) -> u64 {
        self.files() * self.bytes_in_each
    }

    /// A job that fills its workspace with files of real bytes and is suspended.
    fn job(self) -> JobSpec {
        let Self { name, folders, files_in_each, bytes_in_each } = self;
        let fill = format!(
            "for folder in $(seq {folders}); do mkdir -p tree/$folder; yes $folder | head -c {} | \
             split -a 4 -d -b {bytes_in_each} - tree/$folder/file; done",
            files_in_each * bytes_in_each
        );
        let look = "echo files=$(find tree -type f | wc -l) bytes=$(du -s --block-size=1 tree | cut -f1)";
        JobSpec::new(name).git_strategy_none().suspendable().suspend_on_success().script([
            "set +o pipefail",
            &fill,
            look,
        ])
    }

    /// Whether the job's own count says that it is what it should be, on the disk too.
    fn check(self, log: &str) -> Result<()> {
        let line = load::lines(log).rev().find(|line| line.starts_with("files="));
        let line = line.with_context(|| format!("the job did not count its files:\n{log}"))?;
        let number = |name: &str| -> Result<u64> {
            let (_, rest) = line.split_once(name).with_context(|| format!("no {name} in {line:?}"))?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Ok(digits.parse()?)
        };
        let (files, bytes) = (number("files=")?, number("bytes=")?);
        ensure!(files == self.files() && bytes >= self.bytes(), "{} is not as wanted: {line}", self.name);
        Ok(())
    }
}

/// Resumes a small and a large environment in turn.
pub async fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let small = Workspace { name: "small", folders: 2, files_in_each: 100, bytes_in_each: 52_500 };
    let large = match options.quick {
        true => Workspace { name: "large", folders: 4, files_in_each: 500, bytes_in_each: 26_250 },
        false => Workspace { name: "large", folders: 100, files_in_each: 1000, bytes_in_each: 53_700 },
    };
    let setting = Setting {
        pool: json!({
            "capacityPerInstance": 2, "isolation": "Shared", "concurrency": 2,
            "suspension": { "slotFloor": 0 },
        }),
        ..Setting::default()
    };
    let stage = Stage::start("resume", setting).await?;
    let needed = small.bytes() + large.bytes() + SPARE;
    let disk = rustix::fs::statvfs(stage.folder())?;
    let free = disk.f_bavail * disk.f_frsize;
    ensure!(free >= needed, "{} needs {needed} bytes and has {free}", stage.folder().display());

    let mut keys = Vec::new();
    for workspace in [small, large] {
        let id = stage.gitlab.enqueue(workspace.job());
        let view = stage.gitlab.wait_until_over(id, FILLED).await.with_context(|| stage.operator_log())?;
        workspace.check(&view.log_text())?;
        keys.push(view.environment_key.context("the environment was not suspended")?);
    }
    // Writing back gigabytes would be measured instead.
    stage.hosts.first().context("the stage has no host")?.exec_root("sync").await?;
    let (mut of_small, mut of_large) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + options.repeat(20, 5) {
        for (key, samples) in keys.iter().zip([&mut of_small, &mut of_large]) {
            stage.asleep(key).await?;
            let job =
                load::trivial("resume").environment_key(key.as_str()).suspendable().suspend_on_success();
            let view = load::run_alone(&stage, job).await?;
            if round >= WARM_UP {
                samples.push(load::first_byte(&view)?);
            }
        }
    }
    let (small_median, large_median) = (figures::median(&of_small)?, figures::median(&of_large)?);
    for (budget, workspace, samples) in [(SMALL, small, &of_small), (LARGE, large, &of_large)] {
        let method = format!(
            "resume from tier Hot, from GitLab handing the job out to the first byte of its script in GitLab's log; \
             workspace of {} bytes in {} files; median of {} resumes, sizes in turn, one at a time; largest {} ms",
            workspace.bytes(),
            workspace.files(),
            samples.len(),
            figures::shown(figures::largest(samples)),
        );
        report.add(budget, figures::median(samples)?, method, samples);
    }
    report.add(RATIO, large_median / small_median, "the two medians above", &[]);
    load::leave(stage).await
}

/// Time to fill a workspace: a slow disk writes 30 MB a second.
const FILLED: std::time::Duration = std::time::Duration::from_secs(300);
