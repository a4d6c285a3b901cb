//! `pipe`: declarative, cached, resumable machine-learning experiments.
//!
//! The runner and the command line. It knows stage kinds through `contract::Stage` only: no tensor, no
//! backend, and no kind's name outside [`registry`].
//!
//! * [`pipeline`]: TOML text → stage instances; [`graph`]: what needs what.
//! * [`key`]: what makes two runs the same; [`store`]: results by key; [`digest`]: content by hash;
//!   [`remote`]: a store elsewhere that several machines share.
//! * [`schedule`]: what comes next; [`plan`]: the same without doing it, [`preview`]: what stages
//!   say beforehand; [`runner`]: doing it.
//! * [`executor`]: a stage as a child process; [`exec`]: that child's side; [`progress`]: telling.
//! * [`recorded`]: a run with what the store knows of it; [`measured`]: the figures in outputs;
//!   [`compare`]: two runs; [`report`]: one run as one HTML file.
//! * [`registry`]: the one list of stage kinds; [`schema`]: the JSON Schema generated from it.
//! * [`cli`]: the commands; [`error`]: how they say no; [`fault`]: kills on demand, for the tests.
#![forbid(unsafe_code)]

pub mod cli;
pub mod compare;
pub mod digest;
pub mod error;
pub mod exec;
pub mod executor;
pub mod fault;
pub mod graph;
pub mod key;
pub mod measured;
pub mod pins;
pub mod pipeline;
pub mod plan;
pub mod preview;
pub mod progress;
pub mod recorded;
pub mod registry;
pub mod remote;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod schema;
pub mod store;
