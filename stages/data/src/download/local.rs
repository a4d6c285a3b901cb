//! Copies a file or a folder of this machine. Links are followed, so that a hub cache, which is all
//! links, becomes plain files.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use contract::{Context, StageError, at};
use sha2::{Digest, Sha256};

use super::check_sha256;

const CHUNK: usize = 1 << 20;

/// Copies `source` (of a folder only `files`, or all) into `ctx.out()`.
pub fn copy(
    source: &Path,
    files: &[String],
    sha256: Option<&str>,
    ctx: &Context<'_>,
) -> Result<(), StageError> {
    let missing = |error: std::io::Error| {
        at(source)(error).hint("`source` is looked up from the folder in which `pipe` was started")
    };
    let kind = fs::metadata(source).map_err(missing)?;
    let mut pairs = Vec::new();
    if !kind.is_dir() {
        if !files.is_empty() {
            return Err(StageError::new(format!(
                "`{}` is a file, so `files` has nothing to choose from",
                source.display()
            )));
        }
        let name = source.file_name().unwrap_or("download".as_ref());
        pairs.push((source.to_owned(), PathBuf::from(name)));
    } else if sha256.is_some() {
        let message = format!("`{}` is a folder and `sha256` belongs to one file", source.display());
        return Err(StageError::new(message)
            .hint("leave `sha256` out: a local folder's content is part of the key anyway"));
    } else if files.is_empty() {
        walk(source, Path::new(""), &mut Vec::new(), &mut pairs)?;
        if pairs.is_empty() {
            return Err(StageError::new(format!("folder `{}` is empty", source.display())));
        }
    } else {
        pairs.extend(files.iter().map(|name| (source.join(name), PathBuf::from(name))));
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
    for (from, name) in &pairs {
        let digest = copy_file(from, &ctx.out().join(name), sha256.is_some(), &mut done, total, ctx)?;
        if let Some(digest) = digest {
            check_sha256(&from.display().to_string(), sha256, &digest)?;
        }
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

/// Copies one file; its sha256, if wanted.
fn copy_file(
    from: &Path,
    to: &Path,
    hash: bool,
    done: &mut u64,
    total: u64,
    ctx: &Context<'_>,
) -> Result<Option<[u8; 32]>, StageError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let mut source = File::open(from).map_err(at(from))?;
    let mut target = File::create(to).map_err(at(to))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        if ctx.stopping() {
            return Err(StageError::cancelled());
        }
        let count = source.read(&mut buffer).map_err(at(from))?;
        if count == 0 {
            return Ok(hash.then(|| sha256.finalize().into()));
        }
        target.write_all(&buffer[..count]).map_err(at(to))?;
        if hash {
            sha256.update(&buffer[..count]);
        }
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
