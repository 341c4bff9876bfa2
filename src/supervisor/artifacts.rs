//! Artifacts: what a job hands over to GitLab, and what it gets of jobs before it.
//!
//! Both run as errands. What is due and what an answer of GitLab means is decided purely (`plan`, `rules`);
//! `upload` and `download` do it.

pub mod download;
pub mod multipart;
pub mod plan;
pub mod rules;
pub mod upload;

use url::Url;

/// The address of a job's artifacts.
///
/// # Errors
/// A sentence when the pool's GitLab address is none.
pub fn address(gitlab: &str, job: u64) -> Result<Url, String> {
    let base = gitlab.trim_end_matches('/');
    let base = base.strip_suffix("/ci").unwrap_or(base);
    Url::parse(&format!("{base}/api/v4/jobs/{job}/artifacts"))
        .map_err(|error| format!("the pool's GitLab address cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_below_the_pools() {
        let address = |gitlab| address(gitlab, 7).unwrap().to_string();
        assert_eq!(
            address("https://gitlab.example/sub/"),
            "https://gitlab.example/sub/api/v4/jobs/7/artifacts"
        );
        assert_eq!(address("https://gitlab.example/ci"), "https://gitlab.example/api/v4/jobs/7/artifacts");
        assert!(super::address("nowhere", 7).is_err());
    }
}
