//! Where manifests come from. A source reads them, keeps the last good version of each, and
//! publishes the mesh that they say as a whole.

mod directory;
mod fixed;
mod kubernetes;
mod log;
mod manifests;
mod tree;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use weft_model::dialect::{Finding, Severity};
use weft_model::mesh::Mesh;

pub use directory::{Directory, SourceError};
pub use fixed::keep_fixed;
pub use kubernetes::{Cluster, ClusterError};
use log::FindingsLog;
pub use manifests::Manifests;
pub use tree::{Tree, is_manifest};

/// What a source says now.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The mesh of the documents that are in force.
    pub mesh: Arc<Mesh>,
    /// What is to be said about the documents, by place.
    pub findings: Arc<[Finding]>,
    /// What keeps the source from reading, if something does.
    pub problems: Arc<[String]>,
    /// How many documents there are.
    pub documents: usize,
    /// Whether everything has been read once. Before that the mesh says nothing, and what is in
    /// force is to stay.
    pub complete: bool,
}

impl View {
    /// Everything that is not in force as it was written.
    pub fn not_in_force(&self) -> impl Iterator<Item = String> {
        let errors = self
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .map(ToString::to_string);
        self.problems.iter().cloned().chain(errors)
    }

    /// What is in force in another way than somebody may think.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.findings
            .iter()
            .filter(|finding| finding.severity == Severity::Warning)
            .map(ToString::to_string)
    }
}
