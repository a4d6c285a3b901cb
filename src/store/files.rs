//! Durable files: written beside, flushed, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, io_at};
use crate::fault::point;

/// Flushes a folder's own entries, so that a rename or a new name in it survives a power cut.
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(io_at(folder))
}

/// Flushes files and folders at the same time, so that the disk's journal writes once for many.
pub fn flush<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), Error> {
    const AT_ONCE: usize = 64;
    let one = |path: &&PathBuf| File::open(path).and_then(|file| file.sync_all()).map_err(io_at(path));
    let paths: Vec<&PathBuf> = paths.into_iter().collect();
    if let [path] = &*paths {
        return one(path);
    }
    let share = paths.len().div_ceil(AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            paths.chunks(share).map(|some| scope.spawn(move || some.iter().try_for_each(one))).collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("flushing does not panic"));
        results.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Makes `path` hold exactly `bytes`, at once and durably: a reader sees the old content or the new.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().expect("a file in the store has a folder");
    fs::create_dir_all(folder).map_err(io_at(folder))?;
    point("write: before");
    let mut beside = tempfile::NamedTempFile::new_in(folder).map_err(io_at(folder))?;
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    beside.write_all(half).map_err(io_at(path))?;
    point("write: half written");
    beside.write_all(rest).map_err(io_at(path))?;
    point("write: written");
    beside.as_file().sync_all().map_err(io_at(path))?;
    point("write: flushed");
    beside.persist(path).map_err(|error| Error::io(path, &error.error))?;
    point("write: renamed");
    sync_folder(folder)?;
    point("write: folder flushed");
    Ok(())
}

/// The same without waiting for the disk: for what is advice, and good to lose.
pub fn write_quick(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().expect("a file in the store has a folder");
    point("advice: before");
    let mut beside = tempfile::NamedTempFile::new_in(folder).map_err(io_at(folder))?;
    beside.write_all(bytes).map_err(io_at(path))?;
    point("advice: written");
    beside.persist(path).map_err(|error| Error::io(path, &error.error))?;
    point("advice: renamed");
    Ok(())
}

/// Removes a folder and everything in it, also where its files are read-only. Gone is fine.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    point("removal: before");
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(path, &error)),
        _ => {}
    }
    point("removal: after");
    Ok(())
}
