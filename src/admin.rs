//! The admin server: liveness, readiness with named gates, metrics, the list of jobs.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::Shared;

/// What has to be so before the replica counts as ready. A standby is ready too: it has its caches.
#[derive(Clone)]
pub struct Gates {
    shared: Shared,
}

impl Gates {
    /// The gates of a replica.
    pub fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Names of gates with whether they are open.
    fn all(&self) -> [(&'static str, bool); 3] {
        [
            ("runnerpools-synced", self.shared.pools.cache.is_synced()),
            ("jobleases-synced", self.shared.leases.cache.is_synced()),
            ("suspendedenvironments-synced", self.shared.environments.cache.is_synced()),
        ]
    }
}

/// Binds the address; the future serves until cancelled.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    gates: Gates,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on --admin-address {address}: {error}"))?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/jobs/list", get(jobs))
        .with_state(gates);
    Ok(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin server failed");
        }
    })
}

async fn ready(State(gates): State<Gates>) -> impl IntoResponse {
    let gates = gates.all();
    let text: String =
        gates.iter().map(|(name, open)| format!("[{}] {name}\n", if *open { '+' } else { '-' })).collect();
    let status =
        if gates.iter().all(|(_, open)| *open) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text)
}

/// One line for each job that this replica drives.
async fn jobs(State(Gates { shared }): State<Gates>) -> String {
    shared.driven.lines(&shared.leases.cache, &shared.pools.cache)
}

async fn metrics(State(gates): State<Gates>) -> impl IntoResponse {
    let shared = &gates.shared;
    shared.metrics.jobs(&shared.driven.places(&shared.leases.cache));
    match gates.shared.metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [("content-type", kind)], text)
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/plain")], error.to_string())
        }
    }
}
