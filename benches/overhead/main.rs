//! What an adapter costs: the crate's operations beside the frozen layer by cuBLASLt.
//!
//! ```text
//! cargo bench --bench overhead -- [--shapes SET|TxKxDxR,...] [--dtype bf16|f16] [--rounds N]
//!                                 [--json FILE]
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
//!
//! Of projections that share their input, everything is one call of ours, and of cuBLASLt one projection
//! after the other; `forward_apart` is ours so too.
//!
//! Each product by cuBLASLt runs the fastest of its first eight heuristic answers. Before a layer
//! is timed, ours and the peers are compared; if they disagree, the benchmark fails. It ends with
//! success, and one line that says why, where there is no GPU, no kernels or no cuBLASLt.

mod args;
mod check;
#[path = "../common/mod.rs"]
mod common;
mod cublaslt;
mod environment;
mod peers;
mod report;
mod shapes;
mod shared;
mod stream;
mod timing;

use args::{Options, Parsed};
use common::gpu::Gpu;
use common::layer::Layer;
use common::Result;
use cublaslt::Lt;
use environment::Environment;
use lora_kernels::{ops, InputGradient, Problem, SharedProblem};
use peers::{PeerBuffers, Peers};
use report::{Report, Row};
use shapes::Dims;
use shared::{SharedLayer, SharedPeerBuffers, SharedPeers};
use std::process::ExitCode;
use timing::median;

fn main() -> ExitCode {
    let options = match args::parse(std::env::args().skip(1)) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Help) => {
            println!("{}", args::usage());
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("overhead: {message}\n{}", args::usage());
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overhead: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let Some(gpu) = Gpu::open("overhead")? else { return Ok(()) };
    let Some(lt) = Lt::open(&gpu)? else {
        eprintln!("overhead: nothing was timed: libcublasLt was not found; see LD_LIBRARY_PATH");
        return Ok(());
    };
    if options.only_test {
        println!("overhead: without --bench, small layers as a test");
    }
    let environment = Environment::new(&gpu, lt.version())?;
    let stream_tb_s = stream::read_rate(&gpu)?;
    println!("{}, reads {stream_tb_s:.2} TB/s", environment.describe());
    let mut report = Report::new(options.json.clone(), environment, stream_tb_s);
    report.save()?;

    for (i, Dims { t, k, d, r }) in options.shapes.iter().enumerate() {
        let sizes: Vec<_> = d.iter().map(|&d| (d, *r)).collect();
        let problem = SharedProblem::new(*t, *k, &sizes, options.dtype)?;
        let sample_clocks = i == 0 || i + 1 == options.shapes.len();
        let measured = match d[..] {
            [d] => {
                let problem = Problem::new(*t, *k, d, *r, options.dtype)?;
                measure(&gpu, &lt, problem, options.rounds, sample_clocks, &mut report)
            }
            _ => measure_shared(&gpu, &lt, problem, options.rounds, sample_clocks, &mut report),
        };
        measured.map_err(|error| format!("{}: {error}", report::name(&problem)))?;
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
    rounds: usize,
    sample_clocks: bool,
    report: &mut Report,
) -> Result<()> {
    let layer = Layer::new(gpu, problem)?;
    let buffers = PeerBuffers::new(gpu, &layer)?;
    (0..layer.calls()).try_for_each(|i| layer.forward(i))?;
    let peers = Peers::new(lt, &layer, &buffers)?;
    let difference = check::agreement(&layer, &peers)?;

    let contenders = contenders(gpu, &layer, &peers, report.stream_tb_s);
    time(gpu, &problem.into(), contenders, layer.calls(), rounds, difference, report)?;

    if sample_clocks {
        sample(gpu, report, layer.calls(), |i| layer.forward(i))?;
    }
    Ok(())
}

/// The same of projections that share their input.
fn measure_shared(
    gpu: &Gpu,
    lt: &Lt<'_>,
    problem: SharedProblem,
    rounds: usize,
    sample_clocks: bool,
    report: &mut Report,
) -> Result<()> {
    let layer = SharedLayer::new(gpu, problem)?;
    let buffers = SharedPeerBuffers::new(gpu, &layer)?;
    (0..layer.calls()).try_for_each(|i| layer.forward(i))?;
    let peers = SharedPeers::new(lt, &layer, &buffers)?;
    let difference = shared::agreement(&layer, &peers)?;
    let contenders = shared_contenders(gpu, &layer, &peers);
    time(gpu, &problem, contenders, layer.calls(), rounds, difference, report)?;

    if sample_clocks {
        sample(gpu, report, layer.calls(), |i| layer.forward(i))?;
    }
    Ok(())
}

/// Notes the card's clocks while it runs so many calls.
fn sample(
    gpu: &Gpu,
    report: &mut Report,
    calls: usize,
    call: impl Fn(usize) -> Result<()>,
) -> Result<()> {
    report.environment.sample_clocks(|| {
        (0..calls).try_for_each(&call)?;
        gpu.synchronize()
    })
}

/// Times all in turns, the bases first; and reports it, unless there are none.
fn time(
    gpu: &Gpu,
    &problem: &SharedProblem,
    contenders: Option<Vec<Contender<'_>>>,
    calls: usize,
    rounds: usize,
    difference: f64,
    report: &mut Report,
) -> Result<()> {
    let Some(contenders) = contenders else {
        println!("{}: cuBLASLt has no algorithm for the frozen layer", report::name(&problem));
        return Ok(());
    };
    let all: Vec<timing::Call<'_>> = contenders.iter().map(|c| &*c.call).collect();
    let us = timing::in_turns(gpu, calls, rounds, &all)?;

    let rows: Vec<Row> = contenders
        .iter()
        .zip(&us)
        .map(|(contender, us_of)| {
            let base_us = match contender.base {
                Base::Contender(place) => us[place].clone(),
                Base::Us(us) => vec![us; us_of.len()],
            };
            let ratios: Vec<f64> = us_of.iter().zip(&base_us).map(|(us, base)| us / base).collect();
            Row {
                op: contender.op,
                problem,
                us: median(us_of),
                base_us: median(&base_us),
                ratio: median(&ratios),
                path: contender.path.clone(),
            }
        })
        .collect();
    println!("{}", report::line(&rows, difference));
    report.rows.extend(rows.into_iter().filter(|row| !report::is_base(row.op)));
    Ok(())
}

/// Everything that is timed, the frozen layer's H and dX first; `None` without those.
fn contenders<'a>(
    gpu: &Gpu,
    layer: &'a Layer,
    peers: &'a Peers<'a>,
    stream_tb_s: f64,
) -> Option<Vec<Contender<'a>>> {
    let Problem { t, k, d, dtype, .. } = layer.problem;
    let forward_path = ops::forward_plan(&gpu.device, &layer.problem).path.to_string();
    let backward_path = ops::backward_plan(&gpu.device, &layer.problem).path.to_string();
    let (h, dx) = (Base::Contender(0), Base::Contender(1));
    let reading = Base::Us((t * (k + d) * dtype.bytes()) as f64 / stream_tb_s / 1e6);

    let (frozen, frozen_dx) = (peers.frozen.as_ref()?, peers.frozen_dx.as_ref()?);
    let backward = |gradient| Box::new(move |i| layer.backward(i, gradient));
    let contenders = [
        peer(report::BASE, h, Some(frozen)),
        peer(report::BASE_DX, dx, Some(frozen_dx)),
        ours("frozen", h, &forward_path, Box::new(|i| layer.frozen(i))),
        ours("forward", h, &forward_path, Box::new(|i| layer.forward(i))),
        peer("addmm_forward", h, peers.addmm_forward.as_ref()),
        peer("augmented_forward", h, peers.augmented_forward.as_ref()),
        ours("backward", dx, &backward_path, backward(InputGradient::Compute)),
        peer("addmm_backward", dx, peers.addmm_backward.as_ref()),
        ours("backward_ab", reading, &backward_path, backward(InputGradient::Skip)),
    ];
    Some(contenders.into_iter().flatten().collect())
}

/// The same of projections that share their input.
fn shared_contenders<'a>(
    gpu: &Gpu,
    layer: &'a SharedLayer,
    peers: &'a SharedPeers<'a>,
) -> Option<Vec<Contender<'a>>> {
    let forward_path = ops::forward_shared_plan(&gpu.device, &layer.problem).path.to_string();
    let backward_path = ops::backward_shared_plan(&gpu.device, &layer.problem).path.to_string();
    let (h, dx) = (Base::Contender(0), Base::Contender(1));
    let (frozen, frozen_dx) = (peers.frozen.as_ref()?, peers.frozen_dx.as_ref()?);
    let contenders = [
        peer(report::BASE, h, Some(frozen)),
        peer(report::BASE_DX, dx, Some(frozen_dx)),
        ours("forward", h, &forward_path, Box::new(|i| layer.forward(i))),
        ours("forward_apart", h, "one after another", Box::new(|i| layer.forward_apart(i))),
        peer("addmm_forward", h, peers.addmm_forward.as_ref()),
        ours("backward", dx, &backward_path, Box::new(|i| layer.backward(i))),
        peer("addmm_backward", dx, peers.addmm_backward.as_ref()),
    ];
    Some(contenders.into_iter().flatten().collect())
}

fn ours<'a>(
    op: &'static str,
    base: Base,
    path: &str,
    call: Box<dyn Fn(usize) -> Result<()> + 'a>,
) -> Option<Contender<'a>> {
    Some(Contender { op, base, path: path.to_string(), call })
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
