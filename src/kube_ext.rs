//! What we need of Kubernetes beyond the client: a cache that shows our own writes, events, status writes that
//! happen only when something changed.

pub mod cache;
pub mod events;
pub mod store;

use kube::core::Status;

/// Whether an error is the API server's answer with that code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether an error says that the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    is_code(error, 404)
}

/// Whether an error says that the object is there already, or has changed since it was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    is_code(error, 409)
}

/// Whether the API server refused for good: trying the same again cannot help.
pub fn is_refusal(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            let Status { code, .. } = **status;
            (400..500).contains(&code) && ![404, 408, 409, 429].contains(&code)
        }
        _ => false,
    }
}
