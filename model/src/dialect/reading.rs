use std::fmt::Display;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::finding::{Finding, Severity};
use super::path::{Path, Segment};
use super::yaml::Lines;
use crate::mesh::{Location, ObjectRef, Origin, Settings};

/// An object that is being read: what it says, where it says it, and what was found wrong.
pub(super) struct Reading<'a> {
    pub settings: &'a Settings,
    pub value: &'a Value,
    pub source: Source<'a>,
    pub object: ObjectRef,
    pub findings: Vec<Finding>,
    /// Fields of policies that are not known: what holds them says something else than its
    /// author thinks, so it must not open anything.
    pub unknown: Vec<Path>,
    /// What cannot be trusted, for the YAML is broken there.
    pub suspect: Vec<Path>,
    /// Whether the YAML is so broken that what is missing may only be unread.
    pub is_cut: bool,
}

/// Where an object was read from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A file, and the lines of the object in it.
    File(&'a Arc<str>, &'a Lines),
    /// An API server, which has dropped unknown fields before.
    Server,
}

impl Source<'_> {
    /// Where a field stands.
    pub fn location(&self, at: &Path) -> Option<Location> {
        match self {
            Self::File(file, lines) => {
                Some(Location { file: Arc::clone(file), line: lines.line(at) })
            }
            Self::Server => None,
        }
    }
}

impl<'a> Reading<'a> {
    pub fn new(
        settings: &'a Settings,
        value: &'a Value,
        source: Source<'a>,
        object: ObjectRef,
    ) -> Self {
        Self {
            settings,
            value,
            source,
            object,
            findings: Vec::new(),
            unknown: Vec::new(),
            suspect: Vec::new(),
            is_cut: false,
        }
    }

    /// The document is not in force.
    pub fn error(&mut self, at: &Path, reason: impl Display) {
        self.report(Severity::Error, at, reason);
    }

    /// What the field says is not in force as it is written.
    pub fn warning(&mut self, at: &Path, reason: impl Display) {
        self.report(Severity::Warning, at, reason);
    }

    /// Worth knowing.
    pub fn note(&mut self, at: &Path, reason: impl Display) {
        self.report(Severity::Note, at, reason);
    }

    pub fn report(&mut self, severity: Severity, at: &Path, reason: impl Display) {
        let field = at.to_string().into();
        let location = self.source.location(at);
        self.report_at(severity, field, location, reason.to_string());
    }

    pub fn report_at(
        &mut self,
        severity: Severity,
        field: Arc<str>,
        location: Option<Location>,
        reason: String,
    ) {
        let object = Some(self.object.clone());
        self.findings.push(Finding { severity, object, field, reason, location });
    }

    pub fn has_error(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    pub fn origin(&self, at: &Path) -> Origin {
        Origin {
            object: self.object.clone(),
            field: at.to_string().into(),
            location: self.source.location(at),
        }
    }

    /// What stands at a path.
    pub fn get(&self, at: &Path) -> Option<&'a Value> {
        at.segments().iter().try_fold(self.value, |value, segment| match segment {
            Segment::Key(key) => value.get(&**key),
            Segment::Index(index) => value.get(*index),
        })
    }

    /// Whether a field that is not known stands in the rule `at`, or in the policy's `spec`
    /// outside of its lists of rules.
    pub fn is_poisoned<const N: usize>(&self, at: &Path, spec: &Path, lists: [&str; N]) -> bool {
        let lists = lists.map(|list| spec.field(list));
        self.unknown.iter().any(|unknown| {
            at.contains(unknown)
                || spec.contains(unknown) && !lists.iter().any(|list| list.contains(unknown))
        })
    }

    /// Whether a field of a document with broken YAML cannot be trusted.
    pub fn is_suspect(&self, at: &Path) -> bool {
        self.suspect.iter().any(|path| at.contains(path) || path.contains(at))
            || self.is_cut && self.get(at).is_none()
    }

    /// Runs `read` without keeping what it reports. None if it reports an error.
    pub fn quietly<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let findings = std::mem::take(&mut self.findings);
        let outcome = read(self).filter(|_| !self.has_error());
        self.findings = findings;
        outcome
    }

    /// The object as a typed value. Reports the first field of another shape as an error, and
    /// notes fields that are not known; `unknown` says what to say of one of those.
    pub fn decode<T: DeserializeOwned>(&mut self, unknown: Unknown) -> Option<T> {
        let mut ignored = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let mut callback = |path: serde_ignored::Path<'_>| ignored.push(ignored_path(&path));
        let decoded = T::deserialize(serde_ignored::Deserializer::new(
            serde_path_to_error::Deserializer::new(self.value, &mut track),
            &mut callback,
        ));
        for path in ignored {
            self.report_unknown(path, unknown);
        }
        match decoded {
            Ok(decoded) => Some(decoded),
            Err(error) => {
                let at = error_path(&track.path());
                self.error(&at, shape(&error.to_string()));
                None
            }
        }
    }

    fn report_unknown(&mut self, path: Path, unknown: Unknown) {
        let in_policy = path.segments().first() == Some(&Segment::Key("spec".into()))
            || path.segments().first() == Some(&Segment::Key("specs".into()));
        match unknown {
            Unknown::Narrows if in_policy => {
                self.warning(
                    &path,
                    "unknown field; what holds it allows nothing until the field is corrected or \
                     removed",
                );
                self.unknown.push(path);
            }
            Unknown::Fails if in_policy => {
                self.error(&path, "unknown field; correct or remove it");
            }
            _ if matches!(self.source, Source::Server) => {}
            Unknown::Unread(read) => {
                if let Some(Segment::Key(key)) = path.segments().last()
                    && let Some(meant) = read.iter().find(|name| name.eq_ignore_ascii_case(key))
                {
                    self.warning(&path, format_args!("unknown field, ignored; write {meant}"));
                }
            }
            _ => self.warning(&path, "unknown field, ignored; correct or remove it"),
        }
    }
}

/// What a field means that is not known.
#[derive(Clone, Copy)]
pub(super) enum Unknown {
    /// Nothing.
    Ignored,
    /// Nothing: the type has only what is read, of which these are the names. One that differs
    /// from them only in case is a mistake.
    Unread(&'static [&'static str]),
    /// In `spec`, that the rule which holds it must not open anything.
    Narrows,
    /// In `spec`, that the document is not what its author thinks.
    Fails,
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> Path {
    use serde_ignored::Path as Ignored;
    match path {
        Ignored::Root => Path::ROOT,
        Ignored::Seq { parent, index } => ignored_path(parent).index(*index),
        Ignored::Map { parent, key } => ignored_path(parent).field(key),
        Ignored::Some { parent }
        | Ignored::NewtypeStruct { parent }
        | Ignored::NewtypeVariant { parent } => ignored_path(parent),
    }
}

fn error_path(path: &serde_path_to_error::Path) -> Path {
    path.iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Segment::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Segment::Key(key.as_str().into())),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => {
                None
            }
        })
        .collect()
}

/// Says in a manifest's words what serde says in Rust's.
fn shape(error: &str) -> String {
    let parts =
        error.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "));
    let Some((found, expected)) = parts else {
        return error.to_owned();
    };
    let found = match found.split_once(' ') {
        _ if found == "sequence" => "a list".to_owned(),
        _ if found == "map" => "a map".to_owned(),
        _ if found == "null" || found == "unit value" => "nothing".to_owned(),
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "boolean", value)) => value.replace('`', ""),
        Some(("floating", value)) => value.replace("point ", "").replace('`', ""),
        _ => found.to_owned(),
    };
    let quotes = matches!(expected, "a string" | "a borrowed string");
    let expected = match expected {
        "a string" | "a borrowed string" => "text",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "i32" | "i64" | "u16" | "u32" | "u64" => "a whole number",
        other if other.starts_with("struct ") || other.starts_with(char::is_uppercase) => "a map",
        other => other,
    };
    let hint = match found.as_str() {
        _ if !quotes => "",
        "a list" | "a map" | "nothing" => "",
        "true" | "false" => {
            "; put it in quotes (YAML takes a bare yes, no, on, off, y or n for a boolean)"
        }
        _ => "; put it in quotes",
    };
    format!("{found} stands where {expected} is expected{hint}")
}
