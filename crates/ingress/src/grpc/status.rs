//! gRPC statuses with the details that programs read: `google.rpc.ErrorInfo`, `BadRequest` and `RetryInfo`.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::RequestError;
use crate::error::Refusal;

/// The domain of every reason.
const DOMAIN: &str = "postroad";

/// What a client should wait before it retries what is retryable.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Returns a status with a reason.
pub(super) fn with_reason(code: Code, message: &str, reason: &str) -> Status {
    Status::with_error_details(code, message, details(reason))
}

/// Returns a status for a question that the same client may ask again in a moment.
pub(super) fn try_later(message: &str, reason: &str) -> Status {
    let mut details = details(reason);
    details.set_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, message, details)
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

impl Refusal {
    /// Returns the gRPC status that submission.proto documents.
    pub(super) fn status(&self) -> Status {
        let mut details = details(self.reason());
        if self.is_retryable() {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        let Some(field) = self.field() else {
            return Status::with_error_details(self.code(), self.to_string(), details);
        };
        details.add_bad_request_violation(field, self.to_string());
        Status::with_error_details(self.code(), format!("{field}: {self}"), details)
    }
}

impl From<RequestError> for Status {
    fn from(refused: RequestError) -> Self {
        let (field, problem) = match refused {
            RequestError::Policy(refusal) => return refusal.status(),
            RequestError::Field { field, problem } => (field, problem),
        };
        let mut details = details("FIELD_INVALID");
        details.add_bad_request_violation(&field, &problem);
        Self::with_error_details(Code::InvalidArgument, format!("{field}: {problem}"), details)
    }
}
