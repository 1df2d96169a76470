//! Result files: JSON with the environment first, then a line a row.

use super::Result;
use super::environment::Environment;
use lora_kernels::Problem;
use serde_json::json;
use std::path::Path;

/// Writes the environment, the benchmark's own fields `more`, and the rows. Values and rows are
/// JSON.
pub fn save(
    file: &Path,
    environment: &Environment,
    more: &[(&str, String)],
    rows: impl Iterator<Item = String>,
) -> Result<()> {
    let mut text = "{\n".to_string();
    for (field, value) in environment.json().iter().chain(more) {
        text += &format!("\"{field}\": {value},\n");
    }
    let rows: Vec<String> = rows.map(|row| format!("\n{row}")).collect();
    text += &format!("\"rows\": [{}\n]\n}}\n", rows.join(","));
    let failed = |error| format!("{} cannot be written: {error}", file.display());
    Ok(std::fs::write(file, text).map_err(failed)?)
}

/// The sizes, as fields of a row.
pub fn sizes(problem: &Problem) -> String {
    let (t, k, dtype, r) = (problem.t(), problem.k(), problem.dtype(), rank(problem));
    let d = match outputs(problem)[..] {
        [d] => json!(d),
        ref all => json!(all),
    };
    format!("\"dtype\": \"{dtype}\", \"t\": {t}, \"k\": {k}, \"d\": {d}, \"r\": {r}")
}

/// The sizes, as they are printed.
pub fn name(problem: &Problem) -> String {
    let (t, k, dtype) = (problem.t(), problem.k(), problem.dtype());
    let d: Vec<_> = outputs(problem).iter().map(usize::to_string).collect();
    format!("T={t} k={k} d={} r={} {dtype}", d.join("+"), rank(problem))
}

/// The d of every projection.
pub fn outputs(problem: &Problem) -> Vec<usize> {
    problem.projections().iter().map(|&(d, _)| d).collect()
}

/// The rank of each, which is the same.
fn rank(problem: &Problem) -> usize {
    problem.projections()[0].1
}
