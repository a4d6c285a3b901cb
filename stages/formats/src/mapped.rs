//! A file's bytes without reading it: pages come as they are touched, and the system takes them back.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::Result;
use crate::error::at;

/// Maps a file.
#[expect(unsafe_code, reason = "a map is the only way to read a file larger than the memory at any place")]
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(at(path))?;
    // SAFETY: the map is private to this process and read-only. A file that another program shortens
    // meanwhile ends the process with SIGBUS, as any map does; stages read stored objects, which are
    // never changed in place.
    unsafe { Mmap::map(&file) }.map_err(at(path))
}
