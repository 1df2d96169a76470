//! JSON objects whose keys must differ, in the order of the file.

use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

/// The entries of a JSON object. Two of the same key are an error: other readers take one of them,
/// but not all the same one.
#[derive(Debug)]
pub(super) struct Entries<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
    type Value = Entries<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut keys = Keys::default();
        let mut entries = Vec::new();
        while let Some(key) = keys.next(&mut map)? {
            let value = map.next_value().map_err(|error| of(&key, error))?;
            entries.push((key, value));
        }
        Ok(Entries(entries))
    }
}

/// The header of a safetensors file: `__metadata__`, which must be texts, and tensors.
pub(super) struct Header {
    pub metadata: Vec<(String, String)>,
    pub tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut keys = Keys::default();
                let (mut metadata, mut tensors) = (Vec::new(), Vec::new());
                while let Some(key) = keys.next(&mut map)? {
                    if key == "__metadata__" {
                        // MLX writes null.
                        let entries: Option<Entries<_>> =
                            map.next_value().map_err(|error| of(&key, error))?;
                        metadata = entries.map_or(Vec::new(), |Entries(entries)| entries);
                    } else {
                        let info = map.next_value().map_err(|error| of(&key, error))?;
                        tensors.push((key, info));
                    }
                }
                Ok(Header { metadata, tensors })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The keys of an object that is being read.
#[derive(Debug, Default)]
struct Keys(HashSet<String>);

impl Keys {
    /// The next key, which must be a new one.
    fn next<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<String>, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return Ok(None) };
        if !self.0.insert(key.clone()) {
            return Err(A::Error::custom(format!("has {key:?} twice")));
        }
        Ok(Some(key))
    }
}

/// The error with the key under which it was met.
fn of<E: Error>(key: &str, error: E) -> E {
    E::custom(format!("of {key:?}: {error}"))
}
