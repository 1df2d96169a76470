//! A checkpoint: one safetensors file, or several with an index.

use crate::change::Change;
use crate::model::Model;
use crate::shard::Shard;
use crate::{Result, base, header, packed};
use lora_kernels::peft::{TensorEntry, TensorFile};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// File names in a folder, of diffusers and of Mistral too, in the order of preference.
const NAMES: [&str; 5] = [
    INDEX,
    SINGLE,
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "consolidated.safetensors",
];
/// The largest index that is read; an index of 100 000 tensors has about 10 MB.
const MAX_INDEX: u64 = 64 << 20;

pub struct Checkpoint {
    pub shards: Vec<Shard>,
    /// The number of the shard that has a tensor, by the tensor's name.
    shard_of: BTreeMap<String, usize>,
    /// The index of a sharded one.
    pub index: Option<PathBuf>,
    /// Whether quantised weights have become plain ones.
    pub is_unpacked: bool,
}

impl Checkpoint {
    pub fn open(base: &Path) -> Result<Self> {
        let path = match base {
            dir if dir.is_dir() => {
                match NAMES.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
                    Some(path) => path,
                    None => return Self::open_folder(dir),
                }
            }
            file => file.to_path_buf(),
        };
        if base::is_lfs_pointer(&path) {
            return Err(lfs_pointer(&path).into());
        }
        if !path.to_string_lossy().ends_with(".json") {
            let file = open_shard(path)?;
            let shard_of = file.entries().keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Checkpoint {
                shards: vec![file],
                shard_of,
                index: None,
                is_unpacked: false,
            });
        }
        let weights = read_index(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut numbers = BTreeMap::new();
        let (mut shards, mut shard_of) = (Vec::<Shard>::new(), BTreeMap::new());
        for (weight, file) in weights {
            let number = match numbers.get(&file) {
                Some(&number) => number,
                None => {
                    shards.push(open_shard(folder.join(&file))?);
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
        Ok(Checkpoint { shards, shard_of, index: Some(path), is_unpacked: false })
    }

    /// The same with plain weights in the place of quantised ones; and what those are.
    pub fn unpacked(mut self, model: &Model) -> Result<(Self, Option<String>)> {
        let mut found = packed::find(&self, model)?;
        let count = found.weights.len();
        if count == 0 {
            return Ok((self, None));
        }
        let formats: Vec<_> = found.formats.iter().copied().collect();
        let note = format!(
            "{count} weights of the base are quantised ({}) and become 16-bit ones",
            formats.join(", ")
        );
        let shards = self.shards.into_iter().map(|shard| shard.unpacked(&mut found));
        self.shards = shards.collect::<Result<_>>()?;
        self.shard_of.retain(|name, _| !found.parts.contains(name));
        self.is_unpacked = true;
        Ok((self, Some(note)))
    }

    /// The shards of a folder without an index, in the order of their numbers.
    fn open_folder(dir: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(numbers);
            if let Some(numbers) = name {
                found.insert(numbers, path);
            }
        }
        let shown = dir.display();
        let Some(&(_, of)) = found.keys().next() else {
            return Err(match dir.join("pytorch_model.bin").exists() {
                true => format!(
                    "{shown} has pytorch_model.bin, a pickle file; have transformers save the \
                     model with safe_serialization=True"
                ),
                false => format!("{shown} has no {SINGLE}, {INDEX} or model-00001-of-0000N shards"),
            }
            .into());
        };
        if found.keys().copied().ne((1..=of).map(|number| (number, of))) {
            let got = found.len();
            return Err(format!(
                "{shown} has no {INDEX}, and not each of {of} shards once: {got} are there"
            )
            .into());
        }
        let (mut shards, mut shard_of) = (Vec::new(), BTreeMap::new());
        for (number, path) in found.into_values().enumerate() {
            let shard = open_shard(path)?;
            for name in shard.entries().keys() {
                if shard_of.insert(name.clone(), number).is_some() {
                    let shard = shard.path().display();
                    return Err(format!("{shard}: {name} is in another shard, too").into());
                }
            }
            shards.push(shard);
        }
        Ok(Checkpoint { shards, shard_of, index: None, is_unpacked: false })
    }

    /// The index's name and contents for the output: the base's own, or one for shards that have
    /// none or get new tensors.
    pub fn index_file(&self, changes: &[Vec<Change<'_>>]) -> Result<Option<(OsString, Vec<u8>)>> {
        let resized =
            |change: &&Change<'_>| header::is_added(change) || change.shape != change.entry.shape;
        let resized: Vec<&Change<'_>> = changes.iter().flatten().filter(resized).collect();
        let same = !self.is_unpacked && resized.is_empty();
        if let Some(index) = self.index.as_ref().filter(|_| same) {
            let name = index.file_name().ok_or("the index has no name")?;
            return Ok(Some((name.to_owned(), fs::read(index)?)));
        }
        if !self.sharded() {
            return Ok(None);
        }
        let name = |shard: usize| self.shards[shard].path().file_name().and_then(OsStr::to_str);
        let mut map: BTreeMap<&str, _> =
            self.shard_of.iter().map(|(key, &at)| (key.as_str(), name(at))).collect();
        let entries = self.shards.iter().flat_map(|shard| shard.entries().values());
        let mut bytes: u64 = entries.map(|entry| entry.bytes.end - entry.bytes.start).sum();
        for change in resized {
            let new = change.shape.iter().product::<usize>() * change.dtype.bytes();
            bytes = bytes + new as u64 - (change.entry.bytes.end - change.entry.bytes.start);
            map.entry(&change.weight).or_insert_with(|| name(self.shards.len() - 1));
        }
        let index = json!({"metadata": {"total_size": bytes}, "weight_map": map});
        let file = self.index.as_deref().and_then(Path::file_name).unwrap_or(INDEX.as_ref());
        Ok(Some((file.to_owned(), serde_json::to_vec_pretty(&index)?)))
    }

    /// Where a tensor is: the number of the file, and what its header says.
    pub fn find(&self, name: &str) -> Option<(usize, &TensorEntry)> {
        let &number = self.shard_of.get(name)?;
        Some((number, &self.shards[number].entries()[name]))
    }

    /// Whether there is a tensor of a module.
    pub fn has_module(&self, module: &str) -> bool {
        let start = format!("{module}.");
        let next = self.shard_of.range(start.clone()..).next();
        next.is_some_and(|(name, _)| name.starts_with(&start))
    }

    /// Whether there is a weight of a module, [d, k] or stored the other way round.
    pub fn has_weight(&self, module: &str, [d, k]: [usize; 2]) -> bool {
        let weight = self.find(&format!("{module}.weight"));
        weight
            .and_then(|(_, entry)| matrix(&entry.shape))
            .is_some_and(|is| is == [d, k] || is == [k, d])
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
        self.index.is_some() || self.shards.len() > 1
    }

    /// All files there are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path()).chain(self.index.as_deref())
    }

    /// The size of the shards together.
    pub fn bytes(&self) -> Result<u64> {
        self.shards.iter().map(Shard::length).sum()
    }
}

/// The shape of a weight that is a matrix, or a convolution of 1x1, which is one.
pub fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    match *shape {
        [rows, cols] | [rows, cols, 1, 1] => Some([rows, cols]),
        _ => None,
    }
}

fn open_shard(path: PathBuf) -> Result<Shard> {
    if base::is_lfs_pointer(&path) {
        return Err(lfs_pointer(&path).into());
    }
    Ok(Shard::Plain(TensorFile::open(path)?))
}

fn lfs_pointer(path: &Path) -> String {
    format!("{} is a Git LFS pointer, not the file itself: run git lfs pull", path.display())
}

/// N and M of `model-N-of-M.safetensors`.
fn numbers(name: &str) -> Option<(u32, u32)> {
    let numbers = name.strip_prefix("model-")?.strip_suffix(".safetensors")?;
    let (number, of) = numbers.split_once("-of-")?;
    Some((number.parse().ok()?, of.parse().ok()?))
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
