//! What a file must hash to, computed from the bytes as they stream by.
//!
//! Two kinds: the sha256 of the content (a user's, or that of a file in Git LFS), and the name that git
//! gives to a content: the sha1 of `blob SIZE\0` and the content.

use std::fmt::Write as _;

use contract::StageError;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A hash in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Of the content.
    Sha256(String),
    /// As git names the content.
    GitBlob(String),
}

impl Checksum {
    /// The checksum that an entity tag of the hub, or the name of a file in its cache, is: 64 digits for
    /// a file in Git LFS, 40 for one in git itself.
    pub fn from_tag(tag: &str) -> Option<Self> {
        let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let hexadecimal = tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match tag.len() {
            64 if hexadecimal => Some(Self::Sha256(tag)),
            40 if hexadecimal => Some(Self::GitBlob(tag)),
            _ => None,
        }
    }

    /// The digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::GitBlob(_) => "git's sha1",
        }
    }
}

enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

/// Hashes a file against all that it must hash to.
pub struct Hashing(Vec<(Checksum, Hasher)>);

impl Hashing {
    /// Of a file of `size` bytes; without a size, git's name cannot be computed and is left out.
    pub fn new(checks: &[Checksum], size: Option<u64>) -> Self {
        let hasher = |check: &Checksum| match (check, size) {
            (Checksum::Sha256(_), _) => Some(Hasher::Sha256(Sha256::new())),
            (Checksum::GitBlob(_), Some(size)) => {
                Some(Hasher::Sha1(Sha1::new_with_prefix(format!("blob {size}\0"))))
            }
            (Checksum::GitBlob(_), None) => None,
        };
        Self(checks.iter().filter_map(|check| Some((check.clone(), hasher(check)?))).collect())
    }

    /// Whether there is nothing to hash for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for (_, hasher) in &mut self.0 {
            match hasher {
                Hasher::Sha256(hasher) => hasher.update(bytes),
                Hasher::Sha1(hasher) => hasher.update(bytes),
            }
        }
    }

    /// Compares. `what` names the file.
    pub fn check(&self, what: &str) -> Result<(), StageError> {
        for (wanted, hasher) in &self.0 {
            let found = match hasher {
                Hasher::Sha256(hasher) => hexadecimal(&hasher.clone().finalize()),
                Hasher::Sha1(hasher) => hexadecimal(&hasher.clone().finalize()),
            };
            if found != wanted.digits() {
                return Err(StageError::new(format!(
                    "`{what}` does not have the expected content: {} is {found}, expected {}",
                    wanted.name(),
                    wanted.digits()
                )));
            }
        }
        Ok(())
    }
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_and_sha256_agree_with_the_tools() {
        // `printf hello | git hash-object --stdin`, `printf hello | sha256sum`
        let checks = [
            Checksum::GitBlob("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0".into()),
            Checksum::Sha256("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".into()),
        ];
        let mut hashing = Hashing::new(&checks, Some(5));
        hashing.update(b"hel");
        hashing.update(b"lo");
        assert_eq!(hashing.check("x"), Ok(()));
        hashing.update(b"!");
        assert!(hashing.check("x").unwrap_err().message.starts_with("`x` does not have"));
    }

    #[test]
    fn an_entity_tag_tells_its_kind_by_its_length() {
        assert!(matches!(Checksum::from_tag(&format!("\"{}\"", "A".repeat(64))), Some(Checksum::Sha256(_))));
        assert!(matches!(Checksum::from_tag(&"0".repeat(40)), Some(Checksum::GitBlob(_))));
        assert_eq!(Checksum::from_tag("\"5d41402abc4b2a76-2\""), None);
    }
}
