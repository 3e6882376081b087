//! Compiles /proto with protox, so that no protoc is needed, and keeps the descriptors for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: &[&str] = &[
    "postroad/directory/v1/directory.proto",
    "postroad/submission/v1/submission.proto",
    "postroad/queue/v1/queue.proto",
    "postroad/log/v1/log.proto",
    "postroad/raft/v1/raft.proto",
    "postroad/node/v1/node.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let include = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", include.display());
    let descriptors = protox::compile(FILES, [&include])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
