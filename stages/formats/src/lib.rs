//! What other programs' files look like: Hugging Face configs and safetensors, PEFT adapters,
//! bitsandbytes' NF4 and 8-bit weights, Alpaca JSON, and the small files that the stages hand to each other.
//!
//! Every byte from outside enters through here, so every reader checks before it believes: sizes
//! against the file, shapes against the config, names against what is understood. A file that is
//! not understood is refused by the name of what was not; it is never half-read.
//!
//! * [`config`]: `config.json` of the Llama family. [`weights`]: safetensors, shards, index.
//! * [`nf4`], [`int8`]: the codes of bitsandbytes and their serialized layouts; [`packed`]: either. [`adapter`]: a
//!   PEFT folder.
//! * [`alpaca`]: rows and prompt templates. [`example`], [`rows`]: rows of any form, from JSON, JSON lines and
//!   Parquet. [`template`]: how they become text. [`split`]: the held-out rows of `datasets`.
//! * [`estimate`]: the memory that training takes.
//! * [`tokenizer`]: `tokenizer.json`. [`tokens`], [`run`]: what `tokenize` and `train` write for the stages after them.
//!
//! It does not know tensors of a backend, stages or the runner.
#![deny(unsafe_code)]

pub mod adapter;
pub mod alpaca;
pub mod config;
mod dtype;
mod error;
pub mod estimate;
pub mod example;
pub mod int8;
mod json;
mod mapped;
pub mod nf4;
pub mod packed;
pub mod rows;
pub mod run;
pub mod split;
pub mod template;
pub mod tokenizer;
pub mod tokens;
pub mod weights;

pub use dtype::Dtype;
pub use error::Error;

/// What every reader and writer here returns.
pub type Result<T> = std::result::Result<T, Error>;
