//! Copies a file or a folder of this machine. Links are followed, so that a hub cache, which is all
//! links, becomes plain files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use contract::{Context, StageError, at};

use super::checksum::{Checksum, Hashing};
use super::patterns::Patterns;

const CHUNK: usize = 1 << 20;

/// Copies `source` (of a folder only what `patterns` take) into `ctx.out()`.
pub fn copy(
    source: &Path,
    patterns: &Patterns,
    sha256: Option<&str>,
    ctx: &Context<'_>,
) -> Result<(), StageError> {
    let missing = |error: std::io::Error| {
        at(source)(error).hint("`source` is looked up from the folder in which `pipe` was started")
    };
    let kind = fs::metadata(source).map_err(missing)?;
    let mut pairs = Vec::new();
    if !kind.is_dir() {
        if !patterns.take_all() {
            return Err(StageError::new(format!(
                "`{}` is a file, so `files` and `exclude` have nothing to choose from",
                source.display()
            )));
        }
        let name = source.file_name().unwrap_or("download".as_ref());
        pairs.push((source.to_owned(), PathBuf::from(name)));
    } else if sha256.is_some() {
        let message = format!("`{}` is a folder and `sha256` belongs to one file", source.display());
        return Err(StageError::new(message)
            .hint("leave `sha256` out: a local folder's content is part of the key anyway"));
    } else {
        walk(source, Path::new(""), &mut Vec::new(), &mut pairs)?;
        let names: Vec<String> = pairs.iter().map(|(_, name)| name.to_string_lossy().into()).collect();
        for pattern in &patterns.include {
            if !names.iter().any(|name| pattern.fits(name)) {
                let message = format!("folder `{}` has no `{}`", source.display(), pattern.text);
                return Err(StageError::new(message).hint("look at `files`"));
            }
        }
        pairs.retain(|(_, name)| patterns.take(&name.to_string_lossy()));
        if pairs.is_empty() {
            return Err(StageError::new(format!("folder `{}` has no file that is wanted", source.display())));
        }
    }
    let mut total = 0;
    for (from, _) in &pairs {
        let file = fs::metadata(from).map_err(at(from))?;
        if !file.is_file() {
            return Err(StageError::new(format!("`{}` is not a file", from.display())));
        }
        total += file.len();
    }
    let mut done = 0;
    let checks: Vec<Checksum> =
        sha256.map(|digits| Checksum::Sha256(digits.to_owned())).into_iter().collect();
    for (from, name) in &pairs {
        let mut hashing = Hashing::new(&checks, None);
        copy_file(from, &ctx.out().join(name), &mut hashing, &mut done, total, ctx)?;
        hashing.check(&from.display().to_string())?;
    }
    Ok(())
}

/// All files below `folder`, in the order of their names. `parents` are the folders we are in, to
/// find links that lead back.
fn walk(
    folder: &Path,
    below: &Path,
    parents: &mut Vec<PathBuf>,
    pairs: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<(), StageError> {
    let real = folder.canonicalize().map_err(at(folder))?;
    if parents.contains(&real) {
        return Err(StageError::new(format!("folder `{}` contains itself through a link", folder.display())));
    }
    parents.push(real);
    let entries: Result<Vec<_>, _> = fs::read_dir(folder).map_err(at(folder))?.collect();
    let mut entries = entries.map_err(at(folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        if fs::metadata(&path).map_err(at(&path))?.is_dir() {
            walk(&path, &name, parents, pairs)?;
        } else {
            pairs.push((path, name));
        }
    }
    parents.pop();
    Ok(())
}

/// Copies one file and hashes it.
fn copy_file(
    from: &Path,
    to: &Path,
    hashing: &mut Hashing,
    done: &mut u64,
    total: u64,
    ctx: &Context<'_>,
) -> Result<(), StageError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let mut source = File::open(from).map_err(at(from))?;
    let mut target = File::create(to).map_err(at(to))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        if ctx.stopping() {
            return Err(StageError::cancelled());
        }
        let count = source.read(&mut buffer).map_err(at(from))?;
        if count == 0 {
            return Ok(());
        }
        target.write_all(&buffer[..count]).map_err(at(to))?;
        hashing.update(&buffer[..count]);
        *done += count as u64;
        ctx.progress(*done, total, "bytes", &[]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::download::Download;
    use crate::testing::Bench;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn a_local_file_keeps_its_name_and_is_checked() {
        let bench = Bench::new();
        let file = bench.write("rows.json", "hello");
        bench.run(&Download, json!({ "source": file, "sha256": HELLO.to_uppercase() })).unwrap();
        assert_eq!(bench.read("rows.json"), "hello");
    }

    #[test]
    fn a_wrong_sha256_names_both() {
        let bench = Bench::new();
        let file = bench.write("rows.json", "hello");
        let error = bench.run(&Download, json!({ "source": file, "sha256": "0".repeat(64) })).unwrap_err();
        assert!(error.message.contains(HELLO) && error.message.contains(&"0".repeat(64)), "{error}");
    }

    #[test]
    fn a_local_folder_is_copied_with_its_folders_and_links() {
        let bench = Bench::new();
        let file = bench.write("elsewhere", "linked");
        bench.write("model/sub/a.json", "a");
        std::os::unix::fs::symlink(file, bench.path("model/b.json")).unwrap();
        bench
            .run(&Download, json!({ "source": format!("file://{}", bench.path("model").display()) }))
            .unwrap();
        assert_eq!((bench.read("sub/a.json"), bench.read("b.json")), ("a".into(), "linked".into()));
        assert!(!bench.out("b.json").is_symlink());
    }

    #[test]
    fn only_the_named_files_of_a_folder_are_copied() {
        let bench = Bench::new();
        bench.write("model/a.json", "a");
        bench.write("model/b.json", "b");
        bench.run(&Download, json!({ "source": bench.path("model"), "files": ["b.json"] })).unwrap();
        assert!(bench.out("b.json").exists() && !bench.out("a.json").exists());
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = Bench::new().run(&Download, json!({ "source": "no/such/path" })).unwrap_err();
        assert!(error.message.contains("`no/such/path`") && error.hint.is_some(), "{error}");
    }

    #[test]
    fn a_folder_that_contains_itself_is_refused() {
        let bench = Bench::new();
        bench.write("model/a.json", "a");
        std::os::unix::fs::symlink(bench.path("model"), bench.path("model/again")).unwrap();
        let error = bench.run(&Download, json!({ "source": bench.path("model") })).unwrap_err();
        assert!(error.message.contains("contains itself"), "{error}");
    }
}
