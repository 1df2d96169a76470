//! What is printed and what is written to the result file.

use crate::common::Result;
use crate::environment::Environment;
use lora_kernels::SharedProblem;
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
    pub problem: SharedProblem,
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
            let SharedProblem { t, k, dtype, .. } = problem;
            let (d, r) = match outputs(problem)[..] {
                [d] => (json!(d), rank(problem)),
                ref all => (json!(all), rank(problem)),
            };
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

/// The d of every projection.
fn outputs(problem: &SharedProblem) -> Vec<usize> {
    problem.projections().iter().map(|&(d, _)| d).collect()
}

/// The rank of each, which is the same.
fn rank(problem: &SharedProblem) -> usize {
    problem.projections()[0].1
}

pub fn name(problem: &SharedProblem) -> String {
    let SharedProblem { t, k, dtype, .. } = problem;
    let d: Vec<_> = outputs(problem).iter().map(usize::to_string).collect();
    format!("T={t} k={k} d={} r={} {dtype}", d.join("+"), rank(problem))
}

/// All about one layer, whose results agree up to `difference`.
pub fn line(rows: &[Row], difference: f64) -> String {
    let problem = &rows[0].problem;
    let of = |op: &str| rows.iter().find(|row| row.op == op);
    let us = |op: &str| of(op).map_or(f64::NAN, |row| row.us);
    let flops = 2.0 * (problem.t * problem.k * outputs(problem).iter().sum::<usize>()) as f64;
    let tflops = |op: &str| flops / us(op) / 1e6;
    // Those that are there: not all are of projections that share their input.
    let ratio =
        |name: &str, op: &str| of(op).map(|row| format!("{name} {:.3}", row.ratio)).into_iter();
    let timed = |op: &str| {
        of(op).map(|row| format!("{op} {:.3} = {:.1} µs", row.ratio, row.us)).into_iter()
    };
    let forward = timed("forward")
        .chain(ratio("frozen", "frozen"))
        .chain(ratio("apart", "forward_apart"))
        .chain(ratio("addmm", "addmm_forward"))
        .chain(ratio("augmented", "augmented_forward"));
    let backward =
        timed("backward").chain(ratio("addmm", "addmm_backward")).chain(timed("backward_ab"));
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
