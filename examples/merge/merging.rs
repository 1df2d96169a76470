//! Writing files with the planned changes.

use crate::output::Output;
use crate::packed::Reader;
use crate::plan::Change;
use crate::product::Tiles;
use crate::progress::Progress;
use crate::shard::Shard;
use crate::Result;
use half::{bf16, f16};
use lora_kernels::{half, ops, DType, Device, Tensor};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much is copied at a time.
const CHUNK: usize = 8 << 20;

/// How much of a weight is read, merged and written at a time: whole rows of about so many bytes,
/// which stay in the caches meanwhile.
const PART: usize = 1 << 20;

/// A file of the checkpoint, read from front to back.
struct Input<'a> {
    file: Reader,
    path: &'a Path,
}

impl Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        let path = self.path.display();
        let read = self.file.read_exact(into);
        Ok(read.map_err(|error| format!("{path} could not be read: {error}"))?)
    }
}

/// Copies a file, with the changes made on the way: in the order of the file, a few MB at a time.
pub fn rewrite(
    from: &Shard,
    to: &mut Output,
    changes: &[Change<'_>],
    device: &Device,
    progress: &mut Progress,
) -> Result<()> {
    let mut file = from.reader()?;
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut input = Input { file, path: from.path() };
    let mut at = 0;
    for change in changes {
        copy(&mut input, to, change.entry.bytes.start - at, progress)?;
        merge(&mut input, to, change, device, progress)?;
        progress.add_weight();
        at = change.entry.bytes.end;
    }
    copy(&mut input, to, length - at, progress)
}

fn copy(
    input: &mut Input<'_>,
    to: &mut Output,
    mut bytes: u64,
    progress: &mut Progress,
) -> Result<()> {
    let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
    while bytes > 0 {
        let part = &mut buffer[..bytes.min(CHUNK as u64) as usize];
        input.read(part)?;
        to.write(part)?;
        bytes -= part.len() as u64;
        progress.add_bytes(part.len() as u64);
    }
    Ok(())
}

/// Where B A is computed, with A.
enum Product {
    Cpu(Tiles),
    Gpu(Tensor),
}

/// Reads a weight, adds its update row by row, and writes it.
fn merge(
    input: &mut Input<'_>,
    to: &mut Output,
    change: &Change<'_>,
    device: &Device,
    progress: &mut Progress,
) -> Result<()> {
    let Change { adapter, dtype, scale, .. } = *change;
    let (r, k, d) = (adapter.rank(), adapter.a().shape().cols(), adapter.b().shape().rows());
    let (device, computed_in) = place(device, dtype, adapter.a().dtype());
    let (a, b) = (adapter.a().to_f32_vec()?, adapter.b().to_f32_vec()?);
    // Stored as [k, d], the weight gets the transposed update: (B A)ᵀ = Aᵀ Bᵀ.
    let (a, b, rows, cols) = match change.transposed {
        true => (transpose(&b, r), transpose(&a, k), k, d),
        false => (a, b, d, k),
    };
    let product = match device.is_cuda() {
        true => Product::Gpu(Tensor::from_f32(&device, &a, [r, cols], computed_in)?),
        false => Product::Cpu(Tiles::new(&a, r)),
    };

    let rows_at_once = (PART / (cols * dtype.bytes())).clamp(1, rows);
    let mut bytes = vec![0; rows_at_once * cols * dtype.bytes()];
    let (mut w0, mut w) = (vec![0.0; rows_at_once * cols], Vec::new());
    let mut row = 0;
    for b in b.chunks(rows_at_once * r) {
        let rows = b.len() / r;
        let bytes = &mut bytes[..rows * cols * dtype.bytes()];
        input.read(bytes)?;
        let w0 = &mut w0[..rows * cols];
        read_numbers(bytes, dtype, w0);
        w.clear();
        match &product {
            Product::Cpu(a) => {
                w.extend_from_slice(w0);
                a.add_product(&mut w, b, scale);
            }
            Product::Gpu(a) => {
                // Every element type is exact in f32, there and back.
                let mut on_gpu = Tensor::from_f32(&device, w0, [rows, cols], computed_in)?;
                let b = Tensor::from_f32(&device, b, [rows, r], computed_in)?;
                ops::merge_in_place(&device, on_gpu.view_mut(), a.view(), b.view(), scale)?;
                w = on_gpu.to_f32_vec()?;
            }
        }
        round(&w, dtype, bytes);
        if !change.allow_non_finite {
            check_finite(change, row, cols, w0, &w)?;
        }
        to.write(bytes)?;
        progress.add_bytes(bytes.len() as u64);
        row += rows;
    }
    Ok(())
}

/// The matrix of so many columns, transposed.
fn transpose(matrix: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| matrix.iter().skip(col).step_by(cols).copied()).collect()
}

/// Refuses merged rows, from `row` on, that hold infinities or NaN in the file's element type.
fn check_finite(
    change: &Change<'_>,
    row: usize,
    cols: usize,
    w0: &[f32],
    merged: &[f32],
) -> Result<()> {
    // From half a step above the largest number on, rounding gives infinity.
    let (largest, half_step) = match change.dtype {
        DType::F16 => (f16::MAX.to_f32(), 16.0),
        DType::Bf16 => (bf16::MAX.to_f32(), 2f32.powi(119)),
        _ => (f32::MAX, f32::INFINITY),
    };
    let fits = |number: &f32| number.abs() < largest + half_step;
    let Some(at) = merged.iter().position(|number| !fits(number)) else { return Ok(()) };
    let (weight, dtype, row, col) = (&change.weight, change.dtype, row + at / cols, at % cols);
    let (was, is) = (w0[at], merged[at]);
    Err(format!(
        "{weight} would not be finite: [{row}, {col}] is {was} in the checkpoint and {is} merged, \
         and the largest {dtype} is {largest}; --allow-non-finite writes it all the same"
    )
    .into())
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
pub fn numbers(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let mut numbers = vec![0.0; bytes.len() / dtype.bytes()];
    read_numbers(bytes, dtype, &mut numbers);
    numbers
}

fn read_numbers(bytes: &[u8], dtype: DType, numbers: &mut [f32]) {
    let fill = |numbers: &mut [f32], of: fn([u8; 2]) -> f32| {
        for (number, pair) in numbers.iter_mut().zip(bytes.chunks_exact(2)) {
            *number = of([pair[0], pair[1]]);
        }
    };
    match dtype {
        DType::Bf16 => fill(numbers, |pair| bf16::from_le_bytes(pair).to_f32()),
        DType::F16 => fill(numbers, |pair| f16::from_le_bytes(pair).to_f32()),
        _ => {
            for (number, four) in numbers.iter_mut().zip(bytes.chunks_exact(4)) {
                *number = f32::from_le_bytes(four.try_into().expect("four"));
            }
        }
    }
}

/// The file's bytes of numbers, each rounded to the nearest.
pub fn round(numbers: &[f32], dtype: DType, bytes: &mut [u8]) {
    for (bytes, &number) in bytes.chunks_exact_mut(dtype.bytes()).zip(numbers) {
        match dtype {
            DType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(number).to_le_bytes()),
            DType::F16 => bytes.copy_from_slice(&f16::from_f32(number).to_le_bytes()),
            _ => bytes.copy_from_slice(&number.to_le_bytes()),
        }
    }
}
