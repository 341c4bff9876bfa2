//! The pool's own runner: made, changed and given new tokens as `gitlab::registration` decides, and removed with the pool.
//!
//! The numbers of the writes stand there. An access token is looked for each time something needs it, and its absence is an
//! error only then. Tokens never appear in errors, Events, status or logs.

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use super::Held;
use super::runner_secret::{self, Known, SecretError};
use super::settings::{self, SettingsError};
use crate::api::RunnerPool;
use crate::api::key::system_id;
use crate::api::registration::{OnDeletion, RegistrationSpec, RunnerStatus};
use crate::clock;
use crate::deed::Point;
use crate::gitlab::client::{Client as GitLab, IssuedToken, RemovalAnswer, ResetAnswer, UrlError};
use crate::gitlab::registration::{self as plan, Kept, Step, Wanted};
use crate::gitlab::rest::{Rest, RestError, Shown};
use crate::gitlab::transport::{Transport, Trust};
use crate::telemetry::RunnerLabels;

/// How often a runner is made anew by this process while the access token may not look for what earlier tries left.
const BLIND_TRIES: u32 = 3;

/// Steps of one look; more would be a step that does not change what it should.
const STEPS: usize = 8;

/// Why the pool has no runner that it can use, or not the one it should have.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The Secret cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The access token, which is needed now, cannot be had.
    #[error("the pool's runner is not made yet, and {0}")]
    AccessToken(Box<SettingsError>),
    /// GitLab did not do what it should.
    #[error("spec.gitlab.registration: {0}")]
    GitLab(#[from] RestError),
    /// The runner is of another GitLab.
    #[error(
        "Secret {secret:?} keeps the token of a runner of {url}, which is not spec.gitlab.url; delete the Secret to \
         register at the new one"
    )]
    OtherServer {
        /// The Secret.
        secret: String,
        /// The other one's address.
        url: String,
    },
    /// Runners may be left at GitLab, and the access token may not look.
    #[error(
        "GitLab's answer to the creation of a runner was lost several times, and the access token may not list runners: \
         remove those without a contact whose note is {note:?}, then give the token the scope manage_runner or delete \
         Secret {secret:?}"
    )]
    Blind {
        /// Their note.
        note: String,
        /// The Secret.
        secret: String,
    },
    /// The old token is dead and the new one did not arrive.
    #[error(
        "the token of runner {runner} is dead: it expired, or GitLab replaced it and its answer was lost; put an access token into the Secret of \
         spec.gitlab.registration.accessTokenSecretRef, with scope manage_runner or api to keep the runner, with \
         create_runner to make another one"
    )]
    TokenLost {
        /// The runner's id.
        runner: u64,
    },
    /// Whether the token was replaced is not known yet.
    #[error("the runner's token is being replaced: {0}")]
    RotationUnanswered(String),
    /// The pool is being deleted: no runner is made for it.
    #[error("the pool is being deleted, and has no runner")]
    Deleting,
    /// Its own steps did not come to an end.
    #[error("the registration did not come to an end; it is tried again")]
    Unsettled,
    /// The address is not one.
    #[error(transparent)]
    Url(#[from] UrlError),
}

impl RegistrationError {
    /// A stable reason for conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Secret(SecretError::Taken { .. }) => "SecretTaken",
            Self::Secret(SecretError::Kubernetes { .. }) | Self::Unsettled => "ReadFailed",
            Self::AccessToken(error) => match error.reason() {
                "SecretMissing" => "AccessTokenMissing",
                other => other,
            },
            Self::GitLab(RestError::Denied { .. } | RestError::NotFound { .. }) => "AccessTokenRefused",
            Self::GitLab(RestError::Refused { .. }) => "RegistrationRefused",
            Self::GitLab(RestError::Retry(_)) => "GitLabUnreachable",
            Self::OtherServer { .. } => "RegisteredElsewhere",
            Self::Blind { .. } => "RunnersLeftBehind",
            Self::TokenLost { .. } => "TokenLost",
            Self::RotationUnanswered(_) => "RotationUnanswered",
            Self::Deleting => "Deleting",
            Self::Url(_) => "GitLabSettingsInvalid",
        }
    }

    /// Whether nothing is known to be wrong: it could not be asked.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Secret(SecretError::Kubernetes { .. })
            | Self::GitLab(RestError::Retry(_))
            | Self::RotationUnanswered(_)
            | Self::Unsettled => true,
            Self::AccessToken(error) => error.is_passing(),
            Self::Secret(SecretError::Taken { .. })
            | Self::GitLab(
                RestError::Denied { .. } | RestError::NotFound { .. } | RestError::Refused { .. },
            )
            | Self::OtherServer { .. }
            | Self::Blind { .. }
            | Self::TokenLost { .. }
            | Self::Deleting
            | Self::Url(_) => false,
        }
    }
}

/// What this process knows of the pool's runner.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    /// What GitLab says of it.
    pub shown: Option<RunnerStatus>,
    /// Why the spec's last change is not applied.
    pub pending: Option<String>,
    /// When something is to be done about its token.
    pub due_at: Option<Timestamp>,
    /// What its removal waits for.
    pub removal: Option<String>,
    blind_tries: u32,
}

/// The token of the pool's own runner, which is made, changed or given a new token first where that is due.
///
/// # Errors
/// When there is no token to use.
pub async fn token(
    held: &Held,
    pool: &RunnerPool,
    spec: &RegistrationSpec,
    transport: &Transport,
) -> Result<SecretString, RegistrationError> {
    let work = Work { held, pool, spec, transport, wanted: Wanted::of(spec, &held.namespace, &held.name) };
    let mut known = runner_secret::read(held).await?;
    let rest = work.rest().await;
    // What this call intends itself has left nothing at GitLab.
    let mut is_first_try = false;
    for _ in 0..STEPS {
        let kept = known.as_ref().map(|known| &known.kept);
        if let Some(kept) = kept.filter(|kept| kept.url != pool.spec.gitlab.url) {
            let (secret, url) = (runner_secret::name(&held.name), kept.url.clone());
            return Err(RegistrationError::OtherServer { secret, url });
        }
        let step = plan::next(kept, &work.wanted, rest.is_ok(), clock::now());
        known = match (step, known) {
            (Step::Intend, _) | (_, None) => {
                work.may_register()?;
                is_first_try = true;
                Some(work.intend().await?)
            }
            (Step::Create, Some(known)) => {
                work.may_register()?;
                let rest = match rest {
                    Ok(ref rest) => rest,
                    Err(error) => return Err(RegistrationError::AccessToken(Box::new(error))),
                };
                Some(work.create(rest, &known, is_first_try).await?)
            }
            (Step::Rotate, Some(known)) => Some(work.rotate(rest.as_ref().ok(), known).await?),
            (Step::Change, Some(known)) => match work.change(rest.as_ref().ok(), known).await? {
                Changed::Applied(known) => Some(known),
                Changed::NotNow(known) => return Ok(work.settle(rest.as_ref().ok(), &known).await),
            },
            (Step::Use, Some(known)) => {
                if plan::is_changed(&known.kept, &work.wanted) {
                    let why = "the access token is needed for it, and its Secret is not there";
                    held.note_runner(|notes| notes.pending = Some(why.to_owned()));
                } else {
                    held.note_runner(|notes| notes.pending = None);
                }
                return Ok(work.settle(rest.as_ref().ok(), &known).await);
            }
        };
    }
    Err(RegistrationError::Unsettled)
}

enum Changed {
    Applied(Known),
    NotNow(Known),
}

struct Work<'a> {
    held: &'a Held,
    pool: &'a RunnerPool,
    spec: &'a RegistrationSpec,
    transport: &'a Transport,
    wanted: Wanted,
}

impl Work<'_> {
    async fn rest(&self) -> Result<Rest, SettingsError> {
        let (field, reference) =
            ("spec.gitlab.registration.accessTokenSecretRef", &self.spec.access_token_secret_ref);
        let token =
            settings::secret(&self.held.shared.client, &self.held.namespace, field, reference).await?;
        let token = SecretString::from(token.expose_secret().trim().to_owned());
        let (url, metrics) = (&self.pool.spec.gitlab.url, self.held.shared.metrics.clone());
        Ok(Rest::new(url, token, self.labels(), self.transport.clone(), metrics)?)
    }

    fn labels(&self) -> RunnerLabels {
        labels_before_a_token(self.held, self.pool)
    }

    fn may_register(&self) -> Result<(), RegistrationError> {
        match self.pool.metadata.deletion_timestamp {
            Some(_) => Err(RegistrationError::Deleting),
            None => Ok(()),
        }
    }

    fn fresh(&self) -> Kept {
        Kept {
            url: self.pool.spec.gitlab.url.clone(),
            marker: format!("{:032x}", rand::random::<u128>()),
            ..Kept::default()
        }
    }

    /// (1)
    async fn intend(&self) -> Result<Known, RegistrationError> {
        let deed = self.held.deed(Point::RegistrationIntended).await;
        Ok(runner_secret::intend(self.held, deed, &self.fresh()).await?)
    }

    async fn create(
        &self,
        rest: &Rest,
        known: &Known,
        is_first_try: bool,
    ) -> Result<Known, RegistrationError> {
        if !is_first_try {
            self.remove_unused(rest, &known.kept).await?;
        }
        // (2)
        let deed = self.held.deed(Point::RunnerCreated).await;
        let creation = rest.create(&self.wanted, &known.kept.marker);
        let created = deed.make(creation, |answer| answer).await?;
        let kept = Kept {
            runner_id: Some(created.id),
            applied: Some(self.wanted.digest()),
            ..with_token(known.kept.clone(), created.issued)
        };
        // (3)
        let deed = self.held.deed(Point::RunnerTokenSaved).await;
        let saved = runner_secret::save(self.held, deed, known, &kept).await?;
        let secret = runner_secret::name(&self.held.name);
        let note = format!("made runner {} at GitLab; its token is kept in Secret {secret}", created.id);
        tracing::info!(pool = self.held.name, runner = created.id, "the pool's runner was made");
        self.held.shared.events.normal(self.pool, "RunnerRegistered", "Register", note).await;
        Ok(saved)
    }

    /// Removes what an earlier try may have left at GitLab.
    async fn remove_unused(&self, rest: &Rest, kept: &Kept) -> Result<(), RegistrationError> {
        match rest.unused(&self.wanted, &kept.marker).await {
            Ok(unused) => {
                for id in unused {
                    self.remove_by_id(rest, id).await?;
                }
                Ok(())
            }
            Err(RestError::Denied { .. } | RestError::NotFound { .. }) => {
                let note = plan::note(&kept.marker);
                let tries = self.held.note_runner(|notes| {
                    notes.blind_tries += 1;
                    notes.blind_tries
                });
                if tries > BLIND_TRIES {
                    let secret = runner_secret::name(&self.held.name);
                    return Err(RegistrationError::Blind { note, secret });
                }
                let words = format!(
                    "an earlier try may have left a runner at GitLab that nobody uses; the access token may not look. \
                     Its maintenance note is {note:?}"
                );
                self.held.shared.events.warning(self.pool, "RunnerLeftBehind", "Register", words).await;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn remove_by_id(&self, rest: &Rest, id: u64) -> Result<(), RestError> {
        let deed = self.held.deed(Point::UnusedRunnerRemoved).await;
        deed.make(rest.remove(id), |answer| answer).await?;
        tracing::info!(pool = self.held.name, runner = id, "removed a runner that nobody has the token of");
        Ok(())
    }

    async fn rotate(&self, rest: Option<&Rest>, known: Known) -> Result<Known, RegistrationError> {
        // Until the new token is saved nobody is asked for jobs: the old one may be dead by then.
        self.held.set_token_in_doubt(true);
        let known = if known.kept.is_rotating {
            known
        } else {
            let kept = Kept { is_rotating: true, ..known.kept.clone() };
            // (1)
            let deed = self.held.deed(Point::RotationIntended).await;
            runner_secret::save(self.held, deed, &known, &kept).await?
        };
        let old = known.kept.token.clone().unwrap_or_default();
        let (url, metrics) = (&self.pool.spec.gitlab.url, self.held.shared.metrics.clone());
        let gitlab = GitLab::new(url, old, self.labels(), self.transport.clone(), metrics)?;
        // (2)
        let deed = self.held.deed(Point::TokenReset).await;
        let issued = match deed.make(gitlab.reset_token(), |answer| answer).await {
            ResetAnswer::Issued(issued) => issued,
            ResetAnswer::Retry { cause } => return Err(RegistrationError::RotationUnanswered(cause)),
            ResetAnswer::Invalid => match self.recover(rest, &known).await? {
                Recovered::Token(issued) => issued,
                Recovered::Anew(known) => return Ok(known),
            },
        };
        let kept = with_token(known.kept.clone(), issued);
        // (3)
        let deed = self.held.deed(Point::NewTokenSaved).await;
        let saved = runner_secret::save(self.held, deed, &known, &kept).await?;
        let until =
            kept.expires_at.map_or("it does not expire".to_owned(), |at| format!("it expires at {at}"));
        tracing::info!(pool = self.held.name, until, "the runner's token was replaced");
        let note = format!("the runner's token was replaced; {until}");
        self.held.shared.events.normal(self.pool, "RunnerTokenRotated", "Rotate", note).await;
        Ok(saved)
    }

    /// The new token was issued and did not arrive.
    async fn recover(&self, rest: Option<&Rest>, known: &Known) -> Result<Recovered, RegistrationError> {
        let runner = known.kept.runner_id.unwrap_or_default();
        let Some(rest) = rest else { return Err(RegistrationError::TokenLost { runner }) };
        let deed = self.held.deed(Point::TokenResetById).await;
        match deed.make(rest.reset_token(runner), |answer| answer).await {
            Ok(issued) => return Ok(Recovered::Token(issued)),
            Err(RestError::Retry(cause)) => return Err(RegistrationError::RotationUnanswered(cause)),
            // It may only create, or the runner is gone.
            Err(RestError::Denied { .. } | RestError::NotFound { .. } | RestError::Refused { .. }) => {}
        }
        self.may_register()?;
        let note = format!(
            "the token of runner {runner} is lost and the access token may not reset it: another runner is made. Keys of \
             sleeping environments name the old one, and jobs cannot resume them; remove it at GitLab"
        );
        self.held.shared.events.warning(self.pool, "RunnerReplaced", "Rotate", note).await;
        let deed = self.held.deed(Point::RegistrationBegunAnew).await;
        Ok(Recovered::Anew(runner_secret::save(self.held, deed, known, &self.fresh()).await?))
    }

    /// Applies a change of the spec.
    async fn change(&self, rest: Option<&Rest>, known: Known) -> Result<Changed, RegistrationError> {
        let (Some(rest), Some(id)) = (rest, known.kept.runner_id) else { return Ok(Changed::NotNow(known)) };
        // (4)
        let deed = self.held.deed(Point::RunnerChanged).await;
        if let Err(error) = deed.make(rest.change(id, &self.wanted), |answer| answer).await {
            // The runner works as it was: that it could not be changed is said, and tried again.
            let why = error.to_string();
            let is_news =
                self.held.note_runner(|notes| notes.pending.replace(why.clone()).as_ref() != Some(&why));
            if is_news {
                let note = format!("the runner at GitLab was not changed: {why}");
                self.held.shared.events.warning(self.pool, "RunnerNotChanged", "Change", note).await;
            }
            return Ok(Changed::NotNow(known));
        }
        let kept = Kept { applied: Some(self.wanted.digest()), ..known.kept.clone() };
        // (5)
        let deed = self.held.deed(Point::RunnerChangeNoted).await;
        let saved = runner_secret::save(self.held, deed, &known, &kept).await?;
        let note = format!("runner {id} at GitLab is as the spec says now");
        self.held.shared.events.normal(self.pool, "RunnerChanged", "Change", note).await;
        Ok(Changed::Applied(saved))
    }

    /// The token to use, with what GitLab shows of its runner.
    async fn settle(&self, rest: Option<&Rest>, known: &Known) -> SecretString {
        let kept = &known.kept;
        let shown = match (rest, kept.runner_id) {
            // What it said last stays while it may not be asked.
            (Some(rest), Some(id)) => rest.show(id).await.ok(),
            _ => None,
        };
        self.held.note_runner(|notes| {
            let status = notes.shown.get_or_insert_with(|| {
                self.pool.status.as_ref().and_then(|status| status.runner.clone()).unwrap_or_default()
            });
            if let Some(Shown { tag_list, paused, .. }) = shown {
                status.tags = tag_list;
                status.paused = paused;
            }
            status.token_expires_at = kept.expires_at.map(|at| at.to_string());
            notes.due_at = plan::rotate_at(kept);
            notes.blind_tries = 0;
        });
        kept.token.clone().unwrap_or_default()
    }
}

enum Recovered {
    Token(IssuedToken),
    Anew(Known),
}

fn with_token(kept: Kept, issued: IssuedToken) -> Kept {
    Kept {
        token: Some(issued.token),
        obtained_at: Some(clock::now()),
        expires_at: issued.expires_at,
        is_rotating: false,
        ..kept
    }
}

fn labels_before_a_token(held: &Held, pool: &RunnerPool) -> RunnerLabels {
    let system_id = system_id(pool.spec.system_id_seed.as_deref().unwrap_or(&held.uid));
    RunnerLabels { runner: String::new(), runner_name: held.name.clone(), system_id }
}

/// Does at GitLab what the deletion of the pool asks for: (1) the runner or its manager is removed, (2) the Secret of a
/// runner that was removed goes. Each may be done again.
///
/// # Errors
/// What it waits for, in a sentence.
pub async fn withdraw(held: &Held, pool: &RunnerPool) -> Result<(), String> {
    let gitlab = &pool.spec.gitlab;
    let what = gitlab.on_deletion();
    if what == OnDeletion::Keep {
        return Ok(());
    }
    let transport = match held.transport(gitlab_trust(held, pool).await) {
        Ok(transport) => transport,
        // Without its certificates GitLab cannot be reached any more: a person has taken them away.
        Err(error) => return Err(format!("{error}; {WAY_OUT}")),
    };
    let words = |error: &dyn std::fmt::Display| format!("{error}; {WAY_OUT}");
    let known = match &gitlab.registration {
        Some(_) => runner_secret::read(held).await.map_err(|error| words(&error))?,
        None => None,
    };
    let token = match (&gitlab.token_secret_ref, &known) {
        (Some(reference), _) => {
            let field = "spec.gitlab.tokenSecretRef";
            match settings::secret(&held.shared.client, &held.namespace, field, reference).await {
                Ok(token) => Some(SecretString::from(token.expose_secret().trim().to_owned())),
                Err(SettingsError::Missing { .. }) => None,
                Err(error) => return Err(words(&error)),
            }
        }
        (None, Some(known)) => known.kept.token.clone(),
        (None, None) => None,
    };
    if let Some(token) = token {
        let labels = labels_before_a_token(held, pool);
        let client = GitLab::new(&gitlab.url, token, labels, transport.clone(), held.shared.metrics.clone())
            .map_err(|error| words(&error))?;
        // (1)
        let answer = match what {
            OnDeletion::RemoveRunner => {
                let deed = held.deed(Point::RunnerRemoved).await;
                deed.make(client.remove_runner(), |answer| answer).await
            }
            OnDeletion::RemoveManager | OnDeletion::Keep => {
                let deed = held.deed(Point::RunnerManagerRemoved).await;
                deed.make(client.remove_manager(), |answer| answer).await
            }
        };
        match answer {
            RemovalAnswer::Gone => {}
            RemovalAnswer::Retry { cause } => return Err(words(&cause)),
        }
    }
    match (what, known) {
        (OnDeletion::RemoveRunner, Some(known)) => {
            leave_nothing(held, pool, &transport, &known).await;
            // (2)
            let deed = held.deed(Point::RunnerSecretDeleted).await;
            runner_secret::delete(held, deed).await.map_err(|error| words(&error))
        }
        (OnDeletion::RemoveRunner | OnDeletion::RemoveManager | OnDeletion::Keep, _) => Ok(()),
    }
}

const WAY_OUT: &str = "spec.gitlab.onDeletion: Keep leaves everything at GitLab as it is";

/// A runner whose token nobody has can only be removed by its id, or by its marker. What cannot be removed is said.
async fn leave_nothing(held: &Held, pool: &RunnerPool, transport: &Transport, known: &Known) {
    let kept = &known.kept;
    let Some(spec) = pool.spec.gitlab.registration.as_ref() else { return };
    if kept.token.is_some() && !kept.is_rotating {
        return;
    }
    let wanted = Wanted::of(spec, &held.namespace, &held.name);
    let work = Work { held, pool, spec, transport, wanted };
    let removed = match (work.rest().await, kept.runner_id) {
        (Ok(rest), Some(id)) => work.remove_by_id(&rest, id).await.is_ok(),
        (Ok(rest), None) => work.remove_unused(&rest, kept).await.is_ok(),
        (Err(_), _) => false,
    };
    if !removed {
        let note = format!(
            "a runner of this pool may be left at GitLab that nobody has the token of; its maintenance note is {:?}",
            plan::note(&kept.marker)
        );
        held.shared.events.warning(pool, "RunnerLeftBehind", "Remove", note).await;
    }
}

/// The certificates of a pool that is being deleted; what is gone is left out.
async fn gitlab_trust(held: &Held, pool: &RunnerPool) -> Trust {
    settings::trust(&held.shared.client, &held.namespace, &pool.spec.gitlab).await.unwrap_or_default()
}
