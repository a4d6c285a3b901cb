//! `pipe`: declarative, cached, resumable machine-learning experiments.
//!
//! The runner and the command line. It knows stage kinds through `contract::Stage` only: no tensor, no
//! backend, and no kind's name outside [`registry`].
//!
//! * [`pipeline`]: TOML text → stage instances; [`graph`]: what needs what.
//! * [`registry`]: the one list of stage kinds; [`schema`]: the JSON Schema generated from it.
//! * [`cli`]: the commands; [`error`]: how they say no.
#![forbid(unsafe_code)]

pub mod cli;
pub mod error;
pub mod graph;
pub mod pipeline;
pub mod registry;
pub mod schema;
