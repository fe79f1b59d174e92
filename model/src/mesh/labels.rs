use std::collections::BTreeMap;
use std::sync::Arc;

/// Labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A `metav1.LabelSelector`: all of its requirements hold. Without requirements it matches
/// everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What must hold for it.
    pub operator: Operator,
}

/// `metav1.LabelSelectorRequirement.operator` with its values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// There, and one of these.
    In(Vec<Arc<str>>),
    /// Not there, or none of these.
    NotIn(Vec<Arc<str>>),
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
}

impl Selector {
    /// Matches every set of labels.
    pub const EVERYTHING: Self = Self { requirements: Vec::new() };

    /// One label with one value.
    pub fn label(key: &str, value: &str) -> Self {
        Self {
            requirements: vec![Requirement {
                key: key.into(),
                operator: Operator::In(vec![value.into()]),
            }],
        }
    }

    /// Whether all requirements hold for `labels`.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}
