//! The command line, read into one value. Pure.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::spool::order::Isolation;

/// What the supervisor is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// The state folder, when it is not the default one.
    pub state_dir: Option<PathBuf>,
    /// The verb.
    pub verb: Verb,
}

/// A verb with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Claims the host and says what it is.
    Hello {
        /// `namespace/name` of the pool.
        pool: String,
        /// Uid of the pool.
        pool_uid: String,
        /// The holder's epoch.
        epoch: u64,
        /// Whether the instance's metadata service is asked who this is.
        metadata: bool,
    },
    /// Gives the host back.
    Unclaim {
        /// Uid of the pool.
        pool_uid: String,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Lists environments.
    List {
        /// Uid of the pool.
        pool_uid: String,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Starts a job and streams it.
    Start {
        /// First byte of the log to send.
        from: u64,
    },
    /// Streams a job.
    Attach {
        /// The job.
        job: JobName,
        /// First byte of the log to send.
        from: u64,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Shows a job.
    Status {
        /// The job.
        job: JobName,
    },
    /// Appends text to a log once.
    Append {
        /// The job.
        job: JobName,
        /// Name of the append.
        once: String,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Ends a log.
    Seal {
        /// The job.
        job: JobName,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Stops a job.
    Cancel {
        /// The job.
        job: JobName,
        /// Whether `after_script` still runs.
        graceful: bool,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Stops a job because its instance is about to be taken away; what is to be said of it is on standard input.
    Interrupt {
        /// The job.
        job: JobName,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Gives a running job newer addresses for its caches, on standard input.
    Renew {
        /// The job.
        job: JobName,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Puts an environment to sleep.
    Suspend {
        /// The environment and its last job.
        job: JobName,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Removes an environment.
    Release {
        /// Environment id.
        environment: String,
        /// Whether a job that runs is ended and the workspace of any environment deleted.
        force: bool,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Shows load and room.
    Stat {
        /// Where workspaces live.
        builds_dir: Option<PathBuf>,
    },
    /// Mounts a workspace volume at its slot.
    VolumeMount(VolumeMount),
    /// Unmounts the workspace volume of a slot.
    VolumeUnmount {
        /// The slot.
        place: SlotPlace,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Tells all about an environment that sleeps.
    Export {
        /// Environment id.
        environment: String,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Makes an exported environment sleep here.
    Import {
        /// The slot.
        place: SlotPlace,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Forgets an environment.
    Leave {
        /// Environment id.
        environment: String,
        /// The holder's epoch.
        epoch: u64,
    },
    /// Has everything written out before a stop.
    Quiesce {
        /// The holder's epoch.
        epoch: u64,
    },
    /// Asks what the cloud has announced.
    Notices {
        /// The holder's epoch.
        epoch: u64,
    },
    /// Runs the job on standard input; started by `start`.
    Run,
    /// Becomes a program of a job; started by `run`.
    Launch(LaunchOptions),
}

/// A job of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobName {
    /// Environment id.
    pub environment: String,
    /// GitLab's job id.
    pub id: u64,
}

/// A slot and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlace {
    /// Slot index.
    pub slot: u32,
    /// Folder of all workspaces.
    pub builds_dir: PathBuf,
}

impl SlotPlace {
    /// `<builds>/<slot>`.
    pub fn folder(&self) -> PathBuf {
        self.builds_dir.join(self.slot.to_string())
    }
}

/// A workspace volume and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// The slot.
    pub place: SlotPlace,
    /// The cloud's id of the volume.
    pub volume: String,
    /// The device name it was attached by.
    pub device: Option<PathBuf>,
    /// Whose the files on it are to be.
    pub isolation: Isolation,
    /// The holder's epoch.
    pub epoch: u64,
}

/// How a program is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Files to write oneself into.
    pub doors: Vec<PathBuf>,
    /// User to become.
    pub ids: Option<Ids>,
    /// Folder to delete instead of starting a program.
    pub remove: Option<PathBuf>,
    /// Whether to do the errand on standard input instead of starting a program.
    pub errand: bool,
    /// The program and its arguments.
    pub program: Vec<OsString>,
}

/// User and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// Longest environment id; ids become file names.
const LONGEST_ID: usize = 64;

/// Whether a text can be an environment id.
pub fn is_environment_id(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Longest id of a volume.
const LONGEST_VOLUME_ID: usize = 64;

/// Whether a text can be a volume's id; it becomes part of paths below `/dev`.
pub fn is_volume_id(id: &str) -> bool {
    id.len() <= LONGEST_VOLUME_ID
        && id.strip_prefix("vol-").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        })
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// One sentence about the first argument that is wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, String> {
    let mut words = arguments.into_iter();
    let mut state_dir = None;
    let mut name = next_text(&mut words, "a verb")?;
    if name == "--state-dir" {
        state_dir = Some(PathBuf::from(words.next().ok_or("--state-dir needs a value")?));
        name = next_text(&mut words, "a verb")?;
    }
    let mut options = Options::read(words, &mut state_dir)?;
    let verb = verb(&name, &mut options)?;
    options.finish()?;
    Ok(Arguments { state_dir, verb })
}

fn verb(name: &str, options: &mut Options) -> Result<Verb, String> {
    Ok(match name {
        "hello" => Verb::Hello {
            pool: options.text("--pool")?,
            pool_uid: options.text("--pool-uid")?,
            epoch: options.number("--epoch")?,
            metadata: options.flag("--metadata"),
        },
        "unclaim" => {
            Verb::Unclaim { pool_uid: options.text("--pool-uid")?, epoch: options.number("--epoch")? }
        }
        "list" => Verb::List { pool_uid: options.text("--pool-uid")?, epoch: options.number("--epoch")? },
        "start" => Verb::Start { from: options.number_or("--from", 0)? },
        "attach" => Verb::Attach {
            job: options.job()?,
            from: options.number("--from")?,
            epoch: options.number("--epoch")?,
        },
        "status" => Verb::Status { job: options.job()? },
        "append" => Verb::Append {
            job: options.job()?,
            once: options.text("--once")?,
            epoch: options.number("--epoch")?,
        },
        "seal" => Verb::Seal { job: options.job()?, epoch: options.number("--epoch")? },
        "cancel" => Verb::Cancel {
            job: options.job()?,
            graceful: options.flag("--graceful"),
            epoch: options.number("--epoch")?,
        },
        "interrupt" => Verb::Interrupt { job: options.job()?, epoch: options.number("--epoch")? },
        "renew" => Verb::Renew { job: options.job()?, epoch: options.number("--epoch")? },
        "suspend" => Verb::Suspend { job: options.job()?, epoch: options.number("--epoch")? },
        "release" => Verb::Release {
            environment: options.environment()?,
            force: options.flag("--force"),
            epoch: options.number("--epoch")?,
        },
        "stat" => Verb::Stat { builds_dir: options.take("--builds-dir").map(PathBuf::from) },
        "volume-mount" => Verb::VolumeMount(options.volume_mount()?),
        "volume-unmount" => {
            Verb::VolumeUnmount { place: options.place()?, epoch: options.number("--epoch")? }
        }
        "export" => Verb::Export { environment: options.environment()?, epoch: options.number("--epoch")? },
        "import" => Verb::Import { place: options.place()?, epoch: options.number("--epoch")? },
        "leave" => Verb::Leave { environment: options.environment()?, epoch: options.number("--epoch")? },
        "quiesce" => Verb::Quiesce { epoch: options.number("--epoch")? },
        "notices" => Verb::Notices { epoch: options.number("--epoch")? },
        "run" => Verb::Run,
        "launch" => Verb::Launch(options.launch()?),
        other => return Err(format!("unknown verb {other}")),
    })
}

/// Options as they were given, taken out one by one; what is left over is an error.
struct Options {
    values: Vec<(String, OsString)>,
    flags: Vec<String>,
    program: Vec<OsString>,
}

impl Options {
    fn read(
        mut words: impl Iterator<Item = OsString>,
        state_dir: &mut Option<PathBuf>,
    ) -> Result<Self, String> {
        let mut options = Self { values: Vec::new(), flags: Vec::new(), program: Vec::new() };
        while let Some(word) = words.next() {
            let word = word.into_string().map_err(|word| format!("{} is no option", word.display()))?;
            match word.as_str() {
                "--" => {
                    options.program = words.collect();
                    break;
                }
                "--graceful" | "--force" | "--metadata" | "--errand" => options.flags.push(word),
                "--state-dir" => *state_dir = words.next().map(PathBuf::from),
                name if name.starts_with("--") => {
                    let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
                    options.values.push((word, value));
                }
                other => return Err(format!("{other} is no option")),
            }
        }
        Ok(options)
    }

    fn take(&mut self, name: &str) -> Option<OsString> {
        let index = self.values.iter().position(|(given, _)| given == name)?;
        Some(self.values.swap_remove(index).1)
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        let value = self.take(name).ok_or_else(|| format!("{name} is missing"))?;
        value.into_string().map_err(|_| format!("{name} is no text"))
    }

    fn number(&mut self, name: &str) -> Result<u64, String> {
        self.text(name)?.parse().map_err(|_| format!("{name} is no number"))
    }

    fn number_or(&mut self, name: &str, default: u64) -> Result<u64, String> {
        if self.values.iter().any(|(given, _)| given == name) { self.number(name) } else { Ok(default) }
    }

    fn flag(&mut self, name: &str) -> bool {
        let before = self.flags.len();
        self.flags.retain(|given| given != name);
        self.flags.len() < before
    }

    fn environment(&mut self) -> Result<String, String> {
        let id = self.text("--environment")?;
        if is_environment_id(&id) { Ok(id) } else { Err(format!("{id:?} is no environment id")) }
    }

    fn job(&mut self) -> Result<JobName, String> {
        Ok(JobName { environment: self.environment()?, id: self.number("--job")? })
    }

    fn place(&mut self) -> Result<SlotPlace, String> {
        let slot = self.text("--slot")?.parse().map_err(|_| "--slot is no number".to_owned())?;
        let builds_dir = PathBuf::from(self.take("--builds-dir").ok_or("--builds-dir is missing")?);
        if !builds_dir.is_absolute() {
            return Err(format!("--builds-dir {} is no absolute path", builds_dir.display()));
        }
        Ok(SlotPlace { slot, builds_dir })
    }

    fn volume_mount(&mut self) -> Result<VolumeMount, String> {
        let volume = self.text("--volume")?;
        if !is_volume_id(&volume) {
            return Err(format!("--volume {volume:?} is no id of a volume, such as vol-0123456789abcdef0"));
        }
        let device = self.take("--device").map(PathBuf::from);
        if let Some(device) = device.as_deref().filter(|device| !device.starts_with("/dev")) {
            return Err(format!("--device {} is not below /dev", device.display()));
        }
        Ok(VolumeMount {
            place: self.place()?,
            volume,
            device,
            isolation: self.isolation()?,
            epoch: self.number("--epoch")?,
        })
    }

    /// Without it, files belong to whoever runs jobs where slots are not kept apart.
    fn isolation(&mut self) -> Result<Isolation, String> {
        if !self.values.iter().any(|(given, _)| given == "--isolation") {
            return Ok(Isolation::Single);
        }
        let text = self.text("--isolation")?;
        let found = Isolation::ALL.into_iter().find(|isolation| isolation.word() == text);
        found.ok_or_else(|| format!("--isolation {text:?} is none of Single, Shared, PerSlotUser"))
    }

    fn launch(&mut self) -> Result<LaunchOptions, String> {
        let id = |text: String| text.parse::<u32>().map_err(|_| format!("{text} is no id"));
        let ids = if self.values.iter().any(|(given, _)| given == "--uid") {
            let groups = self.text("--groups")?;
            let groups =
                groups.split(',').filter(|group| !group.is_empty()).map(|group| id(group.to_owned()));
            Some(Ids {
                uid: id(self.text("--uid")?)?,
                gid: id(self.text("--gid")?)?,
                groups: groups.collect::<Result<_, _>>()?,
            })
        } else {
            None
        };
        Ok(LaunchOptions {
            doors: std::iter::from_fn(|| self.take("--door")).map(PathBuf::from).collect(),
            ids,
            remove: self.take("--remove").map(PathBuf::from),
            errand: self.flag("--errand"),
            program: std::mem::take(&mut self.program),
        })
    }

    fn finish(self) -> Result<(), String> {
        match (self.values.first(), self.flags.first(), self.program.first()) {
            (Some((name, _)), _, _) | (None, Some(name), _) => {
                Err(format!("{name} does not belong to this verb"))
            }
            (None, None, Some(_)) => Err("-- does not belong to this verb".to_owned()),
            (None, None, None) => Ok(()),
        }
    }
}

fn next_text(words: &mut impl Iterator<Item = OsString>, what: &str) -> Result<String, String> {
    let word = words.next().ok_or_else(|| format!("{what} is missing"))?;
    word.into_string().map_err(|word| format!("{} is not {what}", word.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, String> {
        parse(line.split_ascii_whitespace().map(OsString::from))
    }

    #[test]
    fn options_come_in_any_order_and_the_state_folder_anywhere() {
        let wanted =
            Verb::Cancel { job: JobName { environment: "abc".into(), id: 7 }, graceful: true, epoch: 3 };
        for line in [
            "--state-dir /s cancel --environment abc --job 7 --epoch 3 --graceful",
            "cancel --graceful --epoch 3 --job 7 --state-dir /s --environment abc",
        ] {
            let read = read(line).unwrap();
            assert_eq!((read.state_dir, read.verb), (Some(PathBuf::from("/s")), wanted.clone()));
        }
    }

    #[test]
    fn an_id_that_could_leave_the_state_folder_is_refused() {
        for id in ["../x", "a/b", "", "A", ".x"] {
            assert!(!is_environment_id(id), "{id}");
        }
        assert!(read("status --environment ../x --job 1").is_err());
    }

    #[test]
    fn a_volume_goes_to_a_slot_below_an_absolute_folder() {
        let line = "volume-mount --slot 2 --volume vol-0a1 --builds-dir /b --epoch 1 --device /dev/sdf";
        let Verb::VolumeMount(mount) = read(line).unwrap().verb else { panic!("no mount") };
        assert_eq!((mount.volume.as_str(), mount.isolation), ("vol-0a1", Isolation::Single));
        assert_eq!(mount.place.folder(), PathBuf::from("/b/2"));
        for (given, wrong) in [
            ("vol-0a1", "vol-../../x"),
            ("vol-0a1", "vol-"),
            ("/b ", "b "),
            ("/dev/sdf", "/etc/passwd"),
            ("--slot 2", "--slot -1"),
            ("--epoch 1", "--epoch 1 --isolation single"),
        ] {
            assert!(read(&line.replace(given, wrong)).is_err(), "{wrong}");
        }
        assert!(read(&format!("{line} --isolation PerSlotUser")).is_ok());
    }

    #[test]
    fn a_foreign_or_missing_option_is_named() {
        assert!(read("stat --epoch 1").unwrap_err().contains("--epoch"));
        assert!(read("seal --environment abc --job 1").unwrap_err().contains("--epoch"));
        assert!(read("seal --environment abc --job x --epoch 1").unwrap_err().contains("--job"));
    }

    #[test]
    fn launch_takes_a_program_with_its_own_options() {
        let Verb::Launch(options) =
            read("launch --uid 5 --gid 6 --groups 7,8 --door /d --door /e -- bash --norc").unwrap().verb
        else {
            panic!("no launch");
        };
        assert_eq!(options.ids, Some(Ids { uid: 5, gid: 6, groups: vec![7, 8] }));
        assert_eq!(options.program, ["bash", "--norc"]);
        assert_eq!(options.doors.len(), 2);
    }
}
