//! The way in, in two halves: a result is [`Prepared`] (hashed, read-only, its action written beside the
//! others), then stored, alone or together with others, so that the disk is waited for once for all of them.
//!
//! Storing is: flush all at once, rename each object, rename each action last. The renames may reach the disk
//! later and in any order. A power cut before that leaves a miss: the action is not there, or speaks of an
//! object that is not; the content of both was flushed.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use tempfile::{NamedTempFile, TempPath};

use super::{Action, Slot, files};
use crate::error::{Error, io_at};
use crate::fault::point;

/// A result that only the disk's word is missing for. Dropped instead of stored it leaves a miss.
#[derive(Debug)]
#[must_use]
pub struct Prepared {
    slot: Slot,
    action: Action,
    /// The action's file, without its name yet.
    beside: TempPath,
    unflushed: Vec<PathBuf>,
}

impl Prepared {
    /// `unflushed`: what of the slot's object must be flushed.
    pub(super) fn new(slot: Slot, action: Action, mut unflushed: Vec<PathBuf>) -> Result<Self, Error> {
        let folder = slot.store.root.join("actions");
        let mut beside = NamedTempFile::new_in(&folder).map_err(io_at(&folder))?;
        beside.write_all(action.to_text().as_bytes()).map_err(io_at(beside.path()))?;
        point("commit: written");
        let beside = beside.into_temp_path();
        unflushed.push(beside.to_path_buf());
        Ok(Self { slot, action, beside, unflushed })
    }

    /// Stores one result. From here on it can be used; [`Rest::finish`] is for after it was told.
    ///
    /// # Errors
    /// If it cannot be stored: a full disk. The store is as before.
    pub fn store(self) -> Result<(Action, Rest), Error> {
        let (mut actions, rest) = Self::store_all(vec![self])?;
        Ok((actions.remove(0), rest))
    }

    /// Stores several results of one store. Gives their actions in the same order.
    ///
    /// # Errors
    /// If one of them cannot be stored. Those before it are, the others are not.
    pub fn store_all(results: Vec<Self>) -> Result<(Vec<Action>, Rest), Error> {
        files::flush(results.iter().flat_map(|one| &one.unflushed))?;
        point("commit: flushed");
        let (mut actions, mut rest) = (Vec::new(), Rest::default());
        for Self { slot, action, beside, .. } in results {
            slot.lock.check()?;
            let shelf = slot.store.objects.adopt(&slot.attempt, &action.object)?;
            point("commit: the object is in");
            let path = slot.store.action_path(&slot.key);
            beside.persist(&path).map_err(|error| Error::io(&path, &error.error))?;
            point("commit: the action is in");
            rest.folders.extend([shelf, slot.store.root.join("actions")]);
            rest.slots.push(slot);
            actions.push(action);
        }
        Ok((actions, rest))
    }
}

/// What is left to do when results are stored. Their keys' locks are held until it is done.
#[derive(Debug, Default)]
#[must_use]
pub struct Rest {
    slots: Vec<Slot>,
    folders: BTreeSet<PathBuf>,
}

impl Rest {
    /// Makes the renames durable and removes the work folders, which are of no more use.
    ///
    /// # Errors
    /// If the disk says no. The results are stored all the same, as far as anyone can see by now.
    pub fn finish(self) -> Result<(), Error> {
        files::flush(&self.folders)?;
        point("commit: renames flushed");
        self.slots.iter().try_for_each(|slot| files::remove_tree(&slot.work()))
    }
}
