//! What `dev` prints when it is ready.

use super::{Data, listen::Listeners};
use crate::{
    cli::DevArgs,
    demo::{LOGIN, SECRET},
};

/// Returns the banner.
#[must_use]
pub(super) fn text(args: &DevArgs, listeners: &Listeners, data: &Data) -> String {
    let Listeners { smtp, smtps, grpc, http, metrics, operator } = listeners;
    let (smtp, smtps, grpc) = (smtp.address, smtps.address, grpc.address);
    let (http, metrics, operator) = (http.address, metrics.address, operator.address);
    format!(
        "
postroad dev is ready. Mail is sent {sends}.

  SMTP      {smtp}  (STARTTLS)   {smtps} (TLS)
  gRPC      {grpc}
  console   http://{http}/       sandbox  http://{http}/sandbox
  metrics   http://{metrics}/metrics
  operator  postroad get --server {operator}
  data      {data}{kept}
{moved}
  login {LOGIN}, password and API key {SECRET}; from this machine no login is needed

{examples}
Ctrl-C stops it.
",
        sends = sends(args),
        moved = listeners.moved(),
        examples = examples(listeners, data),
        data = data.path().display(),
        kept = if args.data.is_some() { "" } else { "  (temporary)" },
    )
}

fn sends(args: &DevArgs) -> String {
    match (args.deliver, args.routes.is_empty()) {
        (true, true) => "to real receivers, by MX".to_owned(),
        (true, false) => "to real receivers, by MX, except where a route says otherwise".to_owned(),
        (false, _) => "to the sandbox, except where a route says otherwise".to_owned(),
    }
}

/// Commands that send a message, for each client how it is made to accept the certificate.
pub(super) fn examples(listeners: &Listeners, data: &Data) -> String {
    let (smtp, smtps, grpc) = (listeners.smtp.address, listeners.smtps.address, listeners.grpc.address);
    let certificate = data.certificate();
    let certificate = certificate.display();
    format!(
        "  printf 'From: me@example.org\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n' | curl --url smtp://{smtp} --mail-from me@example.org --mail-rcpt you@example.net -T -

  with TLS, whose certificate is self-signed: {certificate}
  printf 'From: me@example.org\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n' | curl --cacert {certificate} --ssl-reqd --url smtps://{smtps} -u {LOGIN}:{SECRET} --mail-from me@example.org --mail-rcpt you@example.net -T -
  (or curl --insecure instead of --cacert; openssl s_client -CAfile; swaks does not check certificates)
  swaks --server {smtp} --tls -au {LOGIN} -ap {SECRET} --from me@example.org --to you@example.net
  grpcurl -plaintext -H 'authorization: Bearer {SECRET}' -d '{{\"envelope\":{{\"sender\":\"me@example.org\",\"recipients\":[\"you@example.net\"]}},\"content\":\"RnJvbTogbWVAZXhhbXBsZS5vcmcNClN1YmplY3Q6IGhlbGxvDQoNCmhlbGxvDQo=\"}}' {grpc} postroad.submission.v1.SubmissionService/Submit
"
    )
}
