use std::fmt;
use std::sync::Arc;

/// Which field of a document: `spec.ingress[0].ports[1].endPort`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Path(Vec<Segment>);

/// A step of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Segment {
    /// An entry of a map.
    Key(Arc<str>),
    /// An item of a list, counted from 0.
    Index(usize),
}

impl Path {
    /// The document as a whole.
    pub const ROOT: Self = Self(Vec::new());

    /// The steps, outermost first.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Whether `self` is `other`, or holds it.
    pub fn contains(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The way from `other`, which holds this field.
    pub fn relative_to(&self, other: &Self) -> Option<Self> {
        Some(Self(self.0.strip_prefix(other.0.as_slice())?.to_vec()))
    }

    /// The field that holds this one.
    pub fn parent(&self) -> Option<Self> {
        let (_, parent) = self.0.split_last()?;
        Some(Self(parent.to_vec()))
    }

    /// Entry `key` of this map.
    pub fn field(&self, key: &str) -> Self {
        self.with(Segment::Key(key.into()))
    }

    /// Entry `key` of an optional field's map, where the map may be what `key` is missing from.
    pub(super) fn fields(&self, keys: &[&str]) -> Self {
        keys.iter().fold(self.clone(), |path, key| path.field(key))
    }

    /// Item `index` of this list.
    pub fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = Vec::with_capacity(self.0.len() + 1);
        segments.extend_from_slice(&self.0);
        segments.push(segment);
        Self(segments)
    }
}

impl FromIterator<Segment> for Path {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        Self(segments.into_iter().collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                // Keys of labels have dots and slashes of their own.
                Segment::Key(key) if key.contains(['.', '/', ' ', ':']) => write!(f, "[{key}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}
