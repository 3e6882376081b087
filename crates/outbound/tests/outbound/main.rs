//! The outbound role as a whole: between a queue that is played here and receivers that behave by script.

mod delivery;
mod lease;
mod node;
mod queue;
mod work;
