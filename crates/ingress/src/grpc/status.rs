//! gRPC statuses with the details that programs read: `google.rpc.ErrorInfo`, `BadRequest` and `RetryInfo`.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::RequestError;
use crate::error::{GrpcError, Refusal};

/// The domain of every reason.
const DOMAIN: &str = "postroad";

/// What a client should wait before it retries what is retryable.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl From<GrpcError> for Status {
    fn from(error: GrpcError) -> Self {
        let (code, reason) = error.code_and_reason();
        let mut details = details(reason);
        // The same client may ask again in a moment.
        if code == Code::Unavailable {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Self::with_error_details(code, error.text(), details)
    }
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
        let (code, reason) = GrpcError::InvalidField.code_and_reason();
        let mut details = details(reason);
        details.add_bad_request_violation(&field, &problem);
        Self::with_error_details(code, format!("{field}: {problem}"), details)
    }
}
