//! What `dev` prints when it is ready.

use std::path::Path;

use crate::{
    cli::DevArgs,
    demo::{LOGIN, SECRET},
};

/// Returns the banner.
#[must_use]
pub(super) fn text(args: &DevArgs, data: &Path) -> String {
    let (smtp, smtps, grpc) = (args.listen_smtp, args.listen_smtps, args.listen_grpc);
    let (http, metrics) = (args.listen_http, args.listen_metrics);
    let sends = if args.deliver {
        "to real receivers, by MX"
    } else {
        "to the sandbox, except where a route says otherwise"
    };
    format!(
        "
postroad dev is ready. Mail is sent {sends}.

  SMTP      {smtp}  (STARTTLS)   {smtps} (TLS)
  gRPC      {grpc}
  console   http://{http}/       sandbox  http://{http}/sandbox
  metrics   http://{metrics}/metrics
  data      {data}{kept}

  login {LOGIN}, password and API key {SECRET}; from this machine no login is needed

  swaks --server {smtp} --tls -au {LOGIN} -ap {SECRET} --from me@example.org --to you@example.net
  curl --url smtp://{smtp} --mail-from me@example.org --mail-rcpt you@example.net -T message.eml
  grpcurl -plaintext -H 'authorization: Bearer {SECRET}' -d '{{\"envelope\":{{\"sender\":\"me@example.org\",\"recipients\":[\"you@example.net\"]}},\"content\":\"RnJvbTogbWVAZXhhbXBsZS5vcmcNClN1YmplY3Q6IGhlbGxvDQoNCmhlbGxvDQo=\"}}' {grpc} postroad.submission.v1.SubmissionService/Submit

Ctrl-C stops it.
",
        data = data.display(),
        kept = if args.data.is_some() { "" } else { "  (temporary)" },
    )
}
