//! The oracle judges: good, bad and unknown histories by hand, random legal ones, and mutations of those.

mod build;
mod legal;
mod mutations;
mod program;
mod tables;
mod text;
