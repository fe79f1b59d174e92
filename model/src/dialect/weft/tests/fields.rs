//! What the API server keeps of an object is what its definition names, so a field that is read
//! here and not named there would say nothing in a cluster, and nobody would be told.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::Value;

use super::super::schema::{MeshPolicySpec, MeshSettingsSpec};
use crate::dialect::yaml;

#[test]
fn definitions_name_the_fields_that_are_read() {
    macro_rules! definition {
        ($name:literal) => {
            include_str!(concat!("../../../../../charts/weft/crds/", $name, ".weft.dev.yaml"))
        };
    }
    assert_eq!(read::<MeshPolicySpec>(), named(definition!("meshpolicies")));
    assert_eq!(read::<MeshPolicySpec>(), named(definition!("clustermeshpolicies")));
    assert_eq!(read::<MeshSettingsSpec>(), named(definition!("meshsettings")));
}

/// The fields of a definition's `spec`.
fn named(definition: &str) -> BTreeSet<String> {
    let definition = yaml::read(definition).pop().unwrap().value;
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = BTreeSet::new();
    name(&schema["properties"]["spec"], "spec", &mut found);
    assert!(found.len() > 5, "{found:?}");
    found
}

fn name(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{field}");
        name(schema, &path, found);
        found.insert(path);
    }
    for (inner, way) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[inner].is_object() {
            name(&schema[inner], &format!("{path}{way}"), found);
        }
    }
}

/// The fields of a type.
fn read<T: DeserializeOwned>() -> BTreeSet<String> {
    let found = RefCell::default();
    let everything = Everything { path: "spec".to_owned(), found: &found };
    T::deserialize(everything).map(drop).unwrap();
    found.into_inner()
}

/// An object in which every field is there.
#[derive(Clone)]
struct Everything<'a> {
    path: String,
    found: &'a RefCell<BTreeSet<String>>,
}

impl Everything<'_> {
    fn at(&self, way: &str) -> Self {
        Self { path: format!("{}{way}", self.path), ..self.clone() }
    }
}

impl<'de> Deserializer<'de> for Everything<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(true)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(1)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("text")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(self.at("[]"))))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Entries { of: self.at("{}"), keys: vec!["any"], key: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let paths = fields.iter().map(|field| format!("{}.{field}", self.path));
        self.found.borrow_mut().extend(paths);
        visitor.visit_map(Entries { of: self.at("."), keys: fields.to_vec(), key: None })
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct enum identifier ignored_any
    }
}

struct One<'a>(Option<Everything<'a>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

struct Entries<'a> {
    of: Everything<'a>,
    keys: Vec<&'static str>,
    key: Option<&'static str>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.key = self.keys.pop();
        let key = self.key.map(|key| -> StrDeserializer<'_, Error> { key.into_deserializer() });
        key.map(|key| seed.deserialize(key)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        // What is in a map has no name of its own.
        let way = self.key.filter(|_| self.of.path.ends_with('.')).unwrap_or_default();
        seed.deserialize(self.of.at(way))
    }
}
