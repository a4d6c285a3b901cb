//! Files of the Hugging Face hub.
//!
//! One question gives a commit's files with their lengths and hashes (`/api/models/…/revision/…`); each
//! file is then fetched from `/…/resolve/COMMIT/…`, a few at once, and checked: sha256 for files in Git
//! LFS, git's own sha1 for the others. What lies in the cache of `huggingface_hub` is taken from there, and
//! checked as well; nothing is written to it. A moving revision is turned into a commit by [`Hub::commit`],
//! before there is a key.
//!
//! The crate `hf-hub` is not used, since it can neither resume nor verify. Version 1.1 opens
//! `BLOB.incomplete` anew at every start and compares no hash (`repository/download.rs`), on top of tokio,
//! reqwest and hf-xet. Version 0.5 appends to a part without looking at its version, knows no `Retry-After`,
//! and compares no hash either (`api/sync.rs`). Both write to the shared cache, and neither can be
//! asked to stop.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use contract::{Context, StageError, at};

use super::checksum::Checksum;
use super::http::Client;
use super::meter::Meter;
use super::patterns::Patterns;
use super::transfer::{Transfer, Wanted, publish};
use listing::{Cached, Entry, Listing};
use place::Place;
use refusal::Asked;
pub use repository::Repository;
use repository::{is_commit, is_revision};

mod choose;
mod listing;
pub mod place;
mod refusal;
pub mod repository;
#[cfg(test)]
mod tests;

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// How many files are fetched at once.
const WORKERS: usize = 4;

/// The hub, and how it is asked.
pub struct Hub {
    pub place: Place,
    pub client: Client,
}

/// What is wanted of a repository.
pub struct Request<'a> {
    pub repository: &'a Repository,
    pub revision: &'a str,
    pub patterns: &'a Patterns,
    pub sha256: Option<&'a str>,
}

/// A file to fetch, and where it lies on this machine, if it does.
struct Item {
    entry: Entry,
    wanted: Wanted,
    cached: Option<PathBuf>,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Result<Self, StageError> {
        Ok(Self { place: Place::from_env()?, client: Client::new() })
    }

    /// The commit that `revision` means now.
    pub fn commit(
        &self,
        repository: &Repository,
        revision: &str,
        meter: &Meter<'_>,
    ) -> Result<String, StageError> {
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        if self.place.offline {
            return self.cached(repository).and_then(|cached| cached.commit(revision)).ok_or_else(|| {
                self.not_cached(&format!("what `{revision}` of `{}` means", repository.name()))
            });
        }
        Ok(self.ask(repository, revision, false, meter)?.commit)
    }

    /// Fetches what is wanted into `ctx.out()`.
    pub fn fetch(&self, request: &Request<'_>, ctx: &Context<'_>) -> Result<(), StageError> {
        let Request { repository, revision, .. } = *request;
        let quiet = Meter::new(ctx, 0);
        let commit = self.commit(repository, revision, &quiet)?;
        let items = if self.place.offline {
            self.offline_items(request, &commit)?
        } else {
            self.items(request, &commit, &quiet)?
        };
        ctx.provenance("commit", &commit);
        ctx.provenance("hub", if self.place.offline { "the cache" } else { self.place.endpoint.as_str() });
        check_disk(&items, ctx)?;
        let total = items.iter().map(|item| item.wanted.size).sum::<Option<u64>>().unwrap_or(0);
        let meter = Meter::new(ctx, total);
        let (first, rest): (Vec<Item>, Vec<Item>) =
            items.into_iter().partition(|item| item.entry.path.ends_with(".safetensors.index.json"));
        let mut parts = self.fetch_all(request, &commit, &first, ctx.work(), &meter)?;
        check_shards(repository, &first, &parts, &rest)?;
        parts.extend(self.fetch_all(request, &commit, &rest, ctx.work(), &meter)?);
        for (part, item) in parts.iter().zip(first.iter().chain(&rest)) {
            publish(part, &ctx.out().join(&item.wanted.name))?;
        }
        Ok(())
    }

    fn cached(&self, repository: &Repository) -> Option<Cached> {
        Some(Cached::new(self.place.cache.as_ref()?, repository))
    }

    fn not_cached(&self, what: &str) -> StageError {
        let cache =
            self.place.cache.as_ref().map_or_else(|| "(none)".to_owned(), |path| path.display().to_string());
        StageError::new(format!("HF_HUB_OFFLINE is set, and {what} is not in the hub's cache `{cache}`"))
            .hint("unset HF_HUB_OFFLINE, or point HF_HOME to a cache that holds it")
    }

    /// Asks the hub about a revision, with lengths and hashes if `blobs`.
    fn ask(
        &self,
        repository: &Repository,
        revision: &str,
        blobs: bool,
        meter: &Meter<'_>,
    ) -> Result<Listing, StageError> {
        let Repository { id, .. } = repository;
        if !is_revision(revision) {
            return Err(StageError::new(format!("`{revision}` is no name of a branch, tag or commit")));
        }
        let query = if blobs { "?blobs=true" } else { "" };
        let revision_in_url = encoded(revision, "");
        let url = format!(
            "{}/api/{}/{id}/revision/{revision_in_url}{query}",
            self.place.endpoint,
            repository.section()
        );
        let asked = Asked { repository, revision, file: None, place: &self.place };
        let text = self
            .client
            .text(&url, self.place.token.as_ref(), meter)
            .map_err(|failure| asked.explain(failure))?;
        Listing::parse(&text, &url)
    }

    /// What is wanted, as the hub tells it.
    fn items(&self, request: &Request<'_>, commit: &str, meter: &Meter<'_>) -> Result<Vec<Item>, StageError> {
        let repository = request.repository;
        let listing = self.ask(repository, commit, true, meter)?;
        let cached = self.cached(repository);
        let item = |mut entry: Entry| {
            let wanted = self.wanted(request, commit, &entry);
            if entry.size.is_none() || entry.check.is_none() {
                // A mirror may not tell lengths and hashes in its list, but with each file.
                let head = self.client.head(&wanted.url, self.place.token.as_ref(), meter);
                let asked =
                    Asked { repository, revision: commit, file: Some(&entry.path), place: &self.place };
                let head = head.map_err(|failure| asked.explain(failure))?;
                entry.size = entry.size.or(head.size);
                entry.check = entry.check.or_else(|| Checksum::from_tag(&head.tag?));
                if entry.check.is_none() {
                    meter.warn(format!(
                        "the hub tells no hash of `{}`; only its length is checked",
                        entry.path
                    ));
                }
            }
            let cached = entry.check.as_ref().and_then(|check| cached.as_ref()?.blob(check));
            Ok(Item { wanted: self.wanted(request, commit, &entry), entry, cached })
        };
        choose::choose(repository, listing.files, request.patterns)?.into_iter().map(item).collect()
    }

    /// What is wanted, as far as the cache holds it.
    fn offline_items(&self, request: &Request<'_>, commit: &str) -> Result<Vec<Item>, StageError> {
        let repository = request.repository;
        let what = || self.not_cached(&format!("`{}` at {commit}", repository.name()));
        let snapshot = self.cached(repository).ok_or_else(what)?.snapshot(commit)?;
        if snapshot.is_empty() {
            return Err(what());
        }
        let files = snapshot.iter().map(|(entry, _)| entry.clone()).collect();
        let chosen = choose::choose(repository, files, request.patterns);
        let chosen = chosen.map_err(|error| StageError {
            message: format!("{} in the hub's cache", error.message),
            ..error
        })?;
        let item = |entry: Entry| {
            let place =
                snapshot.iter().find(|(other, _)| other.path == entry.path).map(|(_, place)| place.clone());
            Item { wanted: self.wanted(request, commit, &entry), entry, cached: place }
        };
        Ok(chosen.into_iter().map(item).collect())
    }

    fn wanted(&self, request: &Request<'_>, commit: &str, entry: &Entry) -> Wanted {
        let Repository { id, file, .. } = request.repository;
        let prefix = request.repository.prefix();
        let name = match file {
            Some(file) => file.rsplit('/').next().unwrap_or(file),
            None => &entry.path,
        };
        let mut checks: Vec<Checksum> = entry.check.iter().cloned().collect();
        checks.extend(request.sha256.map(|digits| Checksum::Sha256(digits.to_owned())));
        Wanted {
            url: format!(
                "{}/{prefix}{id}/resolve/{commit}/{}",
                self.place.endpoint,
                encoded(&entry.path, "/")
            ),
            name: name.to_owned(),
            size: entry.size,
            checks,
            fixed: true,
        }
    }

    /// Fetches all items into `work`, a few at once. Gives their places in the same order.
    fn fetch_all(
        &self,
        request: &Request<'_>,
        commit: &str,
        items: &[Item],
        work: &Path,
        meter: &Meter<'_>,
    ) -> Result<Vec<PathBuf>, StageError> {
        let queue: Mutex<VecDeque<usize>> = Mutex::new((0..items.len()).collect());
        let parts: Mutex<Vec<Option<PathBuf>>> = Mutex::new(vec![None; items.len()]);
        let failure: Mutex<Option<StageError>> = Mutex::new(None);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let worker = || {
            while let Some(number) = next() {
                match self.fetch_one(request, commit, &items[number], work, meter) {
                    Ok(part) => parts.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(part),
                    Err(error) => {
                        // The first failure is the cause; the others were only told to stop.
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        return meter.give_up();
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(items.len()) {
                scope.spawn(worker);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(parts.into_iter().map(|part| part.expect("every item was fetched")).collect())
    }

    fn fetch_one(
        &self,
        request: &Request<'_>,
        commit: &str,
        item: &Item,
        work: &Path,
        meter: &Meter<'_>,
    ) -> Result<PathBuf, StageError> {
        if let Some(place) = &item.cached
            && let Some(part) = self.take(&item.wanted, place, work, meter)?
        {
            return Ok(part);
        }
        let (repository, file) = (request.repository, Some(item.entry.path.as_str()));
        let asked = Asked { repository, revision: commit, file, place: &self.place };
        let fetched = self.client.fetch(&item.wanted, self.place.token.as_ref(), work, meter);
        fetched.map_err(|failure| asked.explain(failure))
    }

    /// Takes a file from the cache; `None` if it is damaged there and can be had elsewhere.
    fn take(
        &self,
        wanted: &Wanted,
        place: &Path,
        work: &Path,
        meter: &Meter<'_>,
    ) -> Result<Option<PathBuf>, StageError> {
        let mut transfer = Transfer::open(wanted, work, meter)?;
        if !transfer.is_complete() {
            transfer.reset()?;
            let mut file = fs::File::open(place).map_err(at(place))?;
            transfer.receive(&mut file)?.map_err(at(place))?;
        }
        let damaged = match transfer.check() {
            Ok(()) => return transfer.finish().map(Some),
            Err(error) => error,
        };
        let message = format!("`{}` in the hub's cache is damaged: {}", place.display(), damaged.message);
        if self.place.offline {
            return Err(StageError::new(message).hint("remove it there and download it anew"));
        }
        meter.warn(message + "; it is fetched anew");
        Ok(None)
    }
}

/// Says no before it starts where the disk cannot hold it all.
fn check_disk(items: &[Item], ctx: &Context<'_>) -> Result<(), StageError> {
    let wanted: u64 = items.iter().filter_map(|item| item.wanted.size).sum();
    let entries = fs::read_dir(ctx.work()).map_err(at(ctx.work()))?;
    let there: u64 = entries.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
    // A file system that cannot be asked will say no by itself.
    let Ok(disk) = rustix::fs::statvfs(ctx.work()) else { return Ok(()) };
    let (needed, free) = (wanted.saturating_sub(there), disk.f_bavail.saturating_mul(disk.f_frsize));
    if needed <= free {
        return Ok(());
    }
    let message = format!(
        "the download needs {} more, and the disk that holds `{}` has {} left",
        size(needed),
        ctx.work().display(),
        size(free)
    );
    Err(StageError::new(message)
        .hint("free some space (`pipe gc`), or choose a store on a larger disk with `--store DIR`"))
}

/// `13.5 GB`
fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = bytes as f64;
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}

/// Every shard that an index names must be there, and is better missed before the others are fetched.
fn check_shards(
    repository: &Repository,
    indices: &[Item],
    parts: &[PathBuf],
    others: &[Item],
) -> Result<(), StageError> {
    for (index, part) in indices.iter().zip(parts) {
        let text = fs::read_to_string(part).map_err(at(part))?;
        for shard in choose::shards(&index.entry.path, &text)? {
            if !others.iter().any(|item| item.entry.path == shard) {
                let index = &index.entry.path;
                let message = format!(
                    "`{index}` names the shard `{shard}`, which is not among the files of `{repository}` that are fetched"
                );
                return Err(StageError::new(message)
                    .hint("take it in with `files`, or leave the index out with `exclude`; if the repository lacks it, choose another `revision`"));
            }
        }
    }
    Ok(())
}

/// A text as a part of an address; what `keep` holds stays as it is.
fn encoded(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain =
            byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.as_bytes().contains(&byte);
        if plain {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}
