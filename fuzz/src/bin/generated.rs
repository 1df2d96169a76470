//! The targets without a fuzzer, on stable: inputs from a generator, the same on each run.
//!
//! `generated FROM COUNT` runs the inputs of COUNT numbers from FROM on, by all cores. A panic names
//! the number, which is an input by itself: `generated NUMBER 1`.

use lora_kernels_fuzz::generate;
use lora_kernels_fuzz::random::Random;
use lora_kernels_fuzz::{Outcome, peft_load, tensor_file};
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// One of so many that load is saved and loaded again, which takes a hundred times as long.
const SAVED: u64 = 64;
/// What an input may take. Real files of this size take a fraction of a millisecond.
const LONGEST: Duration = Duration::from_secs(5);

fn main() {
    let mut numbers = env::args().skip(1).map(|number| number.parse::<u64>().expect("a number"));
    let (Some(from), Some(count)) = (numbers.next(), numbers.next()) else {
        eprintln!("usage: generated FROM COUNT");
        process::exit(2);
    };
    let start = Instant::now();
    let next = AtomicU64::new(from);
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut slowest = (Duration::ZERO, 0);
    thread::scope(|scope| {
        let run = || {
            let (mut outcomes, mut slowest) = (BTreeMap::new(), (Duration::ZERO, 0));
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= from + count {
                    return (outcomes, slowest);
                }
                let start = Instant::now();
                *outcomes.entry(run(number)).or_insert(0) += 1;
                slowest = slowest.max((start.elapsed(), number));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for worker in workers {
            let (of_worker, slowest_of_worker) = worker.join().expect("a worker");
            slowest = slowest.max(slowest_of_worker);
            for (outcome, count) in of_worker {
                *outcomes.entry(outcome).or_insert(0) += count;
            }
        }
    });
    println!("{count} inputs from {from} on in {:.0?}, none panicked", start.elapsed());
    for (outcome, count) in outcomes {
        println!("{count:10} {outcome}");
    }
    println!("the slowest, {}, took {:.1?}", slowest.1, slowest.0);
    if let Some(memory) = peak_memory() {
        println!("the most memory was {memory}");
    }
    assert!(slowest.0 < LONGEST, "input {} took {:?}", slowest.1, slowest.0);
}

/// Runs the input of a number, and says how it ended.
fn run(number: u64) -> String {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut random = Random::new(number);
        match number % 4 {
            0 => ("tensor_file", tensor_file(&generate::tensor_file(&mut random))),
            _ => {
                let input = generate::adapters(&mut random);
                ("peft_load", peft_load(&input, (number / 4).is_multiple_of(SAVED)))
            }
        }
    }));
    match outcome {
        Ok((target, Outcome::Loaded(format))) => format!("{target}: loaded, of {format}"),
        Ok((target, outcome)) => format!("{target}: {outcome:?}"),
        Err(_) => {
            eprintln!("that was input {number}");
            process::exit(1);
        }
    }
}

/// The peak of what was in memory, where the system says it.
fn peak_memory() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().to_string())
}
