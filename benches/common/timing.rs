//! Contenders in turns: CUDA graphs replayed round after round, so that all see the same clocks.
//!
//! The card's clocks follow its power with a lag, so a contender starts faster after one that
//! draws little. Every round has another order, so that none has the same neighbour in all.

use super::Result;
use super::gpu::Gpu;
use lora_kernels::cudarc::driver::CudaGraph;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

/// A replay repeats the pass over the buffers no more often than this.
const MAX_LOOPS: usize = 64;

/// Rounds that warm up and are not counted.
const DISCARDED_ROUNDS: usize = 2;

pub type Call<'a> = &'a dyn Fn(usize) -> Result<()>;

/// The µs of one call, a figure a round for every contender. A replay is to last about `replay_us`,
/// unless one pass over the buffers lasts longer.
///
/// All rounds are enqueued without waiting in between, so that the time it takes to launch a
/// replay hides behind the one before.
pub fn in_turns(
    gpu: &Gpu,
    calls: usize,
    rounds: usize,
    replay_us: f64,
    contenders: &[Call<'_>],
) -> Result<Vec<Vec<f64>>> {
    let replays: Vec<Replay> = contenders
        .iter()
        .map(|&call| Replay::new(gpu, calls, replay_us, call))
        .collect::<Result<_>>()?;

    let mut marks = Vec::new();
    for round in 0..DISCARDED_ROUNDS + rounds {
        let order = order(replays.len(), round as u64);
        let mut events = vec![gpu.event()?];
        events[0].record(&gpu.stream)?;
        for &j in &order {
            replays[j].graph.launch()?;
            let done = gpu.event()?;
            done.record(&gpu.stream)?;
            events.push(done);
        }
        marks.push((order, events));
    }
    gpu.synchronize()?;

    let mut us = vec![Vec::with_capacity(rounds); contenders.len()];
    for (order, events) in &marks[DISCARDED_ROUNDS..] {
        for (turn, &j) in order.iter().enumerate() {
            let ms = events[turn].elapsed_ms(&events[turn + 1])?;
            us[j].push(f64::from(ms) * 1e3 / replays[j].calls as f64);
        }
    }
    Ok(us)
}

/// The numbers below `n` in an order that is random, and the same on every run.
fn order(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut Pcg64::seed_from_u64(seed));
    order
}

/// The µs of one call, from replays that last at least about `target_us` in all.
pub fn estimate(gpu: &Gpu, calls: usize, target_us: f64, call: Call<'_>) -> Result<f64> {
    Ok(Replay::new(gpu, calls, target_us, call)?.us)
}

/// A graph of calls over all buffers, as often as fills the time asked for.
struct Replay {
    graph: CudaGraph,
    calls: usize,
    /// What one call took when the graph was made.
    us: f64,
}

impl Replay {
    fn new(gpu: &Gpu, calls: usize, target_us: f64, call: Call<'_>) -> Result<Self> {
        // What loads its code at the first launch does so here, outside the captures.
        call(0)?;
        let pass = Replay::capture(gpu, calls, call)?;
        let loops = (target_us / (pass.us * calls as f64)) as usize;
        if loops <= 1 {
            return Ok(pass);
        }
        Replay::capture(gpu, calls * loops.min(MAX_LOOPS), call)
    }

    fn capture(gpu: &Gpu, calls: usize, call: Call<'_>) -> Result<Self> {
        let graph = gpu.capture(calls, call)?;
        // The first launch also sets the graph up on the device, and hides that of the second.
        graph.launch()?;
        let us = gpu.time(|| Ok(graph.launch()?))? / calls as f64;
        Ok(Replay { graph, calls, us })
    }
}
