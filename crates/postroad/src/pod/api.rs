//! Creates objects in Kubernetes, as the service account of this pod. It needs no right but `create`.

use std::{env, fs, path::Path};

use anyhow::{Context, bail};
use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use postroad_net::ClientTls;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use crate::http;

/// Where kubelet mounts the service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The API of Kubernetes.
pub(super) struct Api {
    host: String,
    port: String,
    namespace: String,
    token: String,
    tls: ClientTls,
}

/// A kind of object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Secret,
    ConfigMap,
}

/// What came of a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// The object did not exist.
    New,
    /// It exists, and was not changed.
    Existed,
}

/// The part of a `Status` that says why.
#[derive(Deserialize)]
struct Refusal {
    reason: String,
    message: String,
}

impl Api {
    /// Reads what kubelet has given to this pod.
    ///
    /// # Errors
    /// This is no pod, or its service account is not mounted.
    pub(super) fn of_this_pod() -> anyhow::Result<Self> {
        let variable =
            |name: &str| env::var(name).with_context(|| format!("`{name}` is not set: this is no pod"));
        let read = |name: &str| {
            let path = Path::new(ACCOUNT).join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        Ok(Self {
            host: variable("KUBERNETES_SERVICE_HOST")?,
            port: variable("KUBERNETES_SERVICE_PORT")?,
            namespace: read("namespace")?.trim().to_owned(),
            token: read("token")?.trim().to_owned(),
            tls: ClientTls::trusting(read("ca.crt")?.as_bytes())?,
        })
    }

    /// Creates an object with these texts, unless one of its name exists.
    ///
    /// # Errors
    /// The API cannot be reached, or refuses.
    pub(super) async fn create(
        &self,
        kind: Kind,
        name: &str,
        data: &[(&str, &str)],
    ) -> anyhow::Result<Created> {
        let Self { host, port, .. } = self;
        let what = || format!("cannot create {kind:?} `{name}` at {host}:{port}");
        let stream = TcpStream::connect(self.address()).await.with_context(what)?;
        let stream = self.tls.connect(stream, host).await.with_context(what)?;
        let request = self.request(kind, name, data)?;
        let (status, body) = http::request(stream, request).await.with_context(what)?;
        if status == StatusCode::CREATED {
            return Ok(Created::New);
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if refusal.reason == "AlreadyExists" => Ok(Created::Existed),
            Ok(refusal) => bail!("{}: {status}: {}", what(), refusal.message),
            Err(_) => bail!("{}: {status}", what()),
        }
    }

    /// An IPv6 address has no brackets in the variable.
    fn address(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    fn request(&self, kind: Kind, name: &str, data: &[(&str, &str)]) -> anyhow::Result<Request<Body>> {
        let texts: Map<String, Value> =
            data.iter().map(|(key, text)| ((*key).to_owned(), Value::from(*text))).collect();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": format!("{kind:?}"),
            "metadata": { "name": name, "labels": { "app.kubernetes.io/part-of": "postroad" } },
        });
        let (field, plural) = match kind {
            Kind::Secret => ("stringData", "secrets"),
            Kind::ConfigMap => ("data", "configmaps"),
        };
        object[field] = Value::Object(texts);
        let request = Request::post(format!("/api/v1/namespaces/{}/{plural}", self.namespace))
            .header(header::HOST, self.address())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(object.to_string()))?;
        Ok(request)
    }
}
