//! What is printed and what is written to the result file.

use crate::common::Result;
use crate::environment::Environment;
use lora_kernels::Problem;
use serde_json::json;
use std::path::PathBuf;

/// The names under which the bases are timed; they are no rows of their own.
pub const BASE: &str = "base";
pub const BASE_DX: &str = "base_dx";

pub fn is_base(op: &str) -> bool {
    [BASE, BASE_DX].contains(&op)
}

pub struct Row {
    pub op: &'static str,
    pub problem: Problem,
    /// The medians over the rounds of the time, of its base, and of their ratio in a round.
    pub us: f64,
    pub base_us: f64,
    pub ratio: f64,
    /// The code that served it.
    pub path: String,
}

pub struct Report {
    file: Option<PathBuf>,
    pub environment: Environment,
    pub stream_tb_s: f64,
    pub rows: Vec<Row>,
}

impl Report {
    pub fn new(file: Option<PathBuf>, environment: Environment, stream_tb_s: f64) -> Self {
        Report { file, environment, stream_tb_s, rows: Vec::new() }
    }

    /// Writes all rows so far, so that a run that is cut short leaves what it measured.
    pub fn save(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |error| format!("{} cannot be written: {error}", file.display());
        Ok(std::fs::write(file, self.json()).map_err(failed)?)
    }

    /// One line a row, so that the file reads and compares well.
    fn json(&self) -> String {
        let Environment { card, driver, cublaslt, clocks, date, commit, .. } = &self.environment;
        let clocks = clocks.as_deref().unwrap_or("unknown");
        let stream = format!("{:.3}", self.stream_tb_s);
        let mut text = format!(
            "{{\n\"card\": {},\n\"driver\": {},\n\"cublaslt\": {cublaslt},\n\"clocks\": {},\n\
             \"date\": {},\n\"commit\": {},\n\"stream_tb_s\": {stream},\n\"rows\": [",
            json!(card),
            json!(driver),
            json!(clocks),
            json!(date),
            json!(commit),
        );
        for (i, row) in self.rows.iter().enumerate() {
            let Row { op, problem, us, base_us, ratio, path } = row;
            let Problem { t, k, d, r, dtype, .. } = problem;
            let comma = if i == 0 { "" } else { "," };
            text += &format!(
                "{comma}\n{{\"op\": \"{op}\", \"dtype\": \"{dtype}\", \"t\": {t}, \"k\": {k}, \
                 \"d\": {d}, \"r\": {r}, \"us\": {us:.3}, \"base_us\": {base_us:.3}, \
                 \"ratio\": {ratio:.4}, \"path\": \"{path}\"}}"
            );
        }
        text + "\n]\n}\n"
    }
}

pub fn name(problem: &Problem) -> String {
    let Problem { t, k, d, r, dtype, .. } = problem;
    format!("T={t} k={k} d={d} r={r} {dtype}")
}

/// All about one layer, whose results agree up to `difference`.
pub fn line(rows: &[Row], difference: f64) -> String {
    let Problem { t, k, d, .. } = rows[0].problem;
    let of = |op: &str| rows.iter().find(|row| row.op == op);
    let ratio = |op: &str| of(op).map_or("none".into(), |row| format!("{:.3}", row.ratio));
    let us = |op: &str| of(op).map_or(f64::NAN, |row| row.us);
    let tflops = |op: &str| 2.0 * (t * k * d) as f64 / us(op) / 1e6;
    format!(
        "{} | H {:.1} µs {:.0} TFLOP/s, dX {:.1} µs {:.0} TFLOP/s | forward {} = {:.1} µs, \
         frozen {}, addmm {}, augmented {} | backward {} = {:.1} µs, addmm {} | dA dB {} = \
         {:.1} µs | agree to {difference:.0e}",
        name(&rows[0].problem),
        us(BASE),
        tflops(BASE),
        us(BASE_DX),
        tflops(BASE_DX),
        ratio("forward"),
        us("forward"),
        ratio("frozen"),
        ratio("addmm_forward"),
        ratio("augmented_forward"),
        ratio("backward"),
        us("backward"),
        ratio("addmm_backward"),
        ratio("backward_ab"),
        us("backward_ab"),
    )
}
