//! What is printed and what is written to the result file.

use crate::common::Result;
use crate::common::environment::Environment;
use crate::common::results::{self, name, outputs};
use lora_kernels::Problem;
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
        let stream = ("stream_tb_s", format!("{:.3}", self.stream_tb_s));
        results::save(file, &self.environment, &[stream], self.rows.iter().map(Row::json))
    }
}

impl Row {
    fn json(&self) -> String {
        let Row { op, problem, us, base_us, ratio, path } = self;
        format!(
            "{{\"op\": \"{op}\", {}, \"us\": {us:.3}, \"base_us\": {base_us:.3}, \
             \"ratio\": {ratio:.4}, \"path\": \"{path}\"}}",
            results::sizes(problem)
        )
    }
}

/// All about one layer, whose results agree up to `difference`.
pub fn line(rows: &[Row], difference: f64) -> String {
    let problem = &rows[0].problem;
    let of = |op: &str| rows.iter().find(|row| row.op == op);
    let us = |op: &str| of(op).map_or(f64::NAN, |row| row.us);
    let d: usize = outputs(problem).iter().sum();
    let tflops = |op: &str| 2.0 * (problem.t() * problem.k() * d) as f64 / us(op) / 1e6;
    // Some rows are of a single projection only, some of several.
    let ratio =
        |name: &str, op: &str| of(op).map(|row| format!("{name} {:.3}", row.ratio)).into_iter();
    let timed = |op: &str| {
        of(op).map(|row| format!("{op} {:.3} = {:.1} µs", row.ratio, row.us)).into_iter()
    };
    let forward = timed("forward")
        .chain(ratio("frozen", "frozen"))
        .chain(ratio("apart", "forward_apart"))
        .chain(ratio("addmm", "addmm_forward"))
        .chain(ratio("augmented", "augmented_forward"))
        .chain(ratio("dropout", "forward_dropout"));
    let backward = timed("backward")
        .chain(ratio("addmm", "addmm_backward"))
        .chain(timed("backward_ab"))
        .chain(ratio("dropout", "backward_dropout"));
    let [forward, backward] = [forward.collect::<Vec<_>>(), backward.collect()];
    format!(
        "{} | H {:.1} µs {:.0} TFLOP/s, dX {:.1} µs {:.0} TFLOP/s | {} | {} | agree to \
         {difference:.0e}",
        name(problem),
        us(BASE),
        tflops(BASE),
        us(BASE_DX),
        tflops(BASE_DX),
        forward.join(", "),
        backward.join(", "),
    )
}
