//! Writing tensors that an adapter replaces.

use crate::Result;
use crate::change::{Change, Kind};
use crate::merging::{CHUNK, Input, check_finite, numbers, round};
use crate::output::Output;
use lora_kernels::peft::TokenRows;
use std::io::{Read, Seek, SeekFrom};

/// Writes a tensor in place of the input's next one. Of the input, only a bias is read, and the
/// place in it stays.
pub fn tensor(
    input: &mut Input<'_>,
    to: &mut Output,
    change: &Change<'_>,
    kind: &Kind<'_>,
) -> Result<()> {
    let dtype = change.dtype;
    let values = match kind {
        Kind::Copy { shard, bytes } => {
            let path = shard.path().display();
            let unreadable = |error| format!("{path} could not be read: {error}");
            let mut file = shard.reader()?;
            file.seek(SeekFrom::Start(bytes.start)).map_err(unreadable)?;
            let mut left = bytes.end - bytes.start;
            let mut buffer = vec![0; left.min(CHUNK as u64) as usize];
            while left > 0 {
                let part = &mut buffer[..left.min(CHUNK as u64) as usize];
                file.read_exact(part).map_err(unreadable)?;
                to.write(part)?;
                left -= part.len() as u64;
            }
            return Ok(());
        }
        Kind::Replace(tensor) => tensor.to_f32_vec()?,
        Kind::AddBias { base, bias, scale } => {
            let old = match base {
                Some(base) => base.to_f32_vec()?,
                None => {
                    let mut bytes = vec![0; change.shape.iter().product::<usize>() * dtype.bytes()];
                    input.peek(&mut bytes)?;
                    numbers(&bytes, dtype)
                }
            };
            let bias = bias.to_f32_vec()?;
            old.iter().zip(&bias).map(|(old, bias)| old + scale * bias).collect()
        }
        Kind::Update { .. } | Kind::Rows(_) => unreachable!("not a whole tensor"),
    };
    let cols = change.shape.last().copied().unwrap_or(1);
    let at_once = (CHUNK / (cols * dtype.bytes())).max(1) * cols;
    let mut bytes = vec![0; at_once.min(values.len()) * dtype.bytes()];
    for (part, values) in values.chunks(at_once).enumerate() {
        let bytes = &mut bytes[..values.len() * dtype.bytes()];
        if !change.allow_non_finite {
            check_finite(change, part * at_once / cols, cols, values, values)?;
        }
        round(values, dtype, bytes);
        to.write(bytes)?;
    }
    Ok(())
}

/// Copies the input's next tensor, an embedding, with some rows replaced.
pub fn rows(
    input: &mut Input<'_>,
    to: &mut Output,
    change: &Change<'_>,
    tokens: &TokenRows,
) -> Result<()> {
    let (dtype, cols) = (change.dtype, change.shape[1]);
    let values = tokens.rows.to_f32_vec()?;
    let length = cols * dtype.bytes();
    let rows_at_once = (CHUNK / length).max(1);
    let mut buffer = vec![0; rows_at_once.min(change.shape[0]) * length];
    for first in (0..change.shape[0]).step_by(rows_at_once) {
        let rows = rows_at_once.min(change.shape[0] - first);
        let bytes = &mut buffer[..rows * length];
        input.read(bytes)?;
        for (&index, values) in tokens.indices.iter().zip(values.chunks_exact(cols)) {
            if !(first..first + rows).contains(&index) {
                continue;
            }
            if !change.allow_non_finite {
                check_finite(change, index, cols, values, values)?;
            }
            round(values, dtype, &mut bytes[(index - first) * length..][..length]);
        }
        to.write(bytes)?;
    }
    Ok(())
}
