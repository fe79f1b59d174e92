//! YAML, read as Kubernetes reads it, with the line of every field.

mod builder;
mod scalar;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser};
use serde_json::Value;

use self::builder::Builder;
use super::path::{Path, Segment};

/// One document of a stream.
#[derive(Debug)]
pub(super) struct YamlDocument {
    /// What it says; what was complete before the first syntax error, if there is one.
    pub value: Value,
    /// The lines of its fields.
    pub lines: Lines,
    /// What is wrong with it as YAML.
    pub problems: Vec<Problem>,
}

/// Something wrong with a document as YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Counted from 1.
    pub line: u32,
    /// What cannot be trusted for it: the field that was being read.
    pub path: Path,
    /// What is wrong.
    pub reason: String,
    /// Whether the rest of the document could not be read.
    pub cut: bool,
}

impl Problem {
    /// The problem as that of `item`, if it is in there.
    pub fn inside(&self, item: &Path) -> Option<Self> {
        let path = self.path.relative_to(item)?;
        Some(Self { path, reason: self.reason.clone(), ..*self })
    }
}

/// The line of a field and of what is in it. An entry of a map has the line of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    /// Counted from 1.
    pub line: u32,
    /// Of a map.
    pub entries: BTreeMap<String, Lines>,
    /// Of a list.
    pub items: Vec<Lines>,
}

impl Lines {
    /// The lines of a field.
    pub fn get(&self, path: &Path) -> Option<&Self> {
        path.segments().iter().try_fold(self, Self::step)
    }

    /// The line of a field, or of the innermost thing on the way to it that is there.
    pub fn line(&self, path: &Path) -> u32 {
        let mut lines = self;
        for segment in path.segments() {
            match lines.step(segment) {
                Some(inner) => lines = inner,
                None => break,
            }
        }
        lines.line
    }

    fn step(&self, segment: &Segment) -> Option<&Self> {
        match segment {
            Segment::Key(key) => self.entries.get(&**key),
            Segment::Index(index) => self.items.get(*index),
        }
    }
}

/// Reads the documents of a stream that are not empty. The stream is split first, so that a
/// syntax error costs only the document that has it.
pub(super) fn read(text: &str) -> Vec<YamlDocument> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    for chunk in split(text) {
        read_chunk(chunk, &mut documents);
    }
    documents
}

/// A part of a stream between two document markers.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    text: &'a str,
    /// Lines before it.
    offset: u32,
}

/// Splits before each `---` and after each `...` that begins a line: YAML allows neither inside
/// of a document, not even in a block scalar (YAML 1.2.2, 9.1.2).
fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut offset) = (0, 0u32);
    let (mut position, mut line) = (0, 0u32);
    for text_line in text.split_inclusive('\n') {
        let next = position + text_line.len();
        if is_marker(text_line, "---") && position > start {
            chunks.push((start, position, offset));
            (start, offset) = (position, line);
        } else if is_marker(text_line, "...") {
            chunks.push((start, position, offset));
            (start, offset) = (next, line.saturating_add(1));
        }
        position = next;
        line = line.saturating_add(1);
    }
    chunks.push((start, text.len(), offset));
    chunks
        .into_iter()
        .filter_map(|(start, end, offset)| Some(Chunk { text: text.get(start..end)?, offset }))
        .filter(|chunk| !chunk.text.lines().all(is_filler))
        .collect()
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| {
        rest.is_empty() || rest.starts_with(|first: char| first.is_ascii_whitespace())
    })
}

/// Whether a line says nothing by itself: blank, comment, directive, marker.
fn is_filler(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    line.is_empty() || line.starts_with(['#', '%'])
}

fn read_chunk(chunk: Chunk<'_>, documents: &mut Vec<YamlDocument>) {
    let line = |line: usize| u32::try_from(line).unwrap_or(u32::MAX).saturating_add(chunk.offset);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(chunk.text) {
        let outcome = match event {
            Ok((Event::DocumentStart(_), _)) => {
                builder = Builder::default();
                Ok(())
            }
            Ok((Event::DocumentEnd, _)) => {
                documents.extend(std::mem::take(&mut builder).finish());
                Ok(())
            }
            Ok((event, span)) => {
                let at = line(span.start.line());
                builder.take(event, at).map_err(|reason| (at, reason))
            }
            Err(error) => Err((line(error.marker().line()), format!("YAML: {}", error.info()))),
        };
        if let Err((line, reason)) = outcome {
            documents.push(builder.abort(line, reason));
            return;
        }
    }
}
