# What we type often. `just` lists it.

default:
    @just --list

test:
    cargo test --workspace

# Everything CI checks
ci:
    .ci/run

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets -- -D warnings
