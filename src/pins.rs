//! `pipe.lock`: what moving references meant when they were first used.
//!
//! A branch means another commit tomorrow; a key must not hold it. So a kind names the reference
//! ([`contract::Stage::moving`]), it is settled once, and its meaning stands in `pipe.lock` beside the
//! pipeline file, for all pipelines of that folder, to be put under version control with them. The
//! parameter takes the meaning before there is a key: a pin that moves is a new run, and a commit that is
//! written in full is the same run as a branch that is pinned to it. It does not know what a reference is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use contract::{Context, Event, Inputs, Reporter};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Exit, io_at};
use crate::pipeline::{Instance, Pipeline};

/// The file's name.
const NAME: &str = "pipe.lock";

/// The layout that this program writes.
const VERSION: i64 = 1;

const HEAD: &str = "\
# What branches and tags meant when they were first used; written by `pipe run`. Keep it with the
# pipeline files. `pipe run PIPELINE --update STAGE` moves a pin; a line that is removed is asked for anew.
";

/// The pins of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    path: PathBuf,
    pins: BTreeMap<String, String>,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    version: i64,
    #[serde(default)]
    pins: BTreeMap<String, String>,
}

/// A pin that was set or moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The reference.
    pub name: String,
    /// What it meant, if it was pinned.
    pub before: Option<String>,
    /// What it means from now on.
    pub now: String,
}

impl Pins {
    /// Reads the pins beside the file `pipeline`; none if there is no `pipe.lock`.
    ///
    /// # Errors
    /// If it cannot be read, or is not of the form that [`Pins::settle`] writes.
    pub fn beside(pipeline: &Path) -> Result<Self, Error> {
        Self::read(folder(pipeline).join(NAME))
    }

    fn read(path: PathBuf) -> Result<Self, Error> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, pins: BTreeMap::new() });
            }
            Err(error) => return Err(io_at(&path)(error)),
        };
        let wrong = |why: String| {
            Error::usage(format!("`{}`: {why}", path.display()))
                .hint("mend it, or remove it to have every branch and tag pinned anew")
        };
        let Layout { version, pins } =
            toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        if version != VERSION {
            return Err(wrong(format!("its layout has version {version}, and this program knows {VERSION}")));
        }
        Ok(Self { path, pins })
    }

    /// Puts what is pinned in the place of what moves.
    pub fn apply(&self, pipeline: &mut Pipeline) {
        for instance in &mut pipeline.instances {
            let Some(moving) = instance.kind.moving(&instance.config) else { continue };
            if let Some(meaning) = self.pins.get(&moving.name) {
                instance.config.0.insert(moving.param.to_owned(), meaning.as_str().into());
            }
        }
    }

    /// Settles what moves in `instances` and is not pinned, or is to be moved. Gives what has changed;
    /// `tell` takes what is said meanwhile. Runs over the same folder wait for each other.
    ///
    /// # Errors
    /// If a reference cannot be settled, or the file not be written. What was settled before is kept.
    pub fn settle<'a>(
        &mut self,
        instances: impl IntoIterator<Item = (&'a Instance, bool)>,
        tell: &(dyn Fn(&Instance, &str) + Sync),
    ) -> Result<Vec<Moved>, Error> {
        let wanted: Vec<_> = instances
            .into_iter()
            .filter_map(|(instance, moves)| Some((instance, instance.kind.moving(&instance.config)?, moves)))
            .filter(|(_, moving, moves)| *moves || !self.pins.contains_key(&moving.name))
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let folder = folder(&self.path);
        let lock = File::open(folder).map_err(io_at(folder))?;
        // Where there are no locks, two first runs at once may ask twice; the last answer stands.
        let _ = lock.lock();
        self.pins = Self::read(self.path.clone())?.pins;
        let mut changed: Vec<Moved> = Vec::new();
        for (instance, moving, moves) in wanted {
            let settled = changed.iter().any(|moved| moved.name == moving.name);
            let before = self.pins.get(&moving.name).cloned();
            if settled || (before.is_some() && !moves) {
                continue;
            }
            let now = ask(instance, tell)?;
            if before.as_ref() == Some(&now) {
                continue;
            }
            self.pins.insert(moving.name.clone(), now.clone());
            self.write()?;
            changed.push(Moved { name: moving.name, before, now });
        }
        Ok(changed)
    }

    /// The file's text: the same pins, the same bytes.
    fn text(&self) -> String {
        let layout = Layout { version: VERSION, pins: self.pins.clone() };
        format!("{HEAD}{}", toml::to_string(&layout).expect("texts under texts are TOML"))
    }

    fn write(&self) -> Result<(), Error> {
        let fail = |error: std::io::Error| {
            let error = Error::io(&self.path, &error);
            error.hint("pins are kept beside the pipeline file: make that folder writable, or write the commit itself into the pipeline file")
        };
        let mut beside = tempfile::NamedTempFile::new_in(folder(&self.path)).map_err(fail)?;
        beside.write_all(self.text().as_bytes()).map_err(fail)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        beside.as_file().set_permissions(mode).map_err(fail)?;
        beside.as_file().sync_all().map_err(fail)?;
        beside.persist(&self.path).map_err(|error| fail(error.error))?;
        Ok(())
    }
}

/// The folder that a file lies in.
fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Asks the kind what its moving reference means.
fn ask(instance: &Instance, tell: &(dyn Fn(&Instance, &str) + Sync)) -> Result<String, Error> {
    struct Told<'a>(&'a Instance, &'a (dyn Fn(&Instance, &str) + Sync));
    impl Reporter for Told<'_> {
        fn report(&self, event: Event) {
            if let Event::Note { text } | Event::Warning { text } = event {
                (self.1)(self.0, &text);
            }
        }
    }
    let (told, stop) = (Told(instance, tell), AtomicBool::new(false));
    let ctx = Context::new(Inputs::default(), PathBuf::new(), PathBuf::new(), Vec::new(), &told, &stop);
    instance.kind.settle(&instance.config, &ctx).map_err(|error| Error {
        hint: error.hint,
        ..Error::new(Exit::Failed, format!("{}: {}", instance.id, error.message))
    })
}
