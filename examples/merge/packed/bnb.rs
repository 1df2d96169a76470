//! bitsandbytes: NF4 and FP4 with scales of blocks, which may be quantised themselves, and int8 with
//! scales of rows.

use super::{Format, Packed, Place, floats, part, place};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::model::Model;
use lora_kernels::DType;
use serde_json::Value;
use std::io;
use std::ops::Range;

const STATE: &str = ".quant_state.bitsandbytes__";
/// The longest description of a weight that is read.
const MAX_STATE: u64 = 64 << 10;

/// 1 / 127, as bitsandbytes has it.
const PER_127: f32 = 7.874_016e-3;

/// A weight of 4 bits: the table's number at each half byte, times the scale of its block.
#[derive(Debug)]
pub struct Bnb4 {
    /// Two elements a byte, the first in the high half.
    data: Place,
    table: Vec<f32>,
    block: usize,
    absmax: Place,
    nested: Option<Nested>,
}

/// Scales of 8 bits: the table's number, times the scale of its block, plus the offset.
#[derive(Debug)]
struct Nested {
    table: Vec<f32>,
    absmax: Vec<f32>,
    block: usize,
    offset: f32,
}

/// A weight of 8 bits, and a scale for each row of it.
#[derive(Debug)]
pub struct Bnb8 {
    data: Place,
    scales: Place,
    cols: usize,
}

/// The weight that a tensor describes as one of 4 bits, and which kind.
pub fn of_4_bits(name: &str) -> Option<(&str, &'static str)> {
    let (weight, kind) = name.split_once(STATE)?;
    match kind {
        "nf4" => Some((weight, "bitsandbytes NF4")),
        "fp4" => Some((weight, "bitsandbytes FP4")),
        _ => None,
    }
}

pub fn four_bits(checkpoint: &Checkpoint, weight: &str, state: &str) -> Result<Packed> {
    let described = place(checkpoint, state)?;
    let wrong = |what: &str| format!("{}: {state} {what}", described.path.display());
    if described.len() > MAX_STATE {
        return Err(wrong("is too long for a description").into());
    }
    let json: Value = serde_json::from_slice(&described.all()?)
        .map_err(|error| wrong(&format!("is no JSON: {error}")))?;
    let number = |key: &str| {
        let number = json.get(key).and_then(Value::as_u64).filter(|&n| n > 0 && n <= 1 << 20);
        number.map(|n| n as usize).ok_or_else(|| wrong(&format!("has no {key}")))
    };
    let dims = json.get("shape").and_then(Value::as_array);
    let dims = dims.and_then(|dims| dims.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
    let shape: Vec<usize> = dims.unwrap_or_default().into_iter().map(|dim| dim as usize).collect();
    let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let Some(elements) = elements.filter(|&n| n > 0 && !shape.is_empty()) else {
        return Err(wrong("has no shape").into());
    };
    let dtype = match json.get("dtype").and_then(Value::as_str) {
        Some("bfloat16") => DType::Bf16,
        Some("float16") => DType::F16,
        Some("float32") => DType::F32,
        _ => return Err(wrong("has no dtype of bfloat16, float16 or float32").into()),
    };
    // The bytes may be stored as another type (quant_storage).
    let data = place(checkpoint, weight)?;
    if data.len() != elements.div_ceil(2) as u64 {
        let (bytes, path) = (data.len(), data.path.display());
        return Err(format!("{path}: {weight} has {bytes} bytes, not 4 bits for {shape:?}").into());
    }
    let block = number("blocksize")?;
    let blocks = elements.div_ceil(block);
    let of = |end: &str| format!("{weight}.{end}");
    let table = floats(&part(checkpoint, &of("quant_map"), &["F32"], 16)?)?;
    let nested = match checkpoint.find(&of("nested_absmax")) {
        None => None,
        Some(_) => {
            let block = number("nested_blocksize")?;
            let offset = json.get("nested_offset").and_then(Value::as_f64);
            let offset = offset.ok_or_else(|| wrong("has no nested_offset"))? as f32;
            let count = blocks.div_ceil(block);
            let absmax = floats(&part(checkpoint, &of("nested_absmax"), &["F32"], count)?)?;
            let table = floats(&part(checkpoint, &of("nested_quant_map"), &["F32"], 256)?)?;
            Some(Nested { table, absmax, block, offset })
        }
    };
    let types = if nested.is_some() { ["U8"] } else { ["F32"] };
    let absmax = part(checkpoint, &of("absmax"), &types, blocks)?;
    let format = Format::Bnb4(Bnb4 { data, table, block, absmax, nested });
    Ok(Packed { shape, dtype, format })
}

impl Bnb4 {
    pub fn scales(&self) -> io::Result<Vec<f32>> {
        let Some(nested) = &self.nested else { return floats(&self.absmax) };
        let scale = |(at, byte): (usize, u8)| {
            nested.table[usize::from(byte)] * nested.absmax[at / nested.block] + nested.offset
        };
        Ok(self.absmax.all()?.into_iter().enumerate().map(scale).collect())
    }

    pub fn decode(&self, scales: &[f32], elements: Range<usize>) -> io::Result<Vec<f32>> {
        let first = elements.start / 2;
        let bytes = self.data.read(first as u64..elements.end.div_ceil(2) as u64)?;
        let number = |at: usize| {
            let byte = bytes[at / 2 - first];
            let code = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            self.table[usize::from(code)] * scales[at / self.block]
        };
        Ok(elements.map(number).collect())
    }
}

pub fn eight_bits(checkpoint: &Checkpoint, model: &Model, module: &str) -> Result<Packed> {
    let name = format!("{module}.weight");
    let data = place(checkpoint, &name)?;
    let &[rows, cols] = &data.shape[..] else {
        return Err(
            format!("{}: {name} is no matrix: {:?}", data.path.display(), data.shape).into()
        );
    };
    let data = part(checkpoint, &name, &["I8"], rows * cols)?;
    let scales = part(checkpoint, &format!("{module}.SCB"), &["F32"], rows)?;
    let format = format!("{module}.weight_format");
    if checkpoint.find(&format).is_some() {
        let layout = part(checkpoint, &format, &["U8", "I8", "I32", "I64"], 1)?;
        if layout.all()?.iter().any(|&byte| byte != 0) {
            return Err(format!(
                "{}: {format} is not 0, rows one after the other: load and save the model with a \
                 bitsandbytes of today",
                layout.path.display()
            )
            .into());
        }
    }
    let dtype = model.dtype().unwrap_or(DType::F16);
    let (shape, format) = (vec![rows, cols], Format::Bnb8(Bnb8 { data, scales, cols }));
    Ok(Packed { shape, dtype, format })
}

impl Bnb8 {
    pub fn scales(&self) -> io::Result<Vec<f32>> {
        floats(&self.scales)
    }

    pub fn decode(&self, scales: &[f32], elements: Range<usize>) -> io::Result<Vec<f32>> {
        let bytes = self.data.read(elements.start as u64..elements.end as u64)?;
        let number =
            |(at, byte): (usize, u8)| f32::from(byte as i8) * scales[at / self.cols] * PER_127;
        Ok(elements.zip(bytes).map(number).collect())
    }
}
