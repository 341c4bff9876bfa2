//! Events on our objects: one for each change a user would want to see, once.
//!
//! An Event that cannot be written is logged and dropped: nothing depends on it.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

/// Writes Events. Cloning shares it.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events of this replica.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter =
            Reporter { controller: "dormouse.dev/operator".to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Something went as it should. Events of one object, reason and action are counted as one.
    pub async fn normal<K>(&self, object: &K, reason: &str, action: impl Into<String>, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, EventType::Normal, reason, action.into(), note).await;
    }

    /// Something a person may want to act on.
    pub async fn warning<K>(&self, object: &K, reason: &str, action: impl Into<String>, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, EventType::Warning, reason, action.into(), note).await;
    }

    async fn publish<K>(&self, object: &K, type_: EventType, reason: &str, action: String, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let event =
            Event { type_, reason: reason.to_owned(), note: Some(bounded(note)), action, secondary: None };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(reason, %error, "an Event could not be written");
        }
    }
}

/// The API server refuses notes above 1 KiB.
fn bounded(mut note: String) -> String {
    let mut end = note.len().min(1000);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note.truncate(end);
    note
}
