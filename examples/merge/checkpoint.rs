//! A checkpoint: one safetensors file, or several with an index.

use crate::Result;
use lora_kernels::peft::{TensorEntry, TensorFile};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest index that is read; an index of 100 000 tensors has about 10 MB.
const MAX_INDEX: u64 = 64 << 20;

pub struct Checkpoint {
    pub shards: Vec<TensorFile>,
    /// The number of the shard that has a tensor, by the tensor's name.
    shard_of: BTreeMap<String, usize>,
    /// The index of a sharded one.
    pub index: Option<PathBuf>,
}

impl Checkpoint {
    pub fn open(base: &Path) -> Result<Self> {
        let path = match base {
            dir if dir.is_dir() => match dir.join(INDEX) {
                index if index.exists() => index,
                _ => dir.join(SINGLE),
            },
            file => file.to_path_buf(),
        };
        if !path.to_string_lossy().ends_with(".json") {
            let file = TensorFile::open(path)?;
            let shard_of = file.entries().keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Checkpoint { shards: vec![file], shard_of, index: None });
        }
        let weights = read_index(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut numbers = BTreeMap::new();
        let (mut shards, mut shard_of) = (Vec::<TensorFile>::new(), BTreeMap::new());
        for (weight, file) in weights {
            let number = match numbers.get(&file) {
                Some(&number) => number,
                None => {
                    shards.push(TensorFile::open(folder.join(&file))?);
                    numbers.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            let shard = &shards[number];
            if !shard.entries().contains_key(&weight) {
                let (index, shard) = (path.display(), shard.path().display());
                return Err(format!("{index}: {weight} is not in {shard}").into());
            }
            shard_of.insert(weight, number);
        }
        Ok(Checkpoint { shards, shard_of, index: Some(path) })
    }

    /// Where a tensor is: the number of the file, and what its header says.
    pub fn find(&self, name: &str) -> Option<(usize, &TensorEntry)> {
        let &number = self.shard_of.get(name)?;
        Some((number, &self.shards[number].entries()[name]))
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shard_of.keys().map(String::as_str)
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        let first = self.index.as_deref().unwrap_or(self.shards[0].path());
        first.parent().unwrap_or(Path::new(""))
    }

    pub fn tensors(&self) -> usize {
        self.shard_of.len()
    }

    pub fn sharded(&self) -> bool {
        self.index.is_some()
    }

    /// All files there are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path()).chain(self.index.as_deref())
    }

    /// The size of the shards together.
    pub fn bytes(&self) -> Result<u64> {
        let sizes = self.shards.iter().map(|shard| Ok(fs::metadata(shard.path())?.len()));
        sizes.sum()
    }
}

/// The files of all tensors, by the tensor's name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut json = Vec::new();
    File::open(path)?.take(MAX_INDEX + 1).read_to_end(&mut json)?;
    if json.len() as u64 > MAX_INDEX {
        return Err(format!("has more than {MAX_INDEX} bytes").into());
    }
    let index: Value = serde_json::from_slice(&json)?;
    let weights = index.get("weight_map").and_then(Value::as_object);
    let mut files = BTreeMap::new();
    for (weight, file) in weights.ok_or("has no weight_map")? {
        let file = file.as_str().ok_or_else(|| format!("the file of {weight} is no text"))?;
        // Never a path to somewhere else.
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(format!("the file of {weight} is no plain name: {file:?}").into());
        }
        files.insert(weight.clone(), file.to_string());
    }
    if files.is_empty() {
        return Err("has no tensors in its weight_map".into());
    }
    Ok(files)
}
