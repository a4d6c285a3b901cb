//! One file on its way: what has arrived lies in the work folder, checked before it is used.
//!
//! `<work>/<name>.part` holds the bytes; beside it `<name>.tag` keeps the server's ETag (or date), so that
//! a resumed transfer (`Range`, `If-Range`) never joins halves of two versions. A complete and checked
//! part stays where it is and is linked into the output folder: should the runner be killed before the
//! output is stored, nothing has to be fetched again.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use contract::{StageError, at};
use ureq::Body;
use ureq::http::Response;

use super::checksum::{Checksum, Hashing};
use super::meter::Meter;

const CHUNK: usize = 1 << 18;

/// A file to fetch.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where it is. Stands in messages.
    pub url: String,
    /// Where it goes, below the output folder.
    pub name: String,
    /// How long it is, if that is known beforehand.
    pub size: Option<u64>,
    /// What it must hash to.
    pub checks: Vec<Checksum>,
    /// Whether the address always serves these bytes, so that no tag is needed to resume.
    pub fixed: bool,
}

/// What has arrived of a file.
pub struct Transfer<'a> {
    pub wanted: &'a Wanted,
    pub done: u64,
    part: PathBuf,
    tag: PathBuf,
    hashing: Hashing,
    meter: &'a Meter<'a>,
}

impl<'a> Transfer<'a> {
    /// Takes up what an earlier run left in the folder `work`.
    pub fn open(wanted: &'a Wanted, work: &Path, meter: &'a Meter<'a>) -> Result<Self, StageError> {
        let base = work.join(wanted.name.replace('%', "%25").replace('/', "%2F"));
        let (part, tag) = (base.with_added_extension("part"), base.with_added_extension("tag"));
        let hashing = Hashing::new(&wanted.checks, wanted.size);
        let mut transfer = Self { wanted, done: 0, part, tag, hashing, meter };
        let Ok(mut file) = File::open(&transfer.part) else { return Ok(transfer) };
        let found = file.metadata().map_err(at(&transfer.part))?.len();
        if wanted.size.is_some_and(|size| found > size) {
            transfer.reset()?;
            return Ok(transfer);
        }
        if transfer.hashing.is_empty() {
            transfer.done = found;
            meter.advance(found);
            return Ok(transfer);
        }
        let mut buffer = vec![0; CHUNK];
        loop {
            if meter.stopping() {
                return Err(StageError::cancelled());
            }
            let count = file.read(&mut buffer).map_err(at(&transfer.part))?;
            if count == 0 {
                return Ok(transfer);
            }
            transfer.hashing.update(&buffer[..count]);
            transfer.done += count as u64;
            meter.advance(count as u64);
        }
    }

    /// Whether all of it is there, as far as its length is known.
    pub fn is_complete(&self) -> bool {
        self.wanted.size == Some(self.done) && (self.done > 0 || self.part.exists())
    }

    /// What the server called the version that has arrived in part.
    pub fn version(&self) -> Option<String> {
        fs::read_to_string(&self.tag).ok().filter(|tag| !tag.is_empty())
    }

    /// Keeps what the server calls this version of the file.
    pub fn remember(&self, response: &Response<Body>) -> Result<(), StageError> {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        // A weak ETag does not vouch for bytes (RFC 9110, section 13.1.5).
        let tag = header("etag").filter(|tag| !tag.starts_with("W/")).or_else(|| header("last-modified"));
        fs::write(&self.tag, tag.unwrap_or_default()).map_err(at(&self.tag))
    }

    /// Forgets what has arrived.
    pub fn reset(&mut self) -> Result<(), StageError> {
        File::create(&self.part).map_err(at(&self.part))?;
        self.hashing = Hashing::new(&self.wanted.checks, self.wanted.size);
        self.meter.retreat(self.done);
        self.done = 0;
        Ok(())
    }

    /// Takes the next bytes until `reader` ends. An error of `reader` itself is the inner one.
    pub fn receive(&mut self, reader: &mut impl Read) -> Result<Result<(), std::io::Error>, StageError> {
        let mut file =
            OpenOptions::new().append(true).create(true).open(&self.part).map_err(at(&self.part))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.meter.stopping() {
                return Err(StageError::cancelled());
            }
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(Ok(())),
                Ok(count) => count,
                Err(error) => return Ok(Err(error)),
            };
            file.write_all(&buffer[..count]).map_err(at(&self.part))?;
            self.hashing.update(&buffer[..count]);
            self.done += count as u64;
            self.meter.advance(count as u64);
        }
    }

    /// Checks what has arrived; if it is not what was asked for, it is gone.
    pub fn check(&mut self) -> Result<(), StageError> {
        let checked = self.hashing.check(&self.wanted.url);
        if checked.is_err() {
            self.reset()?;
            fs::remove_file(&self.part).map_err(at(&self.part))?;
        }
        checked
    }

    /// The complete file, still in the work folder.
    pub fn finish(self) -> Result<PathBuf, StageError> {
        if !self.part.exists() {
            File::create(&self.part).map_err(at(&self.part))?;
        }
        Ok(self.part)
    }
}

/// Puts a complete file of the work folder into the output folder.
pub fn publish(part: &Path, target: &Path) -> Result<(), StageError> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    if fs::hard_link(part, target).is_err() {
        // The two folders may lie on different file systems, or on one without links.
        fs::copy(part, target).map_err(at(target))?;
    }
    Ok(())
}
