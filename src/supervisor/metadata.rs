//! The instance's metadata service: who this instance is, and what the cloud is about to do to it.
//!
//! Asked by `notices`, and by `hello` where the caller or the host's owner says that there is one. Nothing is kept
//! but for the time of one verb, neither answers nor the token that the service gives.

mod http;

use std::fs;
use std::io;

use jiff::Timestamp;
use serde::Deserialize;

use self::http::Base;
use super::claim::{self, Caller};
use super::refuse::{OrRefuse, refusal};
use super::state::StateFolder;
use crate::spool::verb::{Notices, Refusal, RefusalReason, SpotAction, SpotNotice};

/// Names the service's address.
const VARIABLE: &str = "DORMOUSE_METADATA_URL";

/// Has the service's address as its first line.
const FILE: &str = "/etc/dormouse/metadata";

/// Where the service is on every instance.
const USUAL: &str = "http://169.254.169.254";

/// How long the service's token lasts, in seconds: for one verb.
const TOKEN_SECONDS: &str = "60";

/// What the cloud has announced.
///
/// # Errors
/// A refusal that names the address, when the service cannot be asked or answers what cannot be understood.
pub fn notices(state: &StateFolder, epoch: u64) -> Result<Notices, Refusal> {
    {
        let _lock = state.lock().or_refuse("failed to lock the state folder")?;
        claim::admit(state, Caller { pool_uid: None, pool: None, epoch })?;
    }
    ask_for_notices(&told().unwrap_or_else(|| USUAL.to_owned()))
}

fn ask_for_notices(url: &str) -> Result<Notices, Refusal> {
    let service = Service::open(url)?;
    let spot = service.get("latest/meta-data/spot/instance-action")?;
    let rebalance = service.get("latest/meta-data/events/recommendations/rebalance")?;
    let read = |error: String| {
        let message =
            format!("the instance metadata service at {url} announces what cannot be read: {error}");
        refusal(RefusalReason::HostFailure, message)
    };
    Ok(Notices {
        spot: spot.map(|text| spot_notice(&text)).transpose().map_err(read)?,
        rebalance: rebalance.map(|text| rebalance_time(&text)).transpose().map_err(read)?,
    })
}

/// What the cloud calls this instance. Nothing where there is no such service: the host is one of somebody's own.
/// Without an address of the service it is not looked for unless `wanted`.
pub fn instance_id(wanted: bool) -> Option<String> {
    let url = told().or_else(|| wanted.then(|| USUAL.to_owned()))?;
    let answered = Service::open(&url).and_then(|service| service.get("latest/meta-data/instance-id"));
    let id = answered.ok()??.trim().to_owned();
    let is_plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    is_plain.then_some(id)
}

/// The address that the environment or the host's file names.
fn told() -> Option<String> {
    let text = std::env::var(VARIABLE).ok().or_else(|| fs::read_to_string(FILE).ok())?;
    let line = text.lines().next().unwrap_or_default().trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// The service, with its token.
struct Service<'a> {
    url: &'a str,
    base: Base,
    token: String,
}

impl<'a> Service<'a> {
    fn open(url: &'a str) -> Result<Self, Refusal> {
        let base = Base::parse(url).map_err(|message| refusal(RefusalReason::HostFailure, message))?;
        let lifetime = ("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS);
        let answer =
            base.ask("PUT", "latest/api/token", lifetime).map_err(|error| unreachable(url, &error))?;
        let is_usable = !answer.body.is_empty() && answer.body.bytes().all(|byte| byte.is_ascii_graphic());
        if answer.status != 200 || !is_usable {
            let message = format!(
                "the instance metadata service at {url} gives no token (status {}); see that it is enabled for the \
                 instance",
                answer.status
            );
            return Err(refusal(RefusalReason::HostFailure, message));
        }
        Ok(Self { url, base, token: answer.body })
    }

    /// A text of the service; `None` when it has none.
    fn get(&self, path: &str) -> Result<Option<String>, Refusal> {
        let token = ("X-aws-ec2-metadata-token", self.token.as_str());
        let answer = self.base.ask("GET", path, token).map_err(|error| unreachable(self.url, &error))?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            status => {
                let message = format!(
                    "the instance metadata service at {} answers {path} with status {status}; ask again later",
                    self.url
                );
                Err(refusal(RefusalReason::HostFailure, message))
            }
        }
    }
}

fn unreachable(url: &str, error: &io::Error) -> Refusal {
    let message = format!(
        "failed to ask the instance metadata service at {url}: {error}; see that it is enabled for the instance, or \
         write its address to {FILE}"
    );
    refusal(RefusalReason::HostFailure, message)
}

fn spot_notice(text: &str) -> Result<SpotNotice, String> {
    #[derive(Deserialize)]
    struct Wire {
        action: String,
        time: Timestamp,
    }
    let wire: Wire = serde_json::from_str(text).map_err(|error| format!("instance-action: {error}"))?;
    let action = match wire.action.as_str() {
        "stop" => SpotAction::Stop,
        "hibernate" => SpotAction::Hibernate,
        // The worst of them stands for what is not known yet.
        _ => SpotAction::Terminate,
    };
    Ok(SpotNotice { action, time: wire.time })
}

fn rebalance_time(text: &str) -> Result<Timestamp, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire {
        notice_time: Timestamp,
    }
    let wire: Wire = serde_json::from_str(text).map_err(|error| format!("rebalance: {error}"))?;
    Ok(wire.notice_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read_as_the_service_writes_them() {
        let notice = spot_notice(r#"{"action": "stop", "time": "2026-09-18T08:22:00Z"}"#).unwrap();
        let time: Timestamp = "2026-09-18T08:22:00Z".parse().unwrap();
        assert_eq!(notice, SpotNotice { action: SpotAction::Stop, time });
        let time = "2026-09-18T08:22:00.5Z";
        for (action, wanted) in [
            ("hibernate", SpotAction::Hibernate),
            ("terminate", SpotAction::Terminate),
            ("devour", SpotAction::Terminate),
        ] {
            let text = format!(r#"{{"action":"{action}","time":"{time}","more":1}}"#);
            assert_eq!(spot_notice(&text).unwrap().action, wanted);
        }
        assert_eq!(rebalance_time(&format!(r#"{{"noticeTime":"{time}"}}"#)).unwrap(), time.parse().unwrap());
        assert!(spot_notice("{}").is_err() && rebalance_time("<html>").is_err());
    }
}
