//! Which files of a folder or a repository are meant: names and patterns.
//!
//! As in Hugging Face's `allow_patterns`: `*` goes over `/`, and a pattern that ends in `/` means
//! everything below that folder.

use globset::{Glob, GlobSet, GlobSetBuilder};

/// Files by name.
pub struct Patterns {
    /// All, if there is none.
    pub include: Vec<Pattern>,
    exclude: GlobSet,
}

/// One name or pattern.
pub struct Pattern {
    /// As written.
    pub text: String,
    glob: GlobSet,
}

/// Whether `text` may fit several names.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', ']', '{', '}']) || text.ends_with('/')
}

impl Patterns {
    /// # Errors
    /// What is wrong with one of them, with the parameter it stands in.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, Vec<(&'static str, String)>> {
        let mut errors = Vec::new();
        let mut take = |key, texts: &[String]| -> Vec<Pattern> {
            let pattern = |text: &String| match set(std::slice::from_ref(text)) {
                Ok(glob) => Some(Pattern { text: text.clone(), glob }),
                Err(error) => {
                    errors.push((key, error));
                    None
                }
            };
            texts.iter().filter_map(pattern).collect()
        };
        let include = take("files", include);
        take("exclude", exclude);
        if !errors.is_empty() {
            return Err(errors);
        }
        let exclude = set(exclude).map_err(|error| vec![("exclude", error)])?;
        Ok(Self { include, exclude })
    }

    /// Whether nothing is said, so that all files are meant.
    pub fn take_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether the file is meant.
    pub fn take(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|pattern| pattern.fits(name)))
            && !self.exclude.is_match(name)
    }
}

impl Pattern {
    /// Whether it means this file.
    pub fn fits(&self, name: &str) -> bool {
        self.text == name || self.glob.is_match(name)
    }
}

fn set(texts: &[String]) -> Result<GlobSet, String> {
    let mut builder = GlobSetBuilder::new();
    for text in texts {
        let whole = if text.ends_with('/') { format!("{text}*") } else { text.clone() };
        builder.add(Glob::new(&whole).map_err(|error| format!("`{text}` is no pattern: {}", error.kind()))?);
    }
    builder.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(include: &[&str], exclude: &[&str]) -> Patterns {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Patterns::new(&owned(include), &owned(exclude)).map_err(|errors| format!("{errors:?}")).unwrap()
    }

    #[test]
    fn a_star_goes_over_folders_and_a_folder_means_what_is_below() {
        let chosen = patterns(&["*.json", "data/"], &["*/old*"]);
        let names = ["a.json", "x/b.json", "data/c.parquet", "data/old.parquet", "d.txt", "data"];
        assert_eq!(names.map(|name| chosen.take(name)), [true, true, true, false, false, false]);
        assert!(patterns(&[], &[]).take_all() && patterns(&[], &[]).take("anything"));
    }

    #[test]
    fn a_broken_pattern_is_named_with_its_parameter() {
        let errors = Patterns::new(&["[a".into()], &["{".into()]).err().unwrap();
        assert_eq!(errors.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["files", "exclude"]);
        assert!(errors[0].1.starts_with("`[a` is no pattern"));
    }
}
