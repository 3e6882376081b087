//! The program of the simulation, run as people run it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

use serde_json::json;

fn run(seed: u64, more: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_postroad-faults"))
        .args(["run", "--json", "--seconds=8", &seed.to_string()])
        .args(more)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_seed_does_the_same_again_and_another_one_does_not() {
    let first = run(1, &[]);
    assert!(first["counts"]["acknowledged, quiet"].as_u64() > Some(5), "{first}");
    assert_ne!(first["faults"], json!([]), "{first}");
    assert!(first["counts"]["delivered, quiet"].as_u64() > Some(5), "{first}");
    assert_eq!(run(1, &[]), first);
    assert_ne!(run(2, &[])["digest"], first["digest"]);
}

#[test]
fn without_faults_nothing_is_violated() {
    // No fault of the plan has this number.
    let calm = run(3, &["--only=9999"]);
    assert_eq!((&calm["faults"], &calm["problems"]), (&json!([]), &json!([])), "{calm}");
}
