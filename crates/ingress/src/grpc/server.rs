//! The gRPC listener: submission, health and reflection.

use postroad_net::{NodeListener, public};
use postroad_proto::{
    DESCRIPTORS,
    submission::submission_service_server::{SERVICE_NAME, SubmissionServiceServer},
};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use super::GrpcService;

/// An encoded recipient: protobuf tag, length and address.
const RECIPIENT_BYTES_MAX: usize = 260;
/// Room for the other fields of a request.
const ENVELOPE_BYTES_MAX: usize = 4 << 10;

/// Serves clients until `shutdown`; calls in progress may finish within the drain timeout.
pub(crate) async fn serve(
    listener: NodeListener,
    service: GrpcService,
    reporter: HealthReporter,
    shutdown: CancellationToken,
) {
    let config = &service.handler.config;
    let limit = config.drain_timeout;
    let content_bytes_max = config.message_size_max.to_usize();
    let request_bytes_max = content_bytes_max
        .saturating_add(config.recipients_max.saturating_mul(RECIPIENT_BYTES_MAX))
        .saturating_add(ENVELOPE_BYTES_MAX);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .with_service_name(SERVICE_NAME)
    };
    let v1 = reflection().build_v1().expect("our build generated the descriptors");
    // Older clients know only this version.
    let v1alpha = reflection().build_v1alpha().expect("our build generated the descriptors");
    let server = public::server_builder(service.too_large())
        .add_service(SubmissionServiceServer::new(service).max_decoding_message_size(request_bytes_max))
        .add_service(HealthServer::new(HealthService::from_health_reporter(reporter)))
        .add_service(v1)
        .add_service(v1alpha)
        .serve_with_incoming_shutdown(listener, shutdown.clone().cancelled_owned());
    let late = async {
        shutdown.cancelled().await;
        time::sleep(limit).await;
    };
    tokio::select! {
        ended = server => {
            if let Err(error) = ended {
                tracing::error!(%error, "gRPC listener failed");
            }
        }
        () = late => tracing::warn!("drain timeout passed: open gRPC calls cut off"),
    }
}

/// Sets the status that the gRPC health service reports.
pub(crate) async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    // The empty name means the whole server.
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}
