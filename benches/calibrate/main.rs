//! Times every schedule that a plan may choose, and fits the cost model to the times.
//!
//! ```text
//! cargo bench --bench calibrate -- [--shapes SET|TxKxDxR,...] [--within F] [--rounds N]
//!                                  [--json FILE] [--fit FILE]
//! ```
//!
//! - For each layer and pass, schedules are forced: all of small batches, and up to 40 of large
//!   batches whose predicted time is within `F` of the best prediction. They take turns as CUDA
//!   graphs, over buffers that rotate through more than twice the L2 cache. `--json` keeps what was
//!   predicted and measured.
//! - From such a file, `--fit` fits the fields of `CostModel` by coordinate descent, and prints them
//!   with the regret: the time of the schedule that is chosen over that of the fastest. It needs no
//!   GPU.
//!
//! To calibrate for a card: time, fit, paste the fields into `src/plan/cost.rs`, time again with
//! these, and commit the file. `tests/cpu/calibration.rs` holds the regret.

mod args;
#[path = "../common/mod.rs"]
mod common;
mod fit;
mod record;

use args::Options;
use common::environment::Environment;
use common::gpu::Gpu;
use common::layer::Layer;
use common::results::name;
use common::{Result, median, results, timing};
use lora_kernels::calibration::{self, Candidate, CostModel, DeviceProfile, Pass};
use lora_kernels::{DType, Problem};
use record::{Record, Row, Timed};
use std::process::ExitCode;

/// How long a replay of calls lasts, in µs.
const REPLAY_US: f64 = 1000.0;

fn main() -> ExitCode {
    common::args::main(run)
}

fn run(options: &Options) -> Result<()> {
    if let Some(file) = &options.fit {
        let record = Record::read(file)?;
        return fit::run(&record);
    }
    let Some(gpu) = Gpu::open("calibrate")? else { return Ok(()) };
    let profile = gpu.device.profile().expect("a CUDA device has a profile");
    let cost = profile.cost();
    let environment = Environment::new(&gpu, "calibrate", None)?;
    println!("{}\n{profile:?}", environment.describe());
    let mut rows = Vec::new();
    for dims in &options.shapes {
        let problem = dims.problem(DType::Bf16)?;
        let layer = Layer::new(&gpu, problem)?;
        (0..layer.calls()).try_for_each(|i| layer.forward(i))?;
        for pass in [Pass::Forward, Pass::Backward] {
            let all = candidates(&problem, pass, profile, &cost, options.within);
            if all.is_empty() {
                continue;
            }
            rows.push(time(&gpu, &layer, pass, &all, options.rounds)?);
            let row = rows.last().expect("just pushed");
            println!("{}", row.describe(&calibration::chosen(&problem, pass, profile)));
        }
        if let Some(file) = &options.json {
            let profile = [("profile", record::profile_json(profile))];
            results::save(file, &environment, &profile, rows.iter().map(Row::json))?;
        }
    }
    Ok(())
}

/// Of the schedules of large batches, at most so many are timed: half of them with the best
/// predictions, the others spread evenly over the rest.
const MOST: usize = 40;

/// What is worth timing: of small batches all schedules, of large ones all schedules that are
/// predicted to take up to `within` times as long as the best.
fn candidates(
    problem: &Problem,
    pass: Pass,
    profile: &DeviceProfile,
    cost: &CostModel,
    within: f64,
) -> Vec<Candidate> {
    let chosen = calibration::chosen(problem, pass, profile);
    let all = calibration::candidates(problem, pass, profile, cost);
    let (mut small, mut large): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|candidate| candidate.predicted_us().is_none());
    let us = |candidate: &Candidate| candidate.predicted_us().unwrap_or(f64::INFINITY);
    large.sort_by(|a, b| us(a).total_cmp(&us(b)));
    let most = within * large.first().map_or(0.0, us);
    let count = large.iter().filter(|candidate| us(candidate) <= most).count();
    let every = (count.saturating_sub(MOST / 2)).div_ceil(MOST / 2).max(1);
    let large = large.into_iter().enumerate().filter(|(i, candidate)| {
        let taken = *i < MOST / 2 || i % every == 0;
        taken && *i < count || candidate.schedule() == chosen
    });
    small.extend(large.map(|(_, candidate)| candidate));
    small
}

/// Times them in turns.
fn time(gpu: &Gpu, layer: &Layer, pass: Pass, all: &[Candidate], rounds: usize) -> Result<Row> {
    type Call<'a> = Box<dyn Fn(usize) -> Result<()> + 'a>;
    let problem = &layer.problem;
    let call = |candidate: &Candidate| -> Result<Call<'_>> {
        Ok(match pass {
            Pass::Forward => {
                let forward = candidate.forward(&gpu.device, problem)?;
                layer.reserve(forward.workspace())?;
                Box::new(move |i| layer.forward_by(&forward, None, i))
            }
            Pass::Backward => {
                let backward = candidate.backward(&gpu.device, problem)?;
                layer.reserve(backward.workspace())?;
                Box::new(move |i| layer.backward_by(&backward, None, i))
            }
        })
    };
    let calls = all.iter().map(call).collect::<Result<Vec<_>>>()?;
    let calls: Vec<timing::Call<'_>> = calls.iter().map(|call| &**call).collect();
    let us = timing::in_turns(gpu, layer.calls(), rounds, REPLAY_US, &calls)
        .map_err(|error| format!("{} {pass:?}: {error}", name(problem)))?;
    let timed = |(candidate, us): (&Candidate, &Vec<f64>)| Timed {
        schedule: candidate.schedule(),
        predicted_us: candidate.predicted_us(),
        us: median(us),
    };
    Ok(Row { problem: *problem, pass, timed: all.iter().zip(&us).map(timed).collect() })
}
