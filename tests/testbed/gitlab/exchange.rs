//! One request, read to its end, and the answer to it.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode},
};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::endpoint::Endpoint;

/// A JSON object, as every body of the runner API is.
pub(super) type Object = Map<String, Value>;

/// A request with its whole body.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Counts requests since the start.
    pub number: u64,
    pub at: Timestamp,
    /// The connection it came on.
    pub connection: u64,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub endpoint: Endpoint,
    /// A fault will act on the answer, so the client may never see it.
    pub answer_may_be_lost: bool,
}

impl Exchange {
    /// A header as text; absent and unreadable are the same.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as a JSON object, or what is wrong with it.
    pub fn object(&self) -> Result<Object, String> {
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err("the body is JSON but no object".to_owned()),
            Err(error) => Err(format!("the body is no JSON: {error}")),
        }
    }

    /// A parameter of the query string.
    pub fn query_parameter(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// How the request is named in reports.
    pub fn title(&self) -> String {
        format!("#{} {} {}", self.number, self.method, self.path)
    }
}

/// What is sent back.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    /// Boxed, so that an answer can be the error of a function.
    pub headers: Box<HeaderMap>,
    pub body: Bytes,
}

impl Answer {
    /// A status with its number as the text of the body, which is what GitLab's update calls send.
    pub fn status(status: StatusCode) -> Self {
        let body = match status {
            StatusCode::NO_CONTENT => Bytes::new(),
            other => Bytes::from(other.as_u16().to_string()),
        };
        Self { status, headers: Box::default(), body }
    }

    /// A JSON body.
    pub fn json(status: StatusCode, body: &Value) -> Self {
        Self::bytes(status, "application/json", body.to_string().into())
    }

    /// A refusal, worded as GitLab does.
    pub fn refusal(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("Error");
        let message = format!("{} {reason}", status.as_u16());
        Self::json(status, &serde_json::json!({ "message": message }))
    }

    /// A body of any type.
    pub fn bytes(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        let mut headers: Box<HeaderMap> = Box::default();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        Self { status, headers, body }
    }

    /// Adds a header; a value that cannot be one is left out.
    pub fn with(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// The answer as the web server wants it.
    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = *self.headers;
        response
    }
}
