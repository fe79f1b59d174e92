use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, ScalarStyle, Tag};
use serde_json::{Map, Value};

use super::scalar;
use super::{Lines, Path, Problem, Segment, YamlDocument};

/// How deep a document may be nested.
const MAX_DEPTH: usize = 100;
/// How many nodes the aliases of a document may stand for, together: a few lines of aliases of
/// aliases would otherwise stand for billions.
const MAX_ALIASED_NODES: usize = 100_000;

/// Makes one document from events.
#[derive(Default)]
pub(super) struct Builder {
    /// Maps and lists that are not complete yet, outermost first.
    open: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    aliased_nodes: usize,
    problems: Vec<Problem>,
}

#[derive(Clone, Default)]
struct Node {
    value: Value,
    lines: Lines,
}

/// A map or list that is not complete yet.
struct Frame {
    anchor: usize,
    lines: Lines,
    content: Content,
}

enum Content {
    Map {
        entries: Map<String, Value>,
        /// The key whose value comes next, and its line.
        key: Option<(String, u32)>,
        /// Values of `<<`: what they say holds where the map itself says nothing.
        merged: Vec<Node>,
    },
    List(Vec<Value>),
}

impl Builder {
    /// Takes an event of the document's body. An error ends the document.
    pub(super) fn take(&mut self, event: Event<'_>, line: u32) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar_value(text, style, tag.as_deref());
                self.add(Node { value, lines: Lines { line, ..Lines::default() } }, anchor)
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned().ok_or_else(|| {
                    "an alias inside of what it stands for; write the value out".to_owned()
                })?;
                self.aliased_nodes = self.aliased_nodes.saturating_add(size(&node.value));
                if self.aliased_nodes > MAX_ALIASED_NODES {
                    return Err(format!(
                        "its aliases stand for more than {MAX_ALIASED_NODES} values; write them out"
                    ));
                }
                self.add(node, 0)
            }
            Event::MappingStart(anchor, _) => {
                let content = Content::Map { entries: Map::new(), key: None, merged: Vec::new() };
                self.begin(anchor, line, content)
            }
            Event::SequenceStart(anchor, _) => self.begin(anchor, line, Content::List(Vec::new())),
            Event::MappingEnd | Event::SequenceEnd => self.end(),
            _ => Ok(()),
        }
    }

    /// The document, now complete; none if there is nothing in it.
    pub(super) fn finish(self) -> Option<YamlDocument> {
        let Node { value, lines } = self.root?;
        if value.is_null() && self.problems.is_empty() {
            return None;
        }
        Some(YamlDocument { value, lines, problems: self.problems })
    }

    /// What there is of a document that cannot be read any further.
    pub(super) fn abort(mut self, line: u32, reason: String) -> YamlDocument {
        let path = self.path();
        while !self.open.is_empty() {
            // What has no value yet is left out.
            if let Some(Frame { content: Content::Map { key, .. }, .. }) = self.open.last_mut() {
                *key = None;
            }
            // What cannot stand where it stands is left out too.
            let _ = self.end();
        }
        self.problems.push(Problem { line, path, reason, cut: true });
        let Node { value, lines } = self.root.unwrap_or_else(|| Node {
            value: Value::Null,
            lines: Lines { line, ..Lines::default() },
        });
        YamlDocument { value, lines, problems: self.problems }
    }

    fn begin(&mut self, anchor: usize, line: u32, content: Content) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.open.push(Frame { anchor, lines: Lines { line, ..Lines::default() }, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(frame) = self.open.pop() else { return Ok(()) };
        let mut lines = frame.lines;
        let value = match frame.content {
            Content::List(items) => Value::Array(items),
            Content::Map { mut entries, merged, .. } => {
                for Node { value, lines: merged_lines } in merged {
                    merge(&mut entries, &mut lines, value, merged_lines)?;
                }
                Value::Object(entries)
            }
        };
        self.add(Node { value, lines }, frame.anchor)
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.content {
            Content::List(items) => {
                items.push(node.value);
                frame.lines.items.push(node.lines);
            }
            Content::Map { entries, key, merged } => match key.take() {
                None => *key = Some((key_text(node.value)?, node.lines.line)),
                Some((name, _)) if name == "<<" => merged.push(node),
                Some((name, line)) => match frame.lines.entries.get(&name) {
                    None => {
                        frame.lines.entries.insert(name.clone(), Lines { line, ..node.lines });
                        entries.insert(name, node.value);
                    }
                    Some(first) => {
                        let first = first.line;
                        let reason = format!("is there twice, first on line {first}; remove one");
                        let path = self.path().field(&name);
                        self.problems.push(Problem { line, path, reason, cut: false });
                    }
                },
            },
        }
        Ok(())
    }

    /// The field that is being read.
    fn path(&self) -> Path {
        self.open
            .iter()
            .filter_map(|frame| match &frame.content {
                Content::List(items) => Some(Segment::Index(items.len())),
                Content::Map { key, .. } => {
                    key.as_ref().map(|(key, _)| Segment::Key(key.as_str().into()))
                }
            })
            .collect()
    }
}

fn scalar_value(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix != "str" && tag.suffix != "binary" => {
            scalar::resolve(&text)
        }
        None if style == ScalarStyle::Plain => scalar::resolve(&text),
        _ => Value::String(text.into_owned()),
    }
}

/// A key, as Kubernetes turns it into JSON.
fn key_text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err("a key must be text; put it in quotes".to_owned())
        }
    }
}

/// YAML 1.1's merge key (yaml.org/type/merge.html): a map, or a list of maps, the first of which
/// wins.
fn merge(
    entries: &mut Map<String, Value>,
    lines: &mut Lines,
    value: Value,
    merged_lines: Lines,
) -> Result<(), String> {
    match value {
        Value::Object(merged) => {
            let mut merged_entries = merged_lines.entries;
            for (key, value) in merged {
                if !entries.contains_key(&key) {
                    let line = merged_entries.remove(&key).unwrap_or_default();
                    lines.entries.insert(key.clone(), line);
                    entries.insert(key, value);
                }
            }
            Ok(())
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            for (item, item_lines) in items.into_iter().zip(merged_lines.items) {
                merge(entries, lines, item, item_lines)?;
            }
            Ok(())
        }
        _ => Err("`<<` takes a map, or a list of maps".to_owned()),
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(size).sum::<usize>().saturating_add(1),
        Value::Object(entries) => entries.values().map(size).sum::<usize>().saturating_add(1),
        _ => 1,
    }
}
