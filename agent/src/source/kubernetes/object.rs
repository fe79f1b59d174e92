//! An object as it comes from the API server, decoded once and without what is not read.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DynamicResourceScope;
use kube::discovery::ApiResource;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is kept of a value. Lists are kept with what is kept of their items.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    All,
    /// Of a map these, each as far as it says.
    Fields(&'static [(&'static str, &'static Kept)]),
}

/// What is kept of the objects of some kinds.
pub(super) trait Fields: Clone + fmt::Debug + Send + Sync + 'static {
    const KEPT: &'static Kept;
}

/// An object.
#[derive(Clone, Debug)]
pub(super) struct Object<F> {
    /// No more than its version, which the watch needs.
    meta: ObjectMeta,
    value: Value,
    fields: PhantomData<F>,
}

impl<F> Object<F> {
    /// What it says.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// As a manifest. What a list leaves out, for all its items have it, is there too.
    pub(super) fn into_value(self, resource: &ApiResource) -> Value {
        let mut value = self.value;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".to_owned(), resource.api_version.as_str().into());
            fields.insert("kind".to_owned(), resource.kind.as_str().into());
        }
        value
    }
}

impl<'de, F: Fields> serde::Deserialize<'de> for Object<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Seed(F::KEPT).deserialize(deserializer)?;
        let resource_version = value
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .and_then(|metadata| metadata.remove("resourceVersion"))
            .and_then(|version| version.as_str().map(ToOwned::to_owned));
        let meta = ObjectMeta { resource_version, ..ObjectMeta::default() };
        Ok(Self { meta, value, fields: PhantomData })
    }
}

impl<F> Resource for Object<F> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Decodes into a [`Value`] and skips what is not kept.
#[derive(Clone, Copy)]
pub(super) struct Seed(pub &'static Kept);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Seed(self.0).deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(Seed(self.0))? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
            let of_value = match self.0 {
                Kept::All => Some(&Kept::All),
                Kept::Fields(fields) => {
                    fields.iter().find(|(name, _)| *name == key).map(|(_, kept)| *kept)
                }
            };
            match of_value {
                Some(of_value) => {
                    let value = entries.next_value_seed(Seed(of_value))?;
                    kept.insert(key.into_owned(), value);
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }
}
