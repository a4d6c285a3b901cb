//! What is wrong with a pipeline file, each with its place: collected, sorted, drawn like rustc does.
//!
//! Knows texts and byte ranges only, nothing of pipelines.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::Place;

/// More than this many at once are counted, not drawn.
const SHOWN: usize = 100;

/// A text that values come from: the file, or one `--set`.
#[derive(Clone, Debug)]
pub struct Source {
    /// As a person knows it: the path as given, or `--set`.
    pub name: String,
    /// What stands in it.
    pub text: String,
    /// Where each line starts.
    lines: Vec<usize>,
}

impl Source {
    /// A text and what it is called.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let newlines = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(newlines).collect();
        Self { name: name.into(), text, lines }
    }

    /// The line that holds a byte, counted from 1, and where it starts.
    fn line(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&start| start <= at);
        (line, self.lines[line - 1])
    }

    /// The start of the character that holds a byte.
    fn floor(&self, at: usize) -> usize {
        self.text.floor_char_boundary(at)
    }
}

/// A byte range of one source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Index into the sources; 0 is the file.
    pub source: usize,
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
}

impl Span {
    /// A range of a source.
    #[must_use]
    pub const fn new(source: usize, range: Range<usize>) -> Self {
        Self { source, start: range.start, end: range.end }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Lower-case sentence, names in backticks.
    pub message: String,
    /// Where, and a few words under the caret.
    pub primary: (Span, String),
    /// The other places that take part.
    pub others: Vec<(Span, String)>,
    /// The ways out.
    pub helps: Vec<String>,
}

impl Diagnostic {
    /// An error at `span`, with `label` under its caret.
    #[must_use]
    pub fn new(message: impl Into<String>, span: Span, label: impl Into<String>) -> Self {
        Self { message: message.into(), primary: (span, label.into()), others: Vec::new(), helps: Vec::new() }
    }

    /// The same error with another place.
    #[must_use]
    pub fn and(mut self, span: Span, label: impl Into<String>) -> Self {
        self.others.push((span, label.into()));
        self
    }

    /// The same error with a way out.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.helps.push(help.into());
        self
    }

    /// The same error with a way out if there is one.
    #[must_use]
    pub fn help_if(mut self, help: Option<String>) -> Self {
        self.helps.extend(help);
        self
    }
}

/// Everything that is wrong, with the texts it is about.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    sources: Arc<Vec<Source>>,
    all: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Sorts by place; what a matrix repeats is told once.
    #[must_use]
    pub fn new(sources: Arc<Vec<Source>>, mut all: Vec<Diagnostic>) -> Self {
        all.sort_by(|a, b| a.primary.0.cmp(&b.primary.0));
        let mut kept: Vec<Diagnostic> = Vec::with_capacity(all.len());
        let mut group = 0;
        for diagnostic in all {
            if kept.get(group).is_none_or(|first| first.primary.0 != diagnostic.primary.0) {
                group = kept.len();
            }
            if kept[group..].iter().all(|other| other.message != diagnostic.message) {
                kept.push(diagnostic);
            }
        }
        Self { sources, all: kept }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Place, message and ways out of each, for programs.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &str, &[String])> {
        self.all
            .iter()
            .map(|one| (place(&self.sources, &one.primary.0), one.message.as_str(), one.helps.as_slice()))
    }

    /// Draws them with source lines and carets. `color`: with terminal styles.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let drawn = self.all.iter().take(SHOWN).map(|one| renderer.render(&[self.group(one)]));
        let mut text = drawn.collect::<Vec<_>>().join("\n\n");
        if let Some(more) = self.all.len().checked_sub(SHOWN).filter(|&more| more > 0) {
            text.push_str(&format!("\n\nerror: and {more} more errors"));
        }
        text
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let mut group = Level::ERROR.primary_title(diagnostic.message.as_str()).element(self.snippet(
            diagnostic.primary.0.source,
            diagnostic,
            true,
        ));
        let mut seen = vec![diagnostic.primary.0.source];
        for (span, _) in &diagnostic.others {
            if !seen.contains(&span.source) {
                seen.push(span.source);
                group = group.element(self.snippet(span.source, diagnostic, false));
            }
        }
        for help in &diagnostic.helps {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }

    /// The lines of one source between the first and the last place, with what is said about them.
    fn snippet<'a>(
        &'a self,
        source: usize,
        diagnostic: &'a Diagnostic,
        with_primary: bool,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let source_index = source;
        let source = &self.sources[source];
        let text = source.text.as_str();
        let primary = with_primary.then_some((&diagnostic.primary, AnnotationKind::Primary));
        let others = diagnostic.others.iter().map(|other| (other, AnnotationKind::Context));
        let marks: Vec<_> =
            primary.into_iter().chain(others).filter(|((span, _), _)| span.source == source_index).collect();
        let first = marks.iter().map(|((span, _), _)| span.start).min().unwrap_or(0);
        let last = marks.iter().map(|((span, _), _)| span.end).max().unwrap_or(0);
        let (line, from) = source.line(source.floor(first));
        let last = source.floor(last);
        let to = text[last..].find('\n').map_or(text.len(), |end| last + end);
        Snippet::source(&text[from..to]).path(source.name.as_str()).line_start(line).annotations(
            marks.into_iter().map(|((span, label), kind)| {
                let start = source.floor(span.start);
                let end = source.floor(span.end.max(start)).min(to);
                // What spans several lines is marked on its first.
                let end = text[start..end].find('\n').map_or(end, |newline| start + newline);
                let label = (!label.is_empty()).then_some(label.as_str());
                kind.span(start - from..end - from).label(label)
            }),
        )
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Line and column of a span's first byte.
pub(super) fn place(sources: &[Source], span: &Span) -> Place {
    let source = &sources[span.source];
    let start = source.floor(span.start);
    let (line, from) = source.line(start);
    Place { file: source.name.clone(), line, column: source.text[from..start].chars().count() + 1 }
}
