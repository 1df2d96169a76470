//! Which tensors change, and writing files with those changed.

use crate::checkpoint::Checkpoint;
use crate::output::Output;
use crate::Result;
use half::{bf16, f16};
use indicatif::ProgressBar;
use lora_kernels::peft::{Adapters, TensorEntry};
use lora_kernels::{half, ops, Adapter, DType, Device, Tensor};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// How much is read, merged and written at a time: whole rows of about so many bytes.
const CHUNK: usize = 8 << 20;

/// A weight and the update that it gets.
pub struct Change<'a> {
    pub weight: String,
    pub entry: TensorEntry,
    pub dtype: DType,
    pub adapter: &'a Adapter,
    /// s, times what the user asked for.
    pub scale: f32,
}

/// What changes in each file of a checkpoint; an adapter that has no weight to go to is an error.
pub fn plan<'a>(
    checkpoint: &Checkpoint,
    adapters: &'a Adapters,
    factor: f32,
) -> Result<Vec<Vec<Change<'a>>>> {
    let mut changes: Vec<Vec<Change>> = checkpoint.shards.iter().map(|_| Vec::new()).collect();
    for (module, adapter) in &adapters.adapters {
        let weight = format!("{module}.weight");
        let Some((shard, entry)) = checkpoint.find(&weight) else {
            return Err(format!("the checkpoint has no {weight} for the adapter {module}").into());
        };
        let shard_path = checkpoint.shards[shard].path().display();
        let Some(dtype) = entry.dtype else {
            let got = &entry.dtype_name;
            return Err(format!("{shard_path}: {weight} holds {got}, not F32, F16 or BF16").into());
        };
        let shape = [adapter.b().shape().rows(), adapter.a().shape().cols()];
        if entry.shape != shape {
            let (is, is_for) = (&entry.shape, shape);
            return Err(format!(
                "{shard_path}: {weight} has shape {is:?}, but the adapter {module} is for \
                 {is_for:?}"
            )
            .into());
        }
        let scale = adapter.scale() * factor;
        if !scale.is_finite() {
            return Err(format!("the scale of the adapter {module} would be {scale}").into());
        }
        changes[shard].push(Change { weight, entry: entry.clone(), dtype, adapter, scale });
    }
    for changes in &mut changes {
        changes.sort_by_key(|change| change.entry.bytes.start);
    }
    Ok(changes)
}

/// Copies a file, with the changes made on the way: in the order of the file, a few MB at a time.
pub fn rewrite(
    from: &Path,
    to: &mut Output,
    changes: &[Change<'_>],
    device: &Device,
    progress: &ProgressBar,
) -> Result<()> {
    let mut file = File::open(from)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut at = 0;
    for change in changes {
        copy(&mut file, to, change.entry.bytes.start - at, progress)?;
        merge(&mut file, to, change, device, progress)?;
        at = change.entry.bytes.end;
    }
    copy(&mut file, to, length - at, progress)
}

fn copy(file: &mut File, to: &mut Output, mut bytes: u64, progress: &ProgressBar) -> Result<()> {
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    while bytes > 0 {
        let part = &mut buffer[..bytes.min(CHUNK as u64) as usize];
        file.read_exact(part)?;
        to.write_all(part)?;
        bytes -= part.len() as u64;
        progress.inc(part.len() as u64);
    }
    Ok(())
}

/// Reads a weight, adds its update row by row, and writes it.
fn merge(
    file: &mut File,
    to: &mut Output,
    change: &Change<'_>,
    device: &Device,
    progress: &ProgressBar,
) -> Result<()> {
    let Change { adapter, dtype, scale, .. } = *change;
    let (r, k, d) = (adapter.rank(), adapter.a().shape().cols(), adapter.b().shape().rows());
    let (device, computed_in) = place(device, dtype, adapter.a().dtype());
    let a = Tensor::from_f32(&device, &adapter.a().to_f32_vec()?, [r, k], computed_in)?;
    let b = adapter.b().to_f32_vec()?;

    let rows_at_once = (CHUNK / (k * dtype.bytes())).clamp(1, d);
    let mut bytes = vec![0; rows_at_once * k * dtype.bytes()];
    for b in b.chunks(rows_at_once * r) {
        let rows = b.len() / r;
        let bytes = &mut bytes[..rows * k * dtype.bytes()];
        file.read_exact(bytes)?;
        // Every element type is exact in f32, there and back.
        let mut w = Tensor::from_f32(&device, &numbers(bytes, dtype), [rows, k], computed_in)?;
        let b = Tensor::from_f32(&device, b, [rows, r], computed_in)?;
        ops::merge_in_place(&device, w.view_mut(), a.view(), b.view(), scale)?;
        round(&w.to_f32_vec()?, dtype, bytes);
        to.write_all(bytes)?;
        progress.inc(bytes.len() as u64);
    }
    Ok(())
}

/// Where a weight is merged, and in what: on a GPU in its own element type, which rounds A and B to
/// it; on the CPU in f32 where the adapter's is another.
fn place(device: &Device, weight: DType, adapter: DType) -> (Device, DType) {
    match (device.is_cuda(), weight) {
        (true, DType::Bf16 | DType::F16) => (device.clone(), weight),
        _ if weight == adapter => (Device::cpu(), weight),
        _ => (Device::cpu(), DType::F32),
    }
}

/// The numbers in a file's bytes.
fn numbers(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        DType::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        DType::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        _ => {
            let fours = bytes.chunks_exact(4);
            fours.map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect()
        }
    }
}

/// The file's bytes of numbers, each rounded to the nearest.
fn round(numbers: &[f32], dtype: DType, bytes: &mut [u8]) {
    for (bytes, &number) in bytes.chunks_exact_mut(dtype.bytes()).zip(numbers) {
        match dtype {
            DType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(number).to_le_bytes()),
            DType::F16 => bytes.copy_from_slice(&f16::from_f32(number).to_le_bytes()),
            _ => bytes.copy_from_slice(&number.to_le_bytes()),
        }
    }
}
