//! GitLab's REST API with an access token, for what only a person may do to a runner: make, change, list and remove it, and
//! give it another token.
//!
//! No policy and no retries here. Tokens never appear in errors or logs.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::client::{
    Calls, IssuedToken, UrlError, answered, api_base, read_token, request, root_cause, timestamp,
};
use super::registration::{Wanted, note};
use super::transport::Transport;
use crate::telemetry::{Metrics, RunnerLabels};

/// Time for a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of GitLab's own words is repeated.
const WORDS: usize = 300;

/// A person's, a group's or a project's access to one GitLab.
pub struct Rest {
    transport: Transport,
    base: String,
    token: SecretString,
    calls: Calls,
}

/// Why a call did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestError {
    /// The access token may not do this.
    #[error("GitLab answers {status}: the access token may not {what}")]
    Denied {
        /// The status.
        status: u16,
        /// What was tried.
        what: &'static str,
    },
    /// There is no such thing, or the access token may not know of it.
    #[error("GitLab answers 404: there is nothing to {what}, or the access token may not see it")]
    NotFound {
        /// What was tried.
        what: &'static str,
    },
    /// GitLab does not take what was sent.
    #[error("GitLab does not {what}: {words}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// GitLab's words.
        words: String,
    },
    /// GitLab could not be asked, or its answer is lost.
    #[error("{0}")]
    Retry(String),
}

/// A runner that was just made.
pub struct Created {
    /// Its id.
    pub id: u64,
    /// Its token: GitLab never shows it again.
    pub issued: IssuedToken,
}

/// A runner as GitLab shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Shown {
    /// Its id.
    pub id: u64,
    /// Its tags.
    pub tag_list: Vec<String>,
    /// Whether it gets no jobs.
    pub paused: bool,
    /// The note that its maker has left.
    pub maintenance_note: Option<String>,
}

impl Rest {
    /// Access with a token.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(
        url: &str,
        token: SecretString,
        runner: RunnerLabels,
        transport: Transport,
        metrics: Metrics,
    ) -> Result<Self, UrlError> {
        Ok(Self { transport, base: api_base(url)?, token, calls: Calls::new(metrics, runner) })
    }

    /// Makes a runner.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn create(&self, wanted: &Wanted, marker: &str) -> Result<Created, RestError> {
        const WHAT: &str = "create a runner";
        let body = wanted.creation(marker);
        let response = self.call("create_runner", Method::POST, "user/runners", Some(&body), WHAT).await?;
        #[derive(Deserialize)]
        struct Answer {
            id: u64,
            token: String,
            #[serde(default)]
            token_expires_at: Option<String>,
        }
        // A runner whose token cannot be read is one that nobody has: it is looked for before the next try.
        let answer: Answer = read(response).await?;
        let expires_at = timestamp(answer.token_expires_at.as_deref());
        let token = SecretString::from(answer.token);
        Ok(Created { id: answer.id, issued: IssuedToken { token, expires_at } })
    }

    /// Changes a runner.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn change(&self, id: u64, wanted: &Wanted) -> Result<Shown, RestError> {
        let path = format!("runners/{id}");
        let body = wanted.change();
        read(self.call("change_runner", Method::PUT, &path, Some(&body), "change the runner").await?).await
    }

    /// A runner as it is.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn show(&self, id: u64) -> Result<Shown, RestError> {
        let path = format!("runners/{id}");
        read(self.call("show_runner", Method::GET, &path, None, "show the runner").await?).await
    }

    /// Gives a runner another token; the one it had is dead.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn reset_token(&self, id: u64) -> Result<IssuedToken, RestError> {
        let path = format!("runners/{id}/reset_authentication_token");
        let response =
            self.call("reset_token_by_id", Method::POST, &path, None, "reset the runner's token").await?;
        let lost = || RestError::Retry("GitLab's answer has no token".to_owned());
        read_token(response).await.ok_or_else(lost)
    }

    /// Ids of the runners with that marker that have never asked for a job.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn unused(&self, wanted: &Wanted, marker: &str) -> Result<Vec<u64>, RestError> {
        #[derive(Deserialize)]
        struct Listed {
            id: u64,
            #[serde(default)]
            description: Option<String>,
        }
        const WHAT: &str = "list runners";
        let listed: Vec<Listed> =
            read(self.call("list_runners", Method::GET, &wanted.unused_path(), None, WHAT).await?).await?;
        let mut unused = Vec::new();
        // The list does not show notes.
        for runner in listed {
            if runner.description.as_deref() == Some(&wanted.description)
                && self.show(runner.id).await?.maintenance_note == Some(note(marker))
            {
                unused.push(runner.id);
            }
        }
        Ok(unused)
    }

    /// Removes a runner; one that is gone already is fine.
    ///
    /// # Errors
    /// See [`RestError`].
    pub async fn remove(&self, id: u64) -> Result<(), RestError> {
        let path = format!("runners/{id}");
        match self.call("remove_runner_by_id", Method::DELETE, &path, None, "remove the runner").await {
            Ok(_) | Err(RestError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn call(
        &self,
        endpoint: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        what: &'static str,
    ) -> Result<Response, RestError> {
        let mut request = request(&self.transport, method.clone(), &self.base, path)
            .header("PRIVATE-TOKEN", self.token.expose_secret())
            .timeout(CALL_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.calls.send(endpoint, method, request).await.map_err(RestError::Retry)?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(RestError::Denied { status: status.as_u16(), what })
            }
            StatusCode::NOT_FOUND => Err(RestError::NotFound { what }),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(RestError::Refused { what, words: words(response).await })
            }
            status => Err(RestError::Retry(answered(status))),
        }
    }
}

async fn read<T: serde::de::DeserializeOwned>(response: Response) -> Result<T, RestError> {
    // A decoding error may quote the answer, which can hold a token: only that it cannot be read is told.
    response.json().await.map_err(|error| {
        RestError::Retry(match error.is_decode() {
            true => "GitLab's answer cannot be read".to_owned(),
            false => format!("GitLab's answer was cut off: {}", root_cause(&error)),
        })
    })
}

/// GitLab's own words about a refusal, which speak of the fields that were sent.
async fn words(response: Response) -> String {
    let answer: Value = response.json().await.unwrap_or_default();
    let told =
        ["message", "error"].into_iter().find_map(|key| answer.get(key).filter(|told| !told.is_null()));
    let text = match told {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "it gives no reason".to_owned(),
    };
    text.chars().take(WORDS).collect()
}
