//! Quantised weights of a base, which read as 16-bit ones.
//!
//! A quantised checkpoint looks to the rest of the program like the one that dequantising would
//! make: shards have a header of their own, and a reader decodes what is asked for. What is merged
//! is what PEFT merges into a model after `model.dequantize()`.

mod bnb;
mod fp8;
mod reader;

pub use reader::{Layout, Reader};

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::merging::round;
use crate::model::Model;
use bnb::{Bnb4, Bnb8};
use fp8::Fp8;
use lora_kernels::DType;
use lora_kernels::peft::TensorEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where the bytes of a tensor are.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
    bytes: Range<u64>,
    dtype: String,
    shape: Vec<usize>,
}

impl Place {
    /// Reads some of the bytes.
    fn read(&self, bytes: Range<u64>) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.bytes.start + bytes.start))?;
        let mut read = vec![0; (bytes.end - bytes.start) as usize];
        file.read_exact(&mut read)?;
        Ok(read)
    }

    fn all(&self) -> io::Result<Vec<u8>> {
        self.read(0..self.len())
    }

    fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A quantised weight, and what it is as a plain one.
#[derive(Debug)]
pub struct Packed {
    pub shape: Vec<usize>,
    pub dtype: DType,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Bnb4(Bnb4),
    Bnb8(Bnb8),
    Fp8(Fp8),
}

/// The scales of a weight, in f32.
#[derive(Debug)]
pub struct Scales(Vec<f32>);

impl Packed {
    pub fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bytes()) as u64
    }

    /// Its scales, which are small beside the weight.
    fn scales(&self) -> io::Result<Scales> {
        Ok(Scales(match &self.format {
            Format::Bnb4(weight) => weight.scales()?,
            Format::Bnb8(weight) => weight.scales()?,
            Format::Fp8(weight) => weight.scales()?,
        }))
    }

    /// The bytes of some elements, rounded to its type.
    fn decode(&self, scales: &Scales, elements: Range<usize>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; elements.len() * self.dtype.bytes()];
        let numbers = match &self.format {
            Format::Bnb4(weight) => weight.decode(&scales.0, elements)?,
            Format::Bnb8(weight) => weight.decode(&scales.0, elements)?,
            Format::Fp8(weight) => weight.decode(&scales.0, elements)?,
        };
        round(&numbers, self.dtype, &mut bytes);
        Ok(bytes)
    }
}

/// What a checkpoint holds that is quantised, in formats that can be decoded.
#[derive(Debug, Default)]
pub struct Found {
    pub weights: BTreeMap<String, Packed>,
    /// Scales, and what else belongs to the weights.
    pub parts: BTreeSet<String>,
    pub formats: BTreeSet<&'static str>,
}

/// Finds the quantised weights of a checkpoint.
pub fn find(checkpoint: &Checkpoint, model: &Model) -> Result<Found> {
    let mut found = Found::default();
    for name in checkpoint.names() {
        let (weight, format, packed) = if let Some((weight, kind)) = bnb::of_4_bits(name) {
            (weight.to_string(), kind, bnb::four_bits(checkpoint, weight, name)?)
        } else if let Some(module) = name.strip_suffix(".SCB") {
            (
                format!("{module}.weight"),
                "bitsandbytes int8",
                bnb::eight_bits(checkpoint, model, module)?,
            )
        } else if fp8::is(checkpoint, model, name) {
            (name.to_string(), "FP8", fp8::find(checkpoint, model, name)?)
        } else {
            continue;
        };
        found.formats.insert(format);
        found.parts.extend(parts(checkpoint, &weight));
        found.weights.insert(weight, packed);
    }
    Ok(found)
}

/// The tensors that belong to a quantised weight.
fn parts(checkpoint: &Checkpoint, weight: &str) -> Vec<String> {
    let mut parts: Vec<String> = fp8::SCALES.iter().map(|end| format!("{weight}{end}")).collect();
    if let Some(module) = weight.strip_suffix(".weight") {
        let ends = ["SCB", "weight_format", "input_scale", "activation_scale"];
        parts.extend(ends.map(|end| format!("{module}.{end}")));
    }
    parts.retain(|part| checkpoint.find(part).is_some());
    let beneath = format!("{weight}.");
    parts.extend(checkpoint.names().filter(|name| name.starts_with(&beneath)).map(String::from));
    parts
}

/// A tensor of the checkpoint that must be there, with its elements and one of the types.
fn part(checkpoint: &Checkpoint, name: &str, types: &[&str], elements: usize) -> Result<Place> {
    let place = place(checkpoint, name)?;
    if !types.contains(&&*place.dtype) || place.elements() != elements {
        let (path, dtype, shape) = (place.path.display(), &place.dtype, &place.shape);
        let types = types.join(" or ");
        return Err(format!(
            "{path}: {name} is {dtype} {shape:?}, but {elements} elements of {types} are expected"
        )
        .into());
    }
    Ok(place)
}

fn place(checkpoint: &Checkpoint, name: &str) -> Result<Place> {
    let Some((shard, entry)) = checkpoint.find(name) else {
        return Err(
            format!("the checkpoint has no {name}, which its quantised weight needs").into()
        );
    };
    Ok(at(checkpoint.shards[shard].path(), entry))
}

fn at(path: &Path, entry: &TensorEntry) -> Place {
    Place {
        path: path.into(),
        bytes: entry.bytes.clone(),
        dtype: entry.dtype_name.clone(),
        shape: entry.shape.clone(),
    }
}

/// The numbers in the bytes of F32, F16 or BF16.
fn floats(place: &Place) -> io::Result<Vec<f32>> {
    let dtype = match &*place.dtype {
        "BF16" => DType::Bf16,
        "F16" => DType::F16,
        _ => DType::F32,
    };
    Ok(crate::merging::numbers(&place.all()?, dtype))
}
