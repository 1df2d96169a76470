//! What an adapter costs: the crate's operations beside the frozen layer by cuBLASLt.
//!
//! ```text
//! cargo bench --bench overhead -- [--shapes SET|TxKxDxR,...] [--dtype bf16|f16] [--rounds N]
//!                                 [--dropout P] [--json FILE]
//! ```
//!
//! For each layer, everything below takes turns within one run, as CUDA graphs over buffers that
//! rotate through more than twice the L2 cache. A ratio is the median over the rounds of a time
//! over its base in the same round.
//!
//! | op                  | what                                       | base                    |
//! |---------------------|--------------------------------------------|-------------------------|
//! | `forward`           | ours: S and H                              | H = X W0ᵀ by cuBLASLt   |
//! | `frozen`            | our kernel with no adapter                 | the same                |
//! | `addmm_forward`     | cuBLASLt: H, X Aᵀ, H += s·(X Aᵀ) Bᵀ        | the same                |
//! | `augmented_forward` | cuBLASLt: [x \| x Aᵀ] [W0 \| s·B]ᵀ         | the same                |
//! | `backward`          | ours: dX, dA and dB                        | dX = dH W0 by cuBLASLt  |
//! | `addmm_backward`    | cuBLASLt: dS, dX, dX += dS A, dA and dB    | the same                |
//! | `backward_ab`       | ours: dA and dB alone                      | reading X and dH once   |
//! | `forward_dropout`   | ours with dropout, with `--dropout`        | `forward`               |
//! | `backward_dropout`  | the same                                   | `backward`              |
//!
//! Projections that share their input are one call of ours, and by cuBLASLt one after the other.
//! They have a row more, `forward_apart`: ours, one after the other. They have no `frozen`,
//! `augmented_forward` and `backward_ab`.
//!
//! Each product by cuBLASLt runs the fastest of its first eight heuristic answers. Before a layer
//! is timed, ours and the peers are compared; if they disagree, the benchmark fails. It ends with
//! success, and one line that says why, where there is no GPU, no kernels, no cuBLASLt or no nvrtc.

mod args;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod cublaslt;
mod library;
mod peers;
mod report;
mod stream;

use args::Options;
use common::environment::Environment;
use common::gpu::Gpu;
use common::layer::Layer;
use common::results::{name, outputs};
use common::{Result, median, timing};
use cublaslt::Lt;
use lora_kernels::{Dropout, Problem};
use peers::{PeerBuffers, Peers};
use report::{Report, Row};
use std::process::ExitCode;

/// How long a replay of calls lasts, in µs.
const REPLAY_US: f64 = 3000.0;

fn main() -> ExitCode {
    common::args::main(run)
}

fn run(options: &Options) -> Result<()> {
    let Some(mut gpu) = Gpu::open("overhead")? else { return Ok(()) };
    if options.generic {
        gpu.device = gpu.device.generic();
    }
    let libraries = ["cublasLt", "nvrtc"];
    if let Some(missing) = libraries.into_iter().find(|name| !library::is_present(name)) {
        eprintln!("overhead: nothing was timed: lib{missing} was not found; see LD_LIBRARY_PATH");
        return Ok(());
    }
    let lt = Lt::open(&gpu)?;
    let environment = Environment::new(&gpu, "overhead", Some(lt.version()))?;
    let stream_tb_s = stream::read_rate(&gpu)?;
    println!("{}, reads {stream_tb_s:.2} TB/s", environment.describe());
    let mut report = Report::new(options.json.clone(), environment, stream_tb_s);
    report.save()?;

    for (i, dims) in options.shapes.iter().enumerate() {
        let problem = dims.problem(options.dtype)?;
        let sample_clocks = i == 0 || i + 1 == options.shapes.len();
        measure(&gpu, &lt, problem, options, sample_clocks, &mut report)
            .map_err(|error| format!("{}: {error}", name(&problem)))?;
        report.save()?;
    }
    Ok(())
}

/// Something that is timed, and what it is compared with.
struct Contender<'a> {
    op: &'static str,
    base: Base,
    path: String,
    call: Box<dyn Fn(usize) -> Result<()> + 'a>,
}

#[derive(Clone, Copy)]
enum Base {
    /// The contender at this place in the list.
    Contender(usize),
    /// Something that takes this many µs.
    Us(f64),
}

fn measure(
    gpu: &Gpu,
    lt: &Lt<'_>,
    problem: Problem,
    options: &Options,
    sample_clocks: bool,
    report: &mut Report,
) -> Result<()> {
    let layer = Layer::new(gpu, problem)?;
    let buffers = PeerBuffers::new(gpu, &layer)?;
    (0..layer.calls()).try_for_each(|i| layer.forward(i))?;
    let peers = Peers::new(lt, &layer, &buffers)?;
    let difference = check::agreement(&layer, &peers)?;

    let dropped = match options.dropout {
        Some(p) => Some((Dropout::new(p, 1, 0)?, layer.with_dropout()?)),
        None => None,
    };
    match contenders(&layer, &peers, report.stream_tb_s) {
        Some(mut contenders) => {
            if let Some((dropout, (forward, backward))) = &dropped {
                let place = |op| contenders.iter().position(|contender| contender.op == op);
                let of = |op| Base::Contender(place(op).expect("it is timed"));
                let [f, b] = [of("forward"), of("backward")];
                let forward_path = forward.path();
                let (layer, p) = (&layer, Some(*dropout));
                contenders.extend(ours("forward_dropout", f, &forward_path, move |i| {
                    layer.forward_by(forward, p, i)
                }));
                contenders.extend(ours("backward_dropout", b, &backward.path(), move |i| {
                    layer.backward_by(backward, p, i)
                }));
            }
            let rows = time(gpu, &layer, contenders, options.rounds)?;
            println!("{}", report::line(&rows, difference));
            report.rows.extend(rows.into_iter().filter(|row| !report::is_base(row.op)));
        }
        None => println!("{}: cuBLASLt has no algorithm for the frozen layer", name(&problem)),
    }
    if sample_clocks {
        report.environment.sample_clocks(|| {
            (0..layer.calls()).try_for_each(|i| layer.forward(i))?;
            gpu.synchronize()
        })?;
    }
    Ok(())
}

/// Times all in turns.
fn time(
    gpu: &Gpu,
    layer: &Layer,
    contenders: Vec<Contender<'_>>,
    rounds: usize,
) -> Result<Vec<Row>> {
    let all: Vec<timing::Call<'_>> = contenders.iter().map(|c| &*c.call).collect();
    let us = timing::in_turns(gpu, layer.calls(), rounds, REPLAY_US, &all)?;
    let row = |(contender, us_of): (Contender<'_>, &Vec<f64>)| {
        let base_us = match contender.base {
            Base::Contender(place) => us[place].clone(),
            Base::Us(us) => vec![us; us_of.len()],
        };
        let ratios: Vec<f64> = us_of.iter().zip(&base_us).map(|(us, base)| us / base).collect();
        Row {
            op: contender.op,
            problem: layer.problem,
            us: median(us_of),
            base_us: median(&base_us),
            ratio: median(&ratios),
            path: contender.path,
        }
    };
    Ok(contenders.into_iter().zip(&us).map(row).collect())
}

/// Everything that is timed, the frozen layer's H and dX first; `None` without those.
fn contenders<'a>(
    layer: &'a Layer,
    peers: &'a Peers<'a>,
    stream_tb_s: f64,
) -> Option<Vec<Contender<'a>>> {
    let problem = &layer.problem;
    let d: usize = outputs(problem).iter().sum();
    let reading = problem.t() * (problem.k() + d) * problem.dtype().bytes();
    let reading = Base::Us(reading as f64 / stream_tb_s / 1e6);
    let (h, dx) = (Base::Contender(0), Base::Contender(1));
    let (forward_path, backward_path) = (layer.forward_path(), layer.backward_path());
    let several = problem.projections().len() > 1;

    let (frozen, frozen_dx) = (peers.frozen.as_ref()?, peers.frozen_dx.as_ref()?);
    let contenders = [
        peer(report::BASE, h, Some(frozen)),
        peer(report::BASE_DX, dx, Some(frozen_dx)),
        ours("frozen", h, &layer.base_path(), |i| layer.base(i)).filter(|_| !several),
        ours("forward", h, &forward_path, |i| layer.forward(i)),
        ours("forward_apart", h, &"one after another", |i| layer.forward_apart(i))
            .filter(|_| several),
        peer("addmm_forward", h, peers.addmm_forward.as_ref()),
        peer("augmented_forward", h, peers.augmented_forward.as_ref()),
        ours("backward", dx, &backward_path, |i| layer.backward(i)),
        peer("addmm_backward", dx, peers.addmm_backward.as_ref()),
        ours("backward_ab", reading, &backward_path, |i| layer.backward_ab(i)).filter(|_| !several),
    ];
    Some(contenders.into_iter().flatten().collect())
}

fn ours<'a>(
    op: &'static str,
    base: Base,
    path: &dyn ToString,
    call: impl Fn(usize) -> Result<()> + 'a,
) -> Option<Contender<'a>> {
    Some(Contender { op, base, path: path.to_string(), call: Box::new(call) })
}

fn peer<'a>(
    op: &'static str,
    base: Base,
    sequence: Option<&'a peers::Sequence<'a>>,
) -> Option<Contender<'a>> {
    let sequence = sequence?;
    let path = "cublaslt".to_string();
    Some(Contender { op, base, path, call: Box::new(|i| sequence.run(i)) })
}
