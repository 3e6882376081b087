//! The binary's parts: command line, configuration and composition. Everything else is in the crates below.
//!
//! A library too, so that its reference pages can be made by tests.

pub mod classify;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod dev;
pub mod operator;
pub mod policy;
pub mod roles;
pub mod route;
pub mod sections;

mod resolver;
mod signal;
mod stages;
mod template;
