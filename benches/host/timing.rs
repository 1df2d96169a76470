//! Stopwatches on the host.

use crate::common::{Result, median};
use lora_kernels::Device;
use std::hint::black_box;
use std::time::Instant;

/// Calls in a batch: the launch queue holds all their launches.
const BATCH: usize = 20;

/// Batches and rounds that warm up and are not counted.
const DISCARDED_BATCHES: usize = 3;
const DISCARDED_ROUNDS: usize = 1;

/// Enqueues something on the stream of this number.
pub type Call<'a> = dyn FnMut(usize) -> Result<()> + 'a;

/// µs on the host of a call, on these streams in turns: the median over the calls of all batches.
pub fn host_us(streams: &[Device], batches: usize, call: &mut Call<'_>) -> Result<f64> {
    let mut us = Vec::with_capacity(batches * BATCH);
    for batch in 0..DISCARDED_BATCHES + batches {
        for i in 0..BATCH {
            let start = Instant::now();
            call(i % streams.len())?;
            if batch >= DISCARDED_BATCHES {
                us.push(micros(start));
            }
        }
        streams.iter().try_for_each(Device::synchronize)?;
    }
    Ok(median(&us))
}

/// µs on the host of making something: the median. It is dropped outside the timed part.
pub fn each_us<T>(times: usize, mut make: impl FnMut() -> Result<T>) -> Result<f64> {
    let one = |_| {
        let start = Instant::now();
        let made = black_box(make()?);
        let us = micros(start);
        drop(made);
        Ok(us)
    };
    Ok(median(&(0..times).map(one).collect::<Result<Vec<_>>>()?))
}

/// µs of a call with the GPU's work, from `calls` in a row: a number a round for every contender.
pub fn whole_us<const N: usize>(
    device: &Device,
    calls: usize,
    rounds: usize,
    mut contenders: [&mut Call<'_>; N],
) -> Result<[Vec<f64>; N]> {
    let mut us = [const { Vec::new() }; N];
    for round in 0..DISCARDED_ROUNDS + rounds {
        for turn in 0..N {
            // Clocks follow power with a lag, so every round has another order.
            let i = match round % 2 {
                0 => (round + turn) % N,
                _ => (round + N - turn) % N,
            };
            let call = &mut contenders[i];
            device.synchronize()?;
            let start = Instant::now();
            (0..calls).try_for_each(|_| call(0))?;
            device.synchronize()?;
            if round >= DISCARDED_ROUNDS {
                us[i].push(micros(start) / calls as f64);
            }
        }
    }
    Ok(us)
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}
