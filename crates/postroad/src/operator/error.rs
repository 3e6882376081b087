//! Why an operator's command failed: a cluster that cannot be asked and an item that does not exist are different errors,
//! with different exit statuses.

use std::process::ExitCode;

use postroad_cluster::CallError;
use tonic::Code;

/// The exit statuses, as `postroad --help` lists them.
pub const EXIT_STATUS_HELP: &str = "\
Exit status:
  0  done
  1  failed: a file is invalid, or the cluster refused the change
  2  the command line is invalid
  3  the message or item that the command line names does not exist
  4  the cluster cannot be reached: nothing is known, try again
  5  `diff`: the policy file and the cluster differ
  6  a part was done, or a part of the cluster answered: repeat the command for the rest";

/// `postroad diff` has found a difference, which is its result and not a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{file}` and the cluster at revision {revision} differ")]
pub(super) struct Differs {
    /// The policy file.
    pub(super) file: String,
    /// The directory's revision.
    pub(super) revision: u64,
}

/// Why an operator's command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No queue node that could answer was reached in time; whether the item exists is not known. May be tried again.
    #[error("cannot {action}: no answer from the cluster at {addresses}: {cause}")]
    Unreachable {
        /// What the command was to do, with its object.
        action: String,
        /// The queue nodes that were asked, and what named them.
        addresses: String,
        /// Why the last of them did not answer.
        cause: String,
    },
    /// The cluster answered that the item does not exist.
    #[error("cannot {action}: {cause}")]
    NotFound {
        /// What the command was to do, with its object.
        action: String,
        /// What does not exist.
        cause: String,
    },
    /// The cluster answered, and refused.
    #[error("cannot {action}: refused by the cluster: {cause}")]
    Refused {
        /// What the command was to do, with its object.
        action: String,
        /// The rule that refuses it.
        cause: String,
    },
    /// The command did a part of what it was to do, and can be repeated for the rest.
    #[error("{cause}")]
    Incomplete {
        /// What was not done.
        cause: String,
    },
    /// The arguments do not say what is to be done.
    #[error("{cause}")]
    CommandLine {
        /// What is missing.
        cause: String,
    },
}

impl OperatorError {
    pub(super) fn of(action: &str, addresses: &str, error: CallError) -> Self {
        let (action, addresses) = (action.to_owned(), addresses.to_owned());
        match error {
            CallError::Unavailable { group, last } => {
                let cause = format!("no leader of group `{group}` within 10 s: {last}");
                Self::Unreachable { action, addresses, cause }
            }
            CallError::Refused { code: Code::NotFound, message } => Self::NotFound { action, cause: message },
            // Another server listens there.
            CallError::Refused { code: Code::Unimplemented | Code::Internal, message } => {
                Self::Unreachable { action, addresses, cause: format!("not a queue node: {message}") }
            }
            CallError::Refused { message, .. } => Self::Refused { action, cause: message },
        }
    }

    fn exit_status(&self) -> u8 {
        match self {
            Self::Refused { .. } => 1,
            Self::CommandLine { .. } => 2,
            Self::NotFound { .. } => 3,
            Self::Unreachable { .. } => 4,
            Self::Incomplete { .. } => 6,
        }
    }
}

/// Returns the exit status for an error.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<Differs>()) {
        return 5.into();
    }
    let status = error.chain().find_map(|cause| cause.downcast_ref()).map_or(1, OperatorError::exit_status);
    status.into()
}

#[cfg(test)]
mod tests {
    use postroad_core::GroupId;

    use super::*;

    #[test]
    fn an_unreachable_cluster_and_a_missing_item_are_different_errors() {
        let check = |error, status, part: &str| {
            let error = OperatorError::of("read message `X`", "`127.0.0.1:7070`", error);
            assert_eq!(error.exit_status(), status, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        let refused = |code, message: &str| CallError::Refused { code, message: message.to_owned() };
        let last = "connection refused".to_owned();
        check(
            CallError::Unavailable { group: GroupId(1), last },
            4,
            "no answer from the cluster at `127.0.0.1:7070`",
        );
        check(
            refused(Code::NotFound, "`route x.example` does not exist"),
            3,
            "`route x.example` does not exist",
        );
        check(refused(Code::PermissionDenied, "role"), 1, "refused by the cluster: role");
        check(refused(Code::Unimplemented, ""), 4, "not a queue node");
    }
}
