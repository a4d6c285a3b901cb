//! What outputs hold for a person beside figures: pictures and texts, put into the document itself.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::html::escape;
use crate::digest::files_below;
use crate::measured::SAMPLES;
use crate::recorded::{Recorded, Stage};

/// A larger picture stays in the store.
const PICTURE: u64 = 2 << 20;

/// At most this many pictures of one stage: an output may be a folder of photographs.
const PICTURES: usize = 12;

/// Of a longer text the beginning is shown.
const TEXT: usize = 6000;

/// The pictures of all stages.
#[must_use]
pub fn pictures(recorded: &Recorded) -> String {
    recorded.stages.iter().map(pictures_of).collect()
}

fn pictures_of(stage: &Stage) -> String {
    let Some(output) = &stage.output else { return String::new() };
    let mut files = files_below(output).unwrap_or_default();
    files.retain(|file| kind(file).is_some());
    // Of the same picture as SVG and as PNG the first is sharper.
    let svgs: Vec<PathBuf> = files.iter().filter(|file| kind(file) == Some("svg+xml")).cloned().collect();
    files.retain(|file| kind(file) == Some("svg+xml") || !svgs.contains(&file.with_extension("svg")));
    if files.is_empty() {
        return String::new();
    }
    let mut html = format!("<h3>{}</h3>\n<div class=\"charts\">\n", escape(&stage.record.stage));
    html.extend(files.iter().take(PICTURES).map(|file| picture(output, file)));
    html += "</div>\n";
    if files.len() > PICTURES {
        html += &format!("<p>{} more pictures are in its output.</p>\n", files.len() - PICTURES);
    }
    html
}

fn kind(file: &Path) -> Option<&'static str> {
    match file.extension()?.to_str()? {
        "svg" => Some("svg+xml"),
        "png" => Some("png"),
        _ => None,
    }
}

/// A picture as an image, so that a script in an SVG of unknown origin never runs.
fn picture(output: &Path, file: &Path) -> String {
    let (path, name) = (output.join(file), escape(&file.display().to_string()));
    let size = fs::metadata(&path).map_or(0, |meta| meta.len());
    let Some(bytes) = fs::read(&path).ok().filter(|_| size <= PICTURE) else {
        return format!("<p>{name}: {size} bytes, too large to be shown here.</p>\n");
    };
    let (kind, data) = (kind(file).unwrap_or("png"), STANDARD.encode(bytes));
    format!(
        "<figure class=\"picture\"><img alt=\"{name}\" src=\"data:image/{kind};base64,{data}\"><figcaption>{name}</figcaption></figure>\n"
    )
}

/// The texts of all stages.
#[must_use]
pub fn samples(recorded: &Recorded) -> String {
    recorded.stages.iter().filter_map(sample).collect()
}

fn sample(stage: &Stage) -> Option<String> {
    let mut file = fs::File::open(stage.output.as_ref()?.join(SAMPLES)).ok()?;
    let length = file.metadata().ok()?.len();
    let mut bytes = Vec::new();
    file.by_ref().take(TEXT as u64 + 1).read_to_end(&mut bytes).ok()?;
    let shown = floor(&bytes, TEXT);
    let note = if length > shown as u64 {
        format!(" <small>the first {shown} of {length} bytes</small>")
    } else {
        String::new()
    };
    let text = String::from_utf8_lossy(&bytes[..shown]).into_owned();
    let (name, text) = (escape(&stage.record.stage), masked(&escape(&text)));
    Some(format!("<details><summary>{name}{note}</summary><pre>{text}</pre></details>\n"))
}

/// Marks what a model reads and does not learn; `text` is HTML already.
fn masked(text: &str) -> String {
    let (begin, end) = ("⟦masked⟧", "⟦/masked⟧");
    let mut html = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, part)) = rest.split_once(begin)
        && let Some((part, after)) = part.split_once(end)
    {
        html += &format!("{before}<span class=\"masked\">{begin}{part}{end}</span>");
        rest = after;
    }
    html + rest
}

/// The largest end of a text's beginning of at most `most` bytes that cuts no letter in two.
fn floor(bytes: &[u8], most: usize) -> usize {
    let mut end = bytes.len().min(most);
    while end > 0 && end < bytes.len() && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_parts_are_marked_as_far_as_they_end() {
        let html = masked("a⟦masked⟧b⟦/masked⟧c⟦masked⟧d⟦masked⟧e⟦/masked⟧f⟦/masked⟧g⟦masked⟧h");
        let span = |text: &str| format!("<span class=\"masked\">⟦masked⟧{text}⟦/masked⟧</span>");
        assert_eq!(html, format!("a{}c{}f⟦/masked⟧g⟦masked⟧h", span("b"), span("d⟦masked⟧e")));
    }

    #[test]
    fn a_text_is_not_cut_within_a_letter() {
        assert_eq!(floor("aé".as_bytes(), 2), 1);
        assert_eq!(floor("aé".as_bytes(), 3), 3);
        assert_eq!(floor(b"abc", 2), 2);
    }
}
