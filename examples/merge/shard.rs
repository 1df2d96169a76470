//! A file of a checkpoint: as it is, or with plain weights in the place of quantised ones.

use crate::Result;
use crate::packed::{Found, Layout, Reader};
use lora_kernels::peft::{TensorEntry, TensorFile};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

pub enum Shard {
    Plain(TensorFile),
    Unpacked(TensorFile<Reader>, Rc<Layout>),
}

impl Shard {
    /// The same with plain weights for the packed ones in it.
    pub fn unpacked(self, found: &mut Found) -> Result<Self> {
        let has_part = self
            .entries()
            .keys()
            .any(|name| found.parts.contains(name) || found.weights.contains_key(name));
        if !has_part {
            return Ok(self);
        }
        let layout = Rc::new(Layout::new(&self, found)?);
        let reader = Reader::open(self.path(), Some(&layout))?;
        Ok(Shard::Unpacked(TensorFile::new(self.path(), reader)?, layout))
    }

    pub fn path(&self) -> &Path {
        match self {
            Shard::Plain(file) => file.path(),
            Shard::Unpacked(file, _) => file.path(),
        }
    }

    /// All tensors, by name.
    pub fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        match self {
            Shard::Plain(file) => file.entries(),
            Shard::Unpacked(file, _) => file.entries(),
        }
    }

    /// Its bytes from the first on.
    pub fn reader(&self) -> Result<Reader> {
        let layout = match self {
            Shard::Plain(_) => None,
            Shard::Unpacked(_, layout) => Some(layout),
        };
        let reader = Reader::open(self.path(), layout);
        Ok(reader
            .map_err(|error| format!("{} could not be read: {error}", self.path().display()))?)
    }

    /// How many bytes it has.
    pub fn length(&self) -> Result<u64> {
        Ok(match self {
            Shard::Plain(file) => fs::metadata(file.path())?.len(),
            Shard::Unpacked(_, layout) => layout.length(),
        })
    }
}
