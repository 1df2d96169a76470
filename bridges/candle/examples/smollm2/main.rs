//! Fine-tunes SmolLM2-135M-Instruct on what rustc says of its errors, with LoRA.
//!
//! `cargo run --release --example smollm2 -- --help` lists the options. `train.rs` is the part to
//! read for how to train a model with this crate, `model.rs` for how to load one.

mod adamw;
mod args;
mod chart;
mod checkpoint;
mod convert;
mod data;
mod fetch;
mod memory;
mod model;
mod plain;
mod report;
#[path = "../../../../examples/common/svg.rs"]
mod svg;
#[cfg(test)]
mod tests;
mod tiny;
mod tokenizer;
mod train;

use crate::args::{Options, USAGE};
use crate::checkpoint::Checkpoint;
use crate::data::Data;
use crate::model::Model;
use crate::report::Report;
use candle_core::{DType, Device};
use indicatif::{HumanBytes, HumanCount};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, error, fs};
use tokenizers::Tokenizer;

type Result<T, E = Box<dyn error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    // Written to, not printed to: println! panics where the reader of a pipe has gone away.
    let mut out = io::stdout();
    let options = Options::parse(env::args_os().skip(1))
        .map_err(|error| format!("{error}; --help lists the options"))?;
    let Some(options) = options else { return Ok(write!(out, "{USAGE}")?) };
    let stop = Arc::new(AtomicBool::new(false));
    let handler = stop.clone();
    // The loop stops after the step that it is in. Pressed again, Ctrl-C ends the process.
    ctrlc::set_handler(move || {
        if handler.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    run(&options, &mut out, &stop)
}

fn run(options: &Options, out: &mut impl Write, stop: &AtomicBool) -> Result<()> {
    fs::create_dir_all(&options.out)?;
    let tiny = options.out.join("model");
    let dir = if options.settings.random_tiny { &tiny } else { &options.model };
    fs::create_dir_all(dir)?;
    match options.settings.random_tiny {
        true => tiny::write(dir)?,
        false => prepare(dir, options.any_rustc)?,
    }
    let data = Data::load(dir)?;
    let (train, held_out) = (count(data.train.len()), count(data.held_out.len()));
    writeln!(out, "data       {train} tokens to train on, {held_out} held out")?;
    if options.prepare {
        return Ok(writeln!(out, "model      {}", dir.display())?);
    }

    let device = device(&options.device)?;
    let default = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let dtype = options.dtype.unwrap_or(default);
    let checkpoint = match options.resume {
        true => Some(Checkpoint::read(&options.out.join(train::CHECKPOINT), &options.settings)?),
        false => None,
    };
    let initial = options.out.join("initial");
    let mut model = Model::load(dir, &initial, &options.settings, dtype, &device)?;
    let vars = model.vars();
    let trainable: usize = vars.iter().map(|(_, var)| var.elem_count()).sum();
    let name = report::device_name(&device);
    writeln!(out, "device     {name}, {}", dtype.as_str())?;
    writeln!(out, "trainable  {} in {} variables", count(trainable), vars.len())?;
    train::save_order(options, &data)?;
    answer(options, &model, dir, "before", out)?;

    let outcome = train::train(options, &mut model, &data, &device, checkpoint, stop)?;
    model.save(&options.out.join("adapter"))?;
    let report = Report::new(options, &outcome, name, dtype, &vars, dir)?;
    show(options, &report, out)?;
    match report.losses.len() {
        steps if steps < options.steps => {
            Ok(writeln!(out, "stopped after {steps} steps: --resume goes on")?)
        }
        _ => answer(options, &model, dir, "after", out),
    }
}

/// Writes and prints the figures.
fn show(options: &Options, report: &Report, out: &mut impl Write) -> Result<()> {
    fs::write(options.out.join("loss.svg"), report.chart())?;
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    for (steps, loss) in [report.held_out.first(), report.held_out.last()].into_iter().flatten() {
        writeln!(out, "held out   {loss:.4} after {steps} steps")?;
    }
    let peak = report.peak.map_or("unknown".into(), |peak| HumanBytes(peak.bytes).to_string());
    writeln!(out, "step       {:.1} ms, memory {peak} at most", report.step_ms)?;
    Ok(writeln!(out, "results    {}", options.out.display())?)
}

/// Downloads, converts and tokenises what the folder does not have yet.
fn prepare(dir: &Path, any_rustc: bool) -> Result<()> {
    if !dir.join("model.safetensors").exists() {
        convert::convert(&fetch::gguf(dir)?, dir)?;
    }
    Data::prepare(dir, any_rustc)
}

/// What the model says to the question.
fn answer(
    options: &Options,
    model: &Model,
    dir: &Path,
    when: &str,
    out: &mut impl Write,
) -> Result<()> {
    let Model::Kernels(llama) = model else { return Ok(()) };
    if options.answer == 0 || options.settings.random_tiny {
        return Ok(());
    }
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).map_err(text)?;
    let prompt = tokenizer.encode(data::prompt(&options.question), false).map_err(text)?;
    let stop: Vec<u32> = tokenizer.token_to_id(data::END).into_iter().collect();
    let ids = llama.generate(prompt.get_ids(), options.answer, &stop)?;
    let answer = tokenizer.decode(&ids, true).map_err(text)?;
    Ok(writeln!(out, "\n{} ({when})\n{}\n", options.question, answer.trim())?)
}

/// `cpu`, `cuda` or `cuda:N`.
fn device(name: &str) -> Result<Device> {
    let index = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => Some(0),
        Some(("cuda", index)) => index.parse().ok(),
        _ => None,
    };
    let index = index.ok_or_else(|| format!("--device must be cpu or cuda:N, not {name:?}"))?;
    Ok(Device::new_cuda(index)?)
}

fn count(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

fn text(error: tokenizers::Error) -> String {
    error.to_string()
}
