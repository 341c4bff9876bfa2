//! A job's payload at rest: gzip in Secrets owned by the lease, read by name, gone with it.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, Resource, ResourceExt};

use crate::api::job_lease::{JobLease, payload_secret_name};
use crate::api::labels;
use crate::app::Shared;
use crate::deed::{Deed, Point};
use crate::gitlab::wire::JobPayload;
use crate::kube_ext::{is_conflict, is_not_found};

/// Bytes in one Secret: etcd refuses objects above 1.5 MiB, and the API server's own limit is near 1 MiB.
const PART: usize = 900 * 1024;

/// The largest payload: beyond it a job is refused rather than spread over dozens of Secrets.
const LARGEST: usize = 8 * 1024 * 1024;

const KEY: &str = "payload";

/// Why a payload cannot be kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Too large.
    #[error(
        "the job's payload has {size} bytes, more than the {LARGEST} that can be kept; make its variables smaller"
    )]
    TooLarge {
        /// Bytes.
        size: usize,
    },
    /// It could not be compressed.
    #[error("the job's payload cannot be compressed")]
    Compress(#[source] std::io::Error),
    /// A Secret is not there or not what was written.
    #[error("the job's payload is not complete: Secret {secret} is missing or damaged")]
    Incomplete {
        /// Name of the Secret.
        secret: String,
    },
    /// The API server could not be asked.
    #[error("the job's payload cannot be read")]
    Kubernetes(#[from] kube::Error),
}

/// Compresses a payload and cuts it into parts.
///
/// # Errors
/// When it is too large.
pub fn pack(raw: &[u8]) -> Result<Vec<Vec<u8>>, PayloadError> {
    if raw.len() > LARGEST {
        return Err(PayloadError::TooLarge { size: raw.len() });
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(raw).map_err(PayloadError::Compress)?;
    let packed = encoder.finish().map_err(PayloadError::Compress)?;
    Ok(packed.chunks(PART).map(<[u8]>::to_vec).collect())
}

/// The same for one that was unpacked before.
///
/// # Errors
/// When it is too large.
pub fn pack_job(job: &JobPayload) -> Result<Vec<Vec<u8>>, PayloadError> {
    let raw = serde_json::to_vec(job).map_err(|error| PayloadError::Compress(error.into()))?;
    pack(&raw)
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    // A damaged Secret must not unpack to more than was ever packed.
    GzDecoder::new(packed).take(LARGEST as u64 + 1).read_to_end(&mut raw)?;
    Ok(raw)
}

/// Writes the parts of a lease's payload; parts that are there already are fine.
///
/// # Errors
/// When the API server refuses or cannot be asked.
pub async fn save(shared: &Shared, lease: &JobLease, parts: &[Vec<u8>]) -> Result<(), kube::Error> {
    let api = api(shared, lease);
    for (index, part) in (0u32..).zip(parts) {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(payload_secret_name(&lease.name_any(), index)),
                labels: Some(BTreeMap::from([
                    (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned()),
                    (labels::POOL.to_owned(), lease.spec.pool.clone()),
                ])),
                owner_references: Some(owner(lease)),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(part.clone()))])),
            type_: Some("dormouse.dev/job-payload".to_owned()),
            ..Secret::default()
        };
        let _place = shared.bounds.api_writes.enter().await;
        shared.metrics.kubernetes_write("Secret", "create");
        // Not fenced, as its lease is not.
        let params = PostParams::default();
        let saved =
            Deed::unfenced(Point::PayloadSaved).make(api.create(&params, &secret), |saved| saved).await;
        match saved {
            Ok(_) => {}
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a lease's payload back.
///
/// # Errors
/// When a part is missing or damaged, or the API server cannot be asked.
pub async fn load(shared: &Shared, lease: &JobLease) -> Result<JobPayload, PayloadError> {
    let api = api(shared, lease);
    let mut packed = Vec::new();
    let mut last = String::new();
    for index in 0..lease.spec.payload_parts {
        last = payload_secret_name(&lease.name_any(), index);
        let incomplete = || PayloadError::Incomplete { secret: last.clone() };
        let secret = api.get_opt(&last).await?.ok_or_else(incomplete)?;
        let owned = secret.owner_references().iter().any(|owner| Some(&owner.uid) == lease.uid().as_ref());
        let part = secret.data.as_ref().and_then(|data| data.get(KEY)).filter(|_| owned);
        packed.extend_from_slice(&part.ok_or_else(incomplete)?.0);
    }
    let incomplete = || PayloadError::Incomplete { secret: last.clone() };
    let raw = unpack(&packed).map_err(|_| incomplete())?;
    serde_json::from_slice(&raw).map_err(|_| incomplete())
}

/// Deletes a lease's payload.
///
/// # Errors
/// When the API server refuses or cannot be asked.
pub async fn delete(shared: &Shared, lease: &JobLease) -> Result<(), kube::Error> {
    let api = api(shared, lease);
    for index in 0..lease.spec.payload_parts {
        let name = payload_secret_name(&lease.name_any(), index);
        let _place = shared.bounds.api_writes.enter().await;
        shared.metrics.kubernetes_write("Secret", "delete");
        let params = DeleteParams::default();
        // Not fenced: the lease is over, so whoever deletes it deletes nothing that is needed.
        let gone = Deed::unfenced(Point::PayloadDeleted).make(api.delete(&name, &params), |gone| gone).await;
        match gone {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn api(shared: &Shared, lease: &JobLease) -> Api<Secret> {
    Api::namespaced(shared.client.clone(), &lease.namespace().unwrap_or_default())
}

/// The Secret goes with its lease. Not as a blocking controller reference: that would need more rights.
fn owner(lease: &JobLease) -> Vec<OwnerReference> {
    lease
        .owner_ref(&())
        .map(|reference| OwnerReference { block_owner_deletion: None, controller: None, ..reference })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_payload_is_cut_and_comes_back_whole() {
        // Bytes that do not compress.
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        let raw: Vec<u8> = (0..3 * PART).map(|_| next()).collect();
        let parts = pack(&raw).unwrap();
        assert!(parts.len() > 1 && parts.iter().all(|part| part.len() <= PART));
        assert_eq!(unpack(&parts.concat()).unwrap(), raw);
    }

    #[test]
    fn a_payload_above_the_limit_is_refused_with_its_size() {
        let error = pack(&vec![0; LARGEST + 1]).unwrap_err();
        assert!(error.to_string().contains("8388609 bytes"), "{error}");
    }
}
