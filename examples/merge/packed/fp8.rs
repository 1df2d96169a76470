//! FP8 (e4m3fn and e5m2) with a scale for the tensor, for each row or for each block: the formats of
//! DeepSeek, compressed-tensors, FBGEMM and ModelOpt.

use super::{Format, Packed, Place, floats, part, place};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::model::Model;
use lora_kernels::DType;
use std::io;
use std::ops::Range;

/// How the names of the scales go on from that of the weight.
pub const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// The block where nothing says another.
const BLOCK: usize = 128;

/// The number of a byte, times the scale of its block.
#[derive(Debug)]
pub struct Fp8 {
    data: Place,
    table: Vec<f32>,
    scales: Place,
    /// Rows and columns of each of the matrices one after the other.
    rows: usize,
    cols: usize,
    /// Scales of a matrix, and elements that share one; 0 scales if one is for all.
    grid: [usize; 2],
    block: [usize; 2],
}

/// Whether a tensor is a quantised weight: FP8 with a scale, or in a checkpoint that says that it is
/// quantised. All else is what the checkpoint holds besides.
pub fn is(checkpoint: &Checkpoint, model: &Model, name: &str) -> bool {
    let fp8 = |dtype: &str| matches!(dtype, "F8_E4M3" | "F8_E5M2");
    checkpoint.find(name).is_some_and(|(_, entry)| fp8(&entry.dtype_name))
        && (model.quantised_by().is_some() || scale_of(checkpoint, name).is_some())
}

fn scale_of(checkpoint: &Checkpoint, name: &str) -> Option<String> {
    let mut names = SCALES.iter().map(|end| format!("{name}{end}"));
    names.find(|scale| checkpoint.find(scale).is_some())
}

pub fn find(checkpoint: &Checkpoint, model: &Model, name: &str) -> Result<Packed> {
    let data = place(checkpoint, name)?;
    let wrong = |what: String| format!("{}: {name} {what}", data.path.display());
    let shape = data.shape.clone();
    let [leading @ .., rows, cols] = &shape[..] else {
        return Err(wrong(format!("is FP8 of shape {shape:?}, not a matrix")).into());
    };
    let (matrices, rows, cols) = (leading.iter().product::<usize>(), *rows, *cols);
    if shape.contains(&0) {
        return Err(wrong(format!("is FP8 of shape {shape:?}, which is empty")).into());
    }
    let Some(scale) = scale_of(checkpoint, name) else {
        let what = "is FP8, but has no scale (weight_scale_inv, weight_scale)";
        return Err(wrong(what.into()).into());
    };
    let scales = place(checkpoint, &scale)?;
    let (count, of) = (scales.elements(), scales.shape.clone());
    let scales = part(checkpoint, &scale, &["F32", "BF16", "F16", "F8_E8M0", "U8"], count)?;
    let grid = match of[..] {
        _ if count == 1 && matrices == 1 => [1, 1],
        _ if count == 1 => [0, 0],
        // A scale for each row, and for each matrix of experts.
        [n] if n == rows && matrices == 1 => [rows, 1],
        [.., grid_rows, grid_cols]
            if of[..of.len() - 2] == *leading && grid_rows > 0 && grid_cols > 0 =>
        {
            [grid_rows, grid_cols]
        }
        _ => return Err(wrong(format!("is FP8 {shape:?}, which scales {of:?} do not fit")).into()),
    };
    let block = match grid {
        [0, 0] => [1, 1],
        _ => block(model, [rows, cols], grid)
            .map_err(|why| wrong(format!("is FP8 {shape:?} with scales {of:?}: {why}")))?,
    };
    Ok(packed(model, data.clone(), scales, shape.clone(), [rows, cols], grid, block))
}

fn packed(
    model: &Model,
    data: Place,
    scales: Place,
    shape: Vec<usize>,
    [rows, cols]: [usize; 2],
    grid: [usize; 2],
    block: [usize; 2],
) -> Packed {
    let table = table(&data.dtype);
    let dtype = model.dtype().unwrap_or(DType::Bf16);
    let format = Format::Fp8(Fp8 { data, table, scales, rows, cols, grid, block });
    Packed { shape, dtype, format }
}

/// The rows and columns of a block.
fn block(model: &Model, shape: [usize; 2], grid: [usize; 2]) -> Result<[usize; 2], String> {
    let fits =
        |block: &[usize; 2]| (0..2).all(|i| block[i] > 0 && shape[i].div_ceil(block[i]) == grid[i]);
    if let Some(block) = model.weight_block().filter(fits) {
        return Ok(block);
    }
    // A row or column of blocks is as long as the matrix.
    let whole = |block: [usize; 2]| [0, 1].map(|i| if grid[i] == 1 { shape[i] } else { block[i] });
    let even = [0, 1].map(|i| shape[i] / grid[i]);
    let even = (shape == [0, 1].map(|i| even[i] * grid[i])).then(|| whole(even));
    let usual = Some([BLOCK; 2]).filter(fits).map(whole);
    match (even, usual) {
        (Some(block), None) | (None, Some(block)) => Ok(block),
        (Some(block), Some(other)) if block == other => Ok(block),
        (None, None) => Err("they fit no size of blocks".into()),
        (Some(_), Some(_)) => {
            Err("the size of blocks is not certain: weight_block_size in quantization_config of \
                 config.json says it"
                .into())
        }
    }
}

impl Fp8 {
    pub fn scales(&self) -> io::Result<Vec<f32>> {
        let scales = &self.scales;
        match &*scales.dtype {
            // Powers of 2.
            "F8_E8M0" | "U8" => {
                let power = |byte: u8| match byte {
                    255 => f32::NAN,
                    byte => 2f64.powi(i32::from(byte) - 127) as f32,
                };
                Ok(scales.all()?.into_iter().map(power).collect())
            }
            _ => floats(scales),
        }
    }

    pub fn decode(&self, scales: &[f32], elements: Range<usize>) -> io::Result<Vec<f32>> {
        let bytes = self.data.read(elements.start as u64..elements.end as u64)?;
        let [grid_rows, grid_cols] = self.grid;
        let number = |(at, byte): (usize, u8)| {
            let (row, col) = (at / self.cols, at % self.cols);
            let (matrix, row) = (row / self.rows, row % self.rows);
            let row_of_scales = matrix * grid_rows + row / self.block[0];
            let scale = match grid_cols {
                0 => scales[0],
                _ => scales[row_of_scales * grid_cols + col / self.block[1]],
            };
            self.table[usize::from(byte)] * scale
        };
        Ok(elements.zip(bytes).map(number).collect())
    }
}

/// The numbers of all bytes.
fn table(dtype: &str) -> Vec<f32> {
    let (mantissa, bias) = if dtype == "F8_E5M2" { (2, 15) } else { (3, 7) };
    let number = |byte: u8| {
        let (sign, magnitude) = (if byte >= 128 { -1.0 } else { 1.0 }, byte & 127);
        let (exponent, fraction) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
        let fraction = f32::from(fraction) / f32::from(1u8 << mantissa);
        sign * match (dtype, magnitude) {
            ("F8_E5M2", 0x7c) => f32::INFINITY,
            ("F8_E5M2", 0x7d..) | (_, 0x7f) => f32::NAN,
            _ if exponent == 0 => fraction * 2f32.powi(1 - bias),
            _ => (1.0 + fraction) * 2f32.powi(i32::from(exponent) - bias),
        }
    };
    (0..=255).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::table;

    /// The limits of the formats, from the paper (FP8 Formats for Deep Learning).
    #[test]
    fn bytes_have_the_numbers_of_the_formats() {
        let e4m3 = table("F8_E4M3");
        assert_eq!(
            [e4m3[0x7e], e4m3[0x08], e4m3[0x07], e4m3[0x01]],
            [448.0, 2f32.powi(-6), 0.875 * 2f32.powi(-6), 2f32.powi(-9)]
        );
        assert_eq!([e4m3[0x38], e4m3[0xb8], e4m3[0x00]], [1.0, -1.0, 0.0]);
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        let e5m2 = table("F8_E5M2");
        assert_eq!([e5m2[0x7b], e5m2[0x04], e5m2[0x01]], [57344.0, 2f32.powi(-14), 2f32.powi(-16)]);
        assert_eq!([e5m2[0x7c], e5m2[0xfc]], [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(e5m2[0x7d].is_nan());
    }
}
