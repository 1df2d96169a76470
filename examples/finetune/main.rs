//! Teaches a digit classifier to read rotated digits, with LoRA.
//!
//! A two-layer network is trained on upright digits and frozen. Adapters on both layers then
//! learn the same digits turned by 90 degrees, on the GPU if there is one.
//!
//! `cargo run --release --example finetune -- --help` lists the options. `adapted.rs` is the
//! part to read for how to use the crate.

mod adapted;
mod args;
mod base;
mod chart;
mod digits;
#[path = "../common/svg.rs"]
mod svg;
mod training;

use crate::adapted::{Adapted, Weights, adapters};
use crate::args::{Options, USAGE};
use crate::base::{Base, HIDDEN};
use crate::chart::Chart;
use crate::digits::{CLASSES, Digits, PIXELS};
use crate::training::{Adam, BATCH};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use lora_kernels::{DType, Device};
use rand::SeedableRng;
use rand_pcg::Pcg64;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::{env, error, fs};

type Result<T, E = Box<dyn error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Written to, not printed to: println! panics where the reader of a pipe has gone away.
    let mut out = io::stdout();
    let options = Options::parse(env::args_os().skip(1))
        .map_err(|error| format!("{error}; --help lists the options"))?;
    let Some(options) = options else { return Ok(write!(out, "{USAGE}")?) };

    let (device, reason) = choose_device(options.device.as_deref())?;
    // CUDA devices take no f32, and on the CPU bf16 has nothing to give.
    let dtype = if device.is_cuda() { DType::Bf16 } else { DType::F32 };
    writeln!(out, "device  {device}, in {dtype}: {reason}")?;
    // Before the base is trained, so that a bad rank or alpha is refused at once.
    let mut rng = Pcg64::seed_from_u64(options.seed);
    let adapters = adapters(&device, dtype, options.rank, options.alpha, &mut rng)?;

    let (train, test) = Digits::load()?.split();
    let (train_rotated, test_rotated) = (train.rotated(), test.rotated());
    writeln!(out, "data    {} digits to train on, {} to test", train.len(), test.len())?;

    let progress = progress_bar("base")?;
    let base = Base::train(&train, &mut rng, &progress);
    progress.finish_and_clear();
    let accuracy = test.accuracy(&base.predict(&test));
    let layers = format!("{PIXELS} -> {HIDDEN} -> {CLASSES}");
    writeln!(out, "base    {layers}, trained on upright digits: reads {}", percent(accuracy))?;

    let mut model = Adapted::new(&device, dtype, &base, adapters)?;
    model.drop_inputs(options.dropout, options.seed)?;
    let accuracies = |model: &Adapted, weights| -> Result<[f64; 2]> {
        let upright = test.accuracy(&model.predict(&test, weights)?);
        Ok([upright, test_rotated.accuracy(&model.predict(&test_rotated, weights)?)])
    };
    let before = accuracies(&model, Weights::Adapted)?;

    let progress = progress_bar("LoRA")?;
    let losses = model.train(&train_rotated, options.epochs, &mut rng, &progress)?;
    progress.finish_and_clear();
    let chart = Chart {
        title: "LoRA learns to read rotated digits",
        subtitle: &options.summary(&format!("{device}, {dtype}")),
        losses: &losses,
        steps_per_epoch: train.len().div_ceil(BATCH),
    };
    let means = chart.epoch_means();
    let (first, last) = (means[0], means[means.len() - 1]);
    writeln!(
        out,
        "LoRA    rank {}, alpha {}, {} epochs on rotated digits: loss {first:.3} -> {last:.3}",
        options.rank, options.alpha, options.epochs
    )?;

    let after = accuracies(&model, Weights::Adapted)?;
    let switched_off = accuracies(&model, Weights::Own)?;
    let answers = model.predict(&test_rotated, Weights::Adapted)?;
    model.merge()?;
    let merged = accuracies(&model, Weights::Own)?;
    let merged_answers = model.predict(&test_rotated, Weights::Own)?;
    let changed = answers.iter().zip(&merged_answers).filter(|(a, b)| a != b).count();

    writeln!(out, "\n{:<34}{:>14}{:>16}", "test accuracy", "upright", "rotated by 90°")?;
    for (name, accuracies) in [
        ("before", before),
        ("after", after),
        ("after, adapters switched off", switched_off),
        ("after, adapters merged", merged),
    ] {
        let [upright, rotated] = accuracies.map(percent);
        writeln!(out, "  {name:<32}{upright:>14}{rotated:>16}")?;
    }
    writeln!(out, "  (merging changed {changed} of {} rotated answers)", answers.len())?;

    report_sizes(&mut out, &model)?;
    writeln!(out, "\nfingerprint of the adapters  {:016x}", model.fingerprint()?)?;
    save(&options.out, &chart.svg())?;
    writeln!(out, "loss curve                   {}", options.out.display())?;
    Ok(())
}

/// The device asked for, or the best there is, and why it is this one.
fn choose_device(name: Option<&str>) -> Result<(Device, String)> {
    Ok(match name {
        Some(name) => (name.parse()?, "as --device says".to_string()),
        None => match Device::cuda(0) {
            Ok(device) => (device, "the first GPU".to_string()),
            Err(error) => (Device::cpu(), error.to_string()),
        },
    })
}

/// What training costs, against training the same layers in full with the same optimiser.
fn report_sizes(out: &mut impl Write, model: &Adapted) -> Result<()> {
    let (lora, full) = (model.parameters(), Base::PARAMETERS);
    let optimiser = |parameters| parameters * Adam::BYTES_PER_PARAMETER;
    writeln!(out, "\n{:<34}{:>14}{:>16}", "training these layers", "with LoRA", "in full")?;
    for (name, lora, full) in [
        ("trainable parameters", lora, full),
        ("frozen parameters", full, 0),
        ("bytes of the adapters / weights", model.adapter_bytes(), full * model.dtype().bytes()),
        ("bytes of gradients", model.gradient_bytes(), full * size_of::<f32>()),
        ("bytes of optimiser state", optimiser(lora), optimiser(full)),
    ] {
        let [lora, full] = [lora, full].map(|count| HumanCount(count as u64).to_string());
        writeln!(out, "  {name:<32}{lora:>14}{full:>16}")?;
    }
    writeln!(out, "  (optimiser state: the two moments of Adam and an f32 copy of the weights)")?;
    Ok(())
}

/// A bar on stderr, which indicatif hides where that is not a terminal.
fn progress_bar(name: &'static str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{prefix:<7} {bar:40} {elapsed} {msg}")?;
    Ok(ProgressBar::new(0).with_style(style).with_prefix(name))
}

fn save(path: &Path, content: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, content))
        .map_err(|error| format!("{path:?} could not be written: {error}").into())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
