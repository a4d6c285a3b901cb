//! What a parameter is called, what it may be, and what it is when left out.

/// One parameter of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its key in the stage's table.
    pub name: &'static str,
    /// What it may be.
    pub ty: Type,
    /// What it is when left out.
    pub default: Default,
    /// One line: meaning, unit, source.
    pub doc: &'static str,
    /// Whether it is part of the key.
    pub effect: Effect,
    /// Whether it may name a local file or folder, whose content then belongs to the key.
    pub path: bool,
}

impl Param {
    /// A parameter that changes results (the usual case).
    #[must_use]
    pub const fn new(name: &'static str, ty: Type, default: Default, doc: &'static str) -> Self {
        Self { name, ty, default, doc, effect: Effect::Result, path: false }
    }

    /// The same parameter, kept out of the key: it must not change a single output byte.
    #[must_use]
    pub const fn cosmetic(mut self) -> Self {
        self.effect = Effect::Cosmetic;
        self
    }

    /// The same parameter, whose text may be a path on this machine. Where such a path exists, the
    /// runner puts the digest of its content into the key in place of the text, so that an edited file is
    /// a new run and a moved one is not. Of the text only a file's own name stays: the folder that it
    /// lies in must not change a single output byte.
    #[must_use]
    pub const fn local_path(mut self) -> Self {
        self.path = true;
        self
    }
}

/// What a value may be. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A finite number; a whole number in TOML is taken as well.
    Float {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
    },
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of one type.
    List(&'static Type),
    /// A table with free keys, of one type.
    Table(&'static Type),
    /// The first of these types that fits.
    AnyOf(&'static [Type]),
}

impl Type {
    /// A whole number of at least `min`.
    #[must_use]
    pub const fn at_least(min: i64) -> Self {
        Self::Int { min, max: i64::MAX }
    }

    /// A share or probability: 0 ≤ x ≤ 1.
    #[must_use]
    pub const fn fraction() -> Self {
        Self::Float { min: 0.0, max: 1.0 }
    }

    /// A finite number of at least `min`.
    #[must_use]
    pub const fn float_from(min: f64) -> Self {
        Self::Float { min, max: f64::MAX }
    }
}

/// What a parameter is when left out.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// It must be given.
    Required,
    /// It is absent from the resolved config.
    Absent,
    /// This truth value.
    Bool(bool),
    /// This whole number.
    Int(i64),
    /// This number.
    Float(f64),
    /// This text.
    Text(&'static str),
    /// This list of texts.
    Texts(&'static [&'static str]),
    /// This list of whole numbers.
    Ints(&'static [i64]),
}

/// Whether a parameter belongs to what makes two runs the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It may change results: part of the key.
    Result,
    /// It cannot change results (log intervals, thread counts): not in the key.
    Cosmetic,
}
