//! What the host does for a call, and what that leaves of the GPU's time.
//!
//! ```text
//! cargo bench --bench host -- [--rounds N] [--json FILE] [NAME]
//! ```
//!
//! NAME selects rows: part of the first two columns of the table, like `k=4096 d=1024` or `layer`.
//! Times are medians, in µs. Nothing here is a CUDA graph, but for the base of `whole`.
//!
//! | row        | what is timed                                                         |
//! |------------|-----------------------------------------------------------------------|
//! | `forward`  | host: `Forward::run`, with S                                          |
//! | `backward` | host: `Backward::run`, with dX                                        |
//! | `layer`    | host: `LoraLinear::forward` and `backward`, and dropping the outputs  |
//! | `whole`    | host and GPU: the calls of `layer`                                    |
//! | `make ..`  | host: `Forward::new`, `Backward::new`                                 |
//! | `device`   | host: `Device::from_stream`, with kernels loaded                      |
//! | `launch ..`| host: the driver's part of a call, for a kernel that does nothing     |
//!
//! - A host time is that of a call, in batches of 20. The launch queue holds a batch, and is empty
//!   before it. All tensors are of one stream. `other stream` is the same on two streams in turns:
//!   each call finds the tensors last used by the other.
//! - `kept pool` is `layer` with a memory pool that keeps what is free (its release threshold), as
//!   every batch ends in a synchronisation, at which the driver's default gives it back.
//! - `whole` is the mean of 1000 calls in a row, with one synchronisation. It takes turns with the
//!   operations on the same weights and inputs: called directly, and in a graph of one forward and
//!   one backward. A ratio is the median over the rounds of a time over the graph's in that round.
//! - `make ..` is the slowest of the problems of this benchmark and of all sets of
//!   `cargo bench --bench overhead`, beside the median over these problems.
//! - A bar is what a number must not exceed. `launches` are the nodes of a graph of one call.
//!
//! It ends with success, and one line that says why, where there is no GPU or no kernels.

mod args;
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod launch;
mod report;
mod rows;
mod timing;

use args::Options;
use common::environment::Environment;
use common::gpu::Gpu;
use common::shapes::{self, Dims};
use common::{Result, median};
use lora_kernels::ops::{Backward, Forward};
use lora_kernels::{DType, Device, Problem};
use report::{Report, Row};
use std::process::ExitCode;

/// The problems of all rows, with the bar of the ratio of `whole`.
const PROBLEMS: [(&str, Option<f64>); 10] = [
    ("1x4096x4096x16", None),
    ("16x4096x4096x16", None),
    ("64x4096x4096x16", None),
    ("128x4096x4096x16", None),
    ("512x4096x4096x16", None),
    ("2048x4096x1024x64", Some(1.08)),
    ("2048x4096x1024x16", None),
    ("8192x4096x4096x16", Some(1.01)),
    // q, k and v.
    ("16x4096x4096+1024+1024x16", None),
    ("2048x4096x4096+1024+1024x16", None),
];

/// The bars of making an operation and a device, in µs.
const MAKE: f64 = 10.0;
const DEVICE: f64 = 2.0;

/// How often each operation is made.
const MADE: usize = 21;

fn main() -> ExitCode {
    common::args::main(run)
}

fn run(options: &Options) -> Result<()> {
    let Some(gpu) = Gpu::open("host")? else { return Ok(()) };
    let environment = Environment::new(&gpu, "host", None)?;
    let mut report = Report::new(options.json.clone(), environment);
    report.begin()?;
    let problems = match options.only_test {
        true => vec![(shapes::SMALL, None)],
        false => PROBLEMS.to_vec(),
    };
    for &(sizes, bar) in &problems {
        for dims in shapes::parse(sizes)? {
            rows::measure(&gpu, options, dims.problem(DType::Bf16)?, bar, &mut report)?;
        }
    }
    let mut all: Vec<Dims> = Vec::new();
    let sets = shapes::SETS.split(", ").filter(|_| !options.only_test);
    for set in sets.chain(problems.iter().map(|&(sizes, _)| sizes)) {
        all.extend(shapes::parse(set)?);
    }
    make(&gpu, options, &all, &mut report)?;
    launch::measure(&gpu, options, &mut report)?;
    if options.wants("device") {
        let device = || Ok(Device::from_stream(gpu.stream.clone())?);
        let us = timing::each_us(options.batches(), device)?;
        report.add(Row { bar: Some(DEVICE), ..Row::new(None, "device", us) })?;
    }
    Ok(())
}

/// Making the operations of all these problems.
fn make(gpu: &Gpu, options: &Options, all: &[Dims], report: &mut Report) -> Result<()> {
    let device = &gpu.device;
    let forward = |problem: &Problem| timing::each_us(MADE, || Ok(Forward::new(device, problem)?));
    let backward =
        |problem: &Problem| timing::each_us(MADE, || Ok(Backward::new(device, problem)?));
    type Make<'a> = &'a dyn Fn(&Problem) -> Result<f64>;
    let ops: [(_, Make<'_>); 2] = [("make forward", &forward), ("make backward", &backward)];
    for (op, made_us) in ops.into_iter().filter(|(op, _)| options.wants(op)) {
        let mut us = Vec::new();
        let mut slowest: Option<(f64, Problem)> = None;
        for dims in all {
            let problem = dims.problem(DType::Bf16)?;
            let made = made_us(&problem)?;
            us.push(made);
            if slowest.is_none_or(|(most, _)| made > most) {
                slowest = Some((made, problem));
            }
        }
        let Some((most, problem)) = slowest else { continue };
        let row = Row { bar: Some(MAKE), ..Row::new(Some(problem), op, most) };
        report.add(row.with_us("median_us", median(&us)).with("problems", us.len()))?;
    }
    Ok(())
}
