use std::fmt;
use std::sync::Arc;

use crate::mesh::{Location, Mesh, ObjectRef, ObjectVersion, Resource};

/// Something that the reader of a manifest has to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The object that it is about, where the document says so much.
    pub object: Option<ObjectRef>,
    /// The field, as `spec.ingress[0].ports[0].endPort`; empty for the document as a whole.
    pub field: Arc<str>,
    /// What is the matter, and the way out.
    pub reason: String,
    /// Where the field stands (where it is missing: what it is missing from), if the object was
    /// read from a file.
    pub location: Option<Location>,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; everything is in force.
    Note,
    /// Something that was written is not in force, or not in the way that it was written.
    Warning,
    /// The document is not in force.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// `file:line: field: reason`; without a file, the object stands in its place.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.location, &self.object) {
            (Some(location), _) => write!(f, "{location}: ")?,
            (None, Some(object)) => write!(f, "{object}: ")?,
            (None, None) => {}
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// What was read from one object of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Which object it is. None where the document does not say so much: it may be about any
    /// object that its file had before, so none of those may be taken for removed.
    pub object: Option<ObjectRef>,
    /// Its version, if it is one of weft.dev and comes from an API server.
    pub version: Option<ObjectVersion>,
    /// Where it begins, if it was read from a file.
    pub location: Option<Location>,
    /// What it says. Empty where a finding is an error.
    pub resources: Vec<Resource>,
    /// What is to be said about it.
    pub findings: Vec<Finding>,
    /// Only where the document is not in force and would narrow access: what to hold in its
    /// place while there is no earlier good version of it. It denies at least what the document
    /// would have denied.
    pub deny_fallback: Option<Vec<Resource>>,
}

impl Document {
    /// Whether it is in force: whether no finding is an error.
    pub fn is_in_force(&self) -> bool {
        self.severity() != Some(Severity::Error)
    }

    /// Its worst finding's severity.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

impl Mesh {
    /// Puts what a document says in the place of what its object said before. A document that is
    /// not in force leaves the object's last good version as it is; where there is none, the
    /// document's [`Document::deny_fallback`] takes its place, until the object is in force or
    /// removed. Returns whether the mesh says something else now.
    pub fn insert_document(&mut self, document: &Document) -> bool {
        let Some(object) = &document.object else { return false };
        if document.is_in_force() {
            let stood_in = self.stand_ins.remove(object);
            let mut changed = self.apply(object, document.resources.iter().cloned()) || stood_in;
            if let Some(version) = &document.version {
                let known = self.versions.insert(object.clone(), version.clone());
                changed |= known.as_ref() != Some(version);
            }
            return changed;
        }
        match &document.deny_fallback {
            Some(fallback) if self.stand_ins.contains(object) || !self.contains(object) => {
                let changed = self.apply(object, fallback.iter().cloned());
                self.stand_ins.insert(object.clone()) || changed
            }
            _ => false,
        }
    }
}
