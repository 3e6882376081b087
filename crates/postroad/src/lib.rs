//! The binary: command line, configuration and composition of the roles.
//!
//! It is a library too, so that tests can generate the reference pages.

pub mod certificate;
pub mod classify;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod config;
pub mod demo;
pub mod dev;
pub mod doctor;
pub mod metrics;
pub mod operator;
pub mod output;
pub mod pod;
pub mod policy;
pub mod roles;
pub mod route;
pub mod sections;
pub mod send;
pub mod support;

mod components;
mod http;
mod nodes;
mod resolver;
mod signal;
mod template;
mod user;
