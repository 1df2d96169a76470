//! Writing files with the planned changes.

use crate::Result;
use crate::change::{Change, Kind, Split, Update};
use crate::header::header;
use crate::output::Output;
use crate::packed::Reader;
use crate::product::Tiles;
use crate::progress::Progress;
use crate::replacing;
use crate::shard::Shard;
use half::{bf16, f16};
use lora_kernels::{DType, Device, Tensor, half, ops};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much is copied at a time.
pub const CHUNK: usize = 8 << 20;

/// How much of a weight is read, merged and written at a time: whole rows of about so many bytes,
/// which stay in the caches meanwhile.
const PART: usize = 1 << 20;

/// The largest rank that a GPU merges.
const MAX_RANK: usize = 256;

/// A file of the checkpoint, read from front to back.
pub struct Input<'a> {
    file: Reader,
    path: &'a Path,
}

impl Input<'_> {
    pub fn read(&mut self, into: &mut [u8]) -> Result<()> {
        let path = self.path.display();
        let read = self.file.read_exact(into);
        Ok(read.map_err(|error| format!("{path} could not be read: {error}"))?)
    }

    /// Reads without going on.
    pub fn peek(&mut self, into: &mut [u8]) -> Result<()> {
        self.read(into)?;
        self.skip_by(-(into.len() as i64))
    }

    pub fn skip(&mut self, bytes: u64) -> Result<()> {
        self.skip_by(bytes as i64)
    }

    fn skip_by(&mut self, bytes: i64) -> Result<()> {
        let path = self.path.display();
        let sought = self.file.seek(SeekFrom::Current(bytes));
        sought.map_err(|error| format!("{path} could not be read: {error}"))?;
        Ok(())
    }
}

/// Copies a file, with the changes made on the way: in the order of the file, a few MB at a time.
pub fn rewrite(
    shard: &Shard,
    to: &mut Output,
    changes: &[Change<'_>],
    device: &Device,
    progress: &mut Progress,
) -> Result<()> {
    let mut file = shard.reader()?;
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut input = Input { file, path: shard.path() };
    let mut at = 0;
    if let Some(header) = header(shard, changes)? {
        at = header.input;
        input.skip(at)?;
        to.write(&header.bytes)?;
    }
    let mut split = Split::default();
    for change in changes {
        copy(&mut input, to, change.entry.bytes.start - at, progress)?;
        match &change.kind {
            Kind::Update { base, updates } => {
                let updates = updates.iter();
                let terms =
                    updates.map(|update| Term::new(update, change.dtype, &mut split, device));
                let terms = terms.collect::<Result<Vec<_>>>()?;
                merge(&mut input, to, change, *base, &terms, progress)?;
            }
            Kind::Rows(tokens) => replacing::rows(&mut input, to, change, tokens)?,
            kind => {
                replacing::tensor(&mut input, to, change, kind)?;
                input.skip(change.entry.bytes.end - change.entry.bytes.start)?;
            }
        }
        if !matches!(change.kind, Kind::Update { .. }) {
            progress.add_bytes(change.entry.bytes.end - change.entry.bytes.start);
        }
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

/// An update in the layout of its weight, [rows, cols] = B [rows, r] · A [r, cols].
struct Term {
    product: Product,
    b: Vec<f32>,
    r: usize,
    rows: usize,
    cols: usize,
    scale: f32,
    magnitude: Option<Vec<f32>>,
    transposed: bool,
}

impl Term {
    fn new(update: &Update<'_>, dtype: DType, split: &mut Split, device: &Device) -> Result<Self> {
        let factors = &update.factors;
        let (r, [d, k]) = (factors.rank(), factors.shape());
        let magnitude = update.magnitude.map(Tensor::to_f32_vec).transpose()?;
        let on_gpu = matches!(dtype, DType::Bf16 | DType::F16)
            && device.is_cuda()
            && r <= MAX_RANK
            && magnitude.is_none();
        let [a, b] = split.numbers(factors)?;
        // Stored as [k, d], the weight gets the transposed update: (B A)ᵀ = Aᵀ Bᵀ.
        let (a, b, rows, cols) = match update.transposed {
            true => (transpose(&b, r), transpose(&a, k), k, d),
            false => (a, b, d, k),
        };
        let product = match on_gpu {
            true => Product::Gpu(Tensor::from_f32(device, &a, [r, cols], dtype)?),
            false => Product::Cpu(Tiles::new(&a, r)),
        };
        let (scale, transposed) = (update.scale, update.transposed);
        Ok(Term { product, b, r, rows, cols, scale, magnitude, transposed })
    }

    /// Adds the update to the rows of a weight from `row` on.
    fn add(&self, w: &mut Vec<f32>, row: usize) -> Result<()> {
        let (r, cols) = (self.r, self.cols);
        let rows = w.len() / cols;
        let b = &self.b[row * r..(row + rows) * r];
        match &self.product {
            Product::Cpu(a) => a.add_product(w, b, self.scale),
            Product::Gpu(a) => {
                // Every element type is exact in f32, there and back.
                let (device, dtype) = (a.device(), a.dtype());
                let mut sum = Tensor::from_f32(device, w, [rows, cols], dtype)?;
                let b = Tensor::from_f32(device, b, [rows, r], dtype)?;
                ops::merge_in_place(device, sum.view_mut(), a.view(), b.view(), self.scale)?;
                *w = sum.to_f32_vec()?;
            }
        }
        match &self.magnitude {
            Some(magnitude) if self.transposed => scale_columns(w, cols, magnitude),
            Some(magnitude) => scale_rows(w, cols, &magnitude[row..]),
            None => {}
        }
        Ok(())
    }
}

/// Reads a weight, unless it has another base, adds its updates row by row, and writes it.
fn merge(
    input: &mut Input<'_>,
    to: &mut Output,
    change: &Change<'_>,
    base: Option<&Tensor>,
    terms: &[Term],
    progress: &mut Progress,
) -> Result<()> {
    let (dtype, first) = (change.dtype, &terms[0]);
    let (rows, cols) = (first.rows, first.cols);
    let base = base.map(Tensor::to_f32_vec).transpose()?;
    if base.is_some() {
        input.skip(change.entry.bytes.end - change.entry.bytes.start)?;
    }
    // The norms of columns are of all rows.
    let rows_at_once = match first.transposed && first.magnitude.is_some() {
        true => rows,
        false => (PART / (cols * dtype.bytes())).clamp(1, rows),
    };
    let mut bytes = vec![0; rows_at_once * cols * dtype.bytes()];
    let (mut w0, mut w) = (vec![0.0; rows_at_once * cols], Vec::new());
    for row in (0..rows).step_by(rows_at_once) {
        let rows = rows_at_once.min(rows - row);
        let bytes = &mut bytes[..rows * cols * dtype.bytes()];
        match &base {
            Some(base) => round(&base[row * cols..(row + rows) * cols], dtype, bytes),
            None => input.read(bytes)?,
        }
        let w0 = &mut w0[..rows * cols];
        read_numbers(bytes, dtype, w0);
        w.clear();
        w.extend_from_slice(w0);
        for term in terms {
            term.add(&mut w, row)?;
        }
        round(&w, dtype, bytes);
        if !change.allow_non_finite {
            check_finite(change, row, cols, w0, &w)?;
        }
        to.write(bytes)?;
        progress.add_bytes(bytes.len() as u64);
    }
    Ok(())
}

/// Gives each row its magnitude (DoRA).
fn scale_rows(w: &mut [f32], cols: usize, magnitude: &[f32]) {
    for (row, magnitude) in w.chunks_exact_mut(cols).zip(magnitude) {
        let square: f64 = row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
        let factor = f64::from(*magnitude) / square.sqrt();
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
    }
}

/// Gives each column its magnitude.
fn scale_columns(w: &mut [f32], cols: usize, magnitude: &[f32]) {
    for (col, magnitude) in magnitude.iter().enumerate() {
        let column = || w.iter().skip(col).step_by(cols);
        let square: f64 = column().map(|w| f64::from(*w) * f64::from(*w)).sum();
        let factor = f64::from(*magnitude) / square.sqrt();
        let column = w.iter_mut().skip(col).step_by(cols);
        column.for_each(|w| *w = (f64::from(*w) * factor) as f32);
    }
}

/// The matrix of so many columns, transposed.
fn transpose(matrix: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| matrix.iter().skip(col).step_by(cols).copied()).collect()
}

/// Refuses merged rows, from `row` on, that hold infinities or NaN in the file's element type.
pub fn check_finite(
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
