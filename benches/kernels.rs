//! Every operation of the crate on real and awkward layers, timed by CUDA events under criterion.
//!
//! ```text
//! cargo bench --bench kernels [-- FILTER]
//! ```
//!
//! Throughput is floating-point operations per second ("elem/s" is FLOP/s). The buffers rotate
//! through more than twice the L2 cache. Small layers show what launching costs too;
//! `cargo bench --bench overhead` times CUDA graphs and compares with cuBLASLt.

mod common;

use common::Result;
use common::gpu::Gpu;
use common::layer::Layer;
use common::matrix::Matrix;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use lora_kernels::{DType, Problem};
use std::time::Duration;

/// T, k, d and r.
const LAYERS: [[usize; 4]; 10] = [
    // Llama 3 8B and 70B, training.
    [8192, 4096, 4096, 16],
    [8192, 4096, 1024, 16],
    [8192, 4096, 14336, 64],
    [8192, 8192, 8192, 64],
    [2048, 4096, 4096, 16],
    // The same, a few tokens at a time.
    [1, 4096, 4096, 16],
    [64, 8192, 8192, 16],
    // Qwen2.5 7B, with a number of tokens and a rank that divide nothing.
    [8191, 3584, 512, 24],
    // Rows that are no multiple of 16 bytes, and the largest rank.
    [1000, 1001, 999, 7],
    [2048, 4096, 4096, 256],
];

fn main() -> Result<()> {
    let Some(gpu) = Gpu::open("kernels")? else { return Ok(()) };
    let mut criterion = Criterion::default().configure_from_args();
    for [t, k, d, r] in LAYERS {
        layer(&gpu, &mut criterion, [t, k, d, r])?;
    }
    criterion.final_summary();
    Ok(())
}

fn layer(gpu: &Gpu, criterion: &mut Criterion, [t, k, d, r]: [usize; 4]) -> Result<()> {
    let layer = Layer::new(gpu, Problem::single(t, k, d, r, DType::Bf16)?)?;
    let merged = Matrix::new(gpu, [d, k], DType::Bf16)?;
    // The S that the backward passes read.
    (0..layer.calls()).try_for_each(|i| layer.forward(i))?;

    let mut group = criterion.benchmark_group(format!("T={t} k={k} d={d} r={r}"));
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));

    // Multiply-adds of the products by W0, of one rank-r product over k, and of one over d.
    let (base, over_k, over_d) = (t * k * d, t * r * k, t * r * d);
    let mut bench = |name, multiply_adds: usize, call: &dyn Fn(usize) -> Result<()>| {
        timed(gpu, &mut group, name, 2 * multiply_adds as u64, call)
    };
    bench("frozen", base, &|i| layer.base(i));
    bench("forward", base + over_k + over_d, &|i| layer.forward(i));
    bench("backward", base + 2 * over_k + 2 * over_d, &|i| layer.backward(i));
    bench("backward without dX", over_k + 2 * over_d, &|i| layer.backward_ab(i));
    bench("merge", d * r * k, &|i| layer.merge(i, &merged));
    group.finish();
    Ok(())
}

/// Times calls on the device, between two events.
fn timed(
    gpu: &Gpu,
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    flop: u64,
    call: &dyn Fn(usize) -> Result<()>,
) {
    group.throughput(Throughput::Elements(flop));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let calls = || (0..iterations as usize).try_for_each(call);
            // criterion has no way to pass an error on.
            let us = gpu.time(calls).unwrap_or_else(|error| panic!("{name}: {error}"));
            Duration::from_secs_f64(us / 1e6)
        })
    });
}
