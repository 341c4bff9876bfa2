//! The contract between the operator and the supervisor on a host: the files under the state folder, the job
//! order, the verbs' answers and the frames of an attached stream.
//!
//! Pure: no files, no clock. Both binaries compile this module, so a change here is a change of [`PROTOCOL`]
//! (verbs and frames) or of [`FORMAT`] (files). Files of every earlier format stay readable: environments sleep
//! for weeks, across upgrades and one roll-back.
//!
//! ```text
//! <state folder>/claim.json                      the pool that owns this host, its highest epoch   (Claim)
//! <state folder>/claim.lock                      flock: held while a verb reads and raises the epoch
//! <state folder>/bin/dormouse-supervisor-<hash>  installed supervisors
//! <state folder>/jobs-started.json               how many jobs were admitted, and the last of them
//! <state folder>/quiesced.json                   everything was written out for a stop             (Quiesced)
//! <state folder>/volumes/<slot>.json             the workspace volume of a slot, how far its mount is
//! <state folder>/environments/<id>/environment.json   owner project, slot, phase, context          (EnvironmentRecord)
//! <state folder>/environments/<id>/context/           saved cwd, exported variables, shell history
//! <state folder>/environments/<id>/jobs/<job id>/job.json   progress and result                    (JobRecord)
//! <state folder>/environments/<id>/jobs/<job id>/log        the job's log, byte for byte GitLab's
//! <state folder>/environments/<id>/jobs/<job id>/appends    journal of lines appended once
//! <state folder>/environments/<id>/jobs/<job id>/cancel     a wish to cancel: `graceful`, `abort`, or an Interruption
//! <state folder>/environments/<id>/jobs/<job id>/cache-urls newer addresses for caches, while the job runs (CacheUrls)
//! <state folder>/cache/<group>/<project>/<key>/cache.zip    caches of all slots, where no other folder is named
//! ```

pub mod cache;
pub mod closing;
pub mod export;
pub mod frame;
pub mod order;
pub mod place;
pub mod record;
pub mod verb;

/// Version of the verbs and frames; negotiated by `hello`.
pub const PROTOCOL: u32 = 1;

/// Version of the files on the host.
pub const FORMAT: u32 = 1;

/// The marker file inside a workspace that binds it to its environment; checked before a resume is announced.
pub const MARKER: &str = ".dormouse-environment";
