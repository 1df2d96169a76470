//! The header of an output file whose tensors have not all the sizes of the input's.

use crate::Result;
use crate::change::Change;
use crate::shard::Shard;
use lora_kernels::DType;
use lora_kernels::peft::TensorEntry;
use serde_json::{Map, Value};
use std::io::{Read, Seek, SeekFrom};

/// Bytes of the input up to its data, and the header in their place.
pub struct Header {
    pub input: u64,
    pub bytes: Vec<u8>,
}

/// The new header, if a tensor is added or gets another size. The input's tensors keep their order,
/// and its metadata stay.
pub fn header(shard: &Shard, changes: &[Change<'_>]) -> Result<Option<Header>> {
    let other = |change: &&Change<'_>| change.shape != change.entry.shape || is_added(change);
    let mut others = changes.iter().filter(other).peekable();
    if others.peek().is_none() {
        return Ok(None);
    }
    let mut file = shard.reader()?;
    let mut length = [0; 8];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json)?;
    let old: Map<String, Value> = serde_json::from_slice(&json)?;

    // Name, element type, shape and bytes of each, in the order of the data.
    let mut tensors: Vec<(u64, u64, String, String, Vec<usize>, u64)> = Vec::new();
    for (name, entry) in shard.entries() {
        let (start, end) = (entry.bytes.start, entry.bytes.end);
        let (dtype, shape) = (entry.dtype_name.clone(), entry.shape.clone());
        tensors.push((start, end, name.clone(), dtype, shape, end - start));
    }
    for change in others {
        let (entry, shape) = (&change.entry, change.shape.clone());
        let bytes = (shape.iter().product::<usize>() * change.dtype.bytes()) as u64;
        let dtype = name_of(change.dtype).to_string();
        let new = (entry.bytes.start, entry.bytes.end, change.weight.clone(), dtype, shape, bytes);
        match tensors.iter_mut().find(|tensor| tensor.2 == change.weight) {
            Some(tensor) => *tensor = new,
            None => tensors.push(new),
        }
    }
    tensors.sort();
    let mut fields = Map::new();
    if let Some(metadata) = old.get("__metadata__") {
        fields.insert("__metadata__".into(), metadata.clone());
    }
    let mut end = 0;
    for (_, _, name, dtype, shape, bytes) in tensors {
        let start = end;
        end += bytes;
        let tensor = serde_json::json!({
            "dtype": dtype, "shape": shape, "data_offsets": [start, end]
        });
        fields.insert(name, tensor);
    }
    let mut json = serde_json::to_vec(&fields)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let bytes = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
    Ok(Some(Header { input: 8 + length, bytes }))
}

/// Whether a change is a tensor that the input has not.
pub fn is_added(change: &Change<'_>) -> bool {
    change.entry.bytes.is_empty()
}

/// Where a tensor of this type is added: behind those whose elements are as wide or wider, so that
/// all stay aligned.
pub fn place(shard: &Shard, dtype: DType) -> Result<u64> {
    let narrower = |entry: &&TensorEntry| {
        let elements: usize = entry.shape.iter().product();
        let bytes = entry.bytes.end - entry.bytes.start;
        elements > 0 && bytes / (elements as u64) < dtype.bytes() as u64
    };
    let first = shard.entries().values().filter(narrower).map(|entry| entry.bytes.start).min();
    match first {
        Some(start) => Ok(start),
        None => shard.length(),
    }
}

pub fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        _ => "F32",
    }
}
