//! The documents of all files, and which version of each is in force.
//!
//! The rule for one object is that of [`Mesh::insert_document`]: the last good version stays, and
//! where there is none, what stands in for it. But here an object may have a version in each of
//! several files, and loses one when its file goes or leaves it out. So the versions are held by
//! file, and the mesh is made of them anew; of an API server, which has one version of each of far
//! more objects, the mesh itself is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::dialect::{Document, Finding, Severity};
use weft_model::mesh::{Location, Mesh, ObjectRef, Resource, Settings};

/// What one file says of one object.
#[derive(Clone, Debug, Default)]
struct Version {
    /// The last good version.
    good: Option<Vec<Resource>>,
    /// What stands in for it while there has been none.
    fallback: Vec<Resource>,
    /// Where it stands.
    line: u32,
}

#[derive(Clone, Debug, Default)]
struct File {
    objects: BTreeMap<ObjectRef, Version>,
    findings: Vec<Finding>,
    documents: usize,
}

/// The documents of all files. Of an object that several files have, the first good version by
/// path is in force.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    files: BTreeMap<Arc<str>, File>,
}

impl Manifests {
    /// Takes what a file says now. What is not good leaves the last good version in force;
    /// where a document is so broken that its object is not known, all objects that are missed
    /// are kept.
    pub fn replace(&mut self, path: &Arc<str>, documents: Vec<Document>) {
        let mut last = self.files.remove(path).unwrap_or_default();
        let mut file = File::default();
        let mut unidentified = false;
        for document in documents {
            file.documents += 1;
            let in_force = document.is_in_force();
            let line = document.location.as_ref().map_or(0, |location| location.line);
            file.findings.extend(document.findings);
            let Some(object) = document.object else {
                unidentified |= !in_force;
                continue;
            };
            if let Some(first) = file.objects.get(&object) {
                file.findings.push(duplicate(&object, path, line, path, first.line));
                continue;
            }
            let version = if in_force {
                Version { good: Some(document.resources), fallback: Vec::new(), line }
            } else {
                let last = last.objects.remove(&object).unwrap_or_default();
                // What stood in for an earlier bad version may not open what it closed.
                let fallback = document.deny_fallback.unwrap_or(last.fallback);
                Version { good: last.good, fallback, line }
            };
            file.objects.insert(object, version);
        }
        if unidentified {
            for (object, version) in last.objects {
                file.objects.entry(object).or_insert(version);
            }
        }
        self.files.insert(path.clone(), file);
    }

    /// Says that a file cannot be read: everything that it said stays.
    pub fn unreadable(&mut self, path: &Arc<str>, finding: Finding) {
        let file = self.files.entry(path.clone()).or_default();
        file.findings = vec![finding];
    }

    /// Forgets a file.
    pub fn remove(&mut self, path: &str) {
        self.files.remove(path);
    }

    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.files.values().map(|file| file.documents).sum()
    }

    /// What is to be said about the documents, by place.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> =
            self.files.values().flat_map(|file| file.findings.iter().cloned()).collect();
        let mut first: BTreeMap<&ObjectRef, (&Arc<str>, u32)> = BTreeMap::new();
        for (object, path, version) in self.versions() {
            match first.get(object) {
                Some((other, line)) => {
                    findings.push(duplicate(object, path, version.line, other, *line));
                }
                None => {
                    first.insert(object, (path, version.line));
                }
            }
        }
        findings.sort_by(|a, b| a.location.cmp(&b.location).then_with(|| a.field.cmp(&b.field)));
        findings
    }

    /// The mesh that the documents in force say, and what is to be said about those that its
    /// settings leave out.
    pub fn settled(&self, settings: Settings) -> (Mesh, Vec<Finding>) {
        let mut mesh = self.unsettled(settings);
        let mut findings = mesh.settle();
        for finding in &mut findings {
            let of = |(object, ..): &(&ObjectRef, &Arc<str>, &Version)| {
                finding.object.as_ref() == Some(*object)
            };
            finding.location = self
                .versions()
                .find(of)
                .map(|(_, path, version)| Location { file: path.clone(), line: version.line });
        }
        (mesh, findings)
    }

    fn unsettled(&self, settings: Settings) -> Mesh {
        let mut mesh = Mesh { settings, ..Mesh::default() };
        let mut done: BTreeSet<&ObjectRef> = BTreeSet::new();
        for (object, _, version) in self.versions() {
            if let Some(good) = &version.good
                && done.insert(object)
            {
                mesh.apply(object, good.iter().cloned());
            }
        }
        for (object, _, version) in self.versions() {
            if done.insert(object) {
                mesh.apply(object, version.fallback.iter().cloned());
            }
        }
        mesh
    }

    /// All versions of all objects, by path.
    fn versions(&self) -> impl Iterator<Item = (&ObjectRef, &Arc<str>, &Version)> {
        self.files.iter().flat_map(|(path, file)| {
            file.objects.iter().map(move |(object, version)| (object, path, version))
        })
    }
}

fn duplicate(
    object: &ObjectRef,
    path: &Arc<str>,
    line: u32,
    other: &Arc<str>,
    other_line: u32,
) -> Finding {
    Finding {
        severity: Severity::Error,
        object: Some(object.clone()),
        field: "metadata.name".into(),
        reason: format!(
            "{object} stands at {other}:{other_line} already, which goes first; rename or remove \
             one of them"
        ),
        location: Some(Location { file: path.clone(), line }),
    }
}
