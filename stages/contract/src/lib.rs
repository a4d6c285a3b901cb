//! The contract between the runner and a stage kind.
//!
//! A stage sees paths in, an empty folder to fill, and a way to tell how it goes. It never sees the
//! graph, the store or another stage; the runner never sees a tensor. Everything that both sides
//! must agree on is in this crate, and nothing else is.
//!
//! * [`Stage`]: one per kind, listed once in the binary's registry; [`Job`]: one validated run of it.
//! * [`Param`], [`Input`]: what a kind takes. Validation, `pipe stages` and the JSON Schema all come
//!   from these lists.
//! * [`Config`]: the resolved parameters; [`Context`]: what a running job is given.
//! * [`Event`]: what a running job tells; [`StageError`]: how it says no.
#![forbid(unsafe_code)]

mod config;
mod context;
mod error;
mod event;
mod param;
mod stage;
mod table;

pub use config::Config;
pub use context::{Artifact, Context, Inputs, Reporter};
pub use error::{ConfigError, ErrorKind, StageError, at};
pub use event::Event;
pub use param::{Default, Effect, Param, Type};
pub use stage::{Input, Job, Many, Moving, Pool, Ports, Stage};
pub use table::Table;
