//! Merges a PEFT adapter into a checkpoint: W0 becomes W0 + s·B A.
//!
//! Files are streamed, so memory does not grow with them; only the adapted weights change, all else
//! is copied byte for byte. `cargo run --release --features peft --example merge -- --help` lists
//! the options, and `merging.rs` is the part to read.

mod adapter;
mod args;
mod checkpoint;
mod layout;
mod merging;
mod model;
mod output;
mod plan;
#[cfg(test)]
mod tests;

use crate::args::{Options, USAGE};
use crate::checkpoint::Checkpoint;
use crate::layout::Layouts;
use crate::merging::rewrite;
use crate::model::Model;
use crate::output::{refuse_inputs, sync_names, Output};
use crate::plan::{plan, Change};
use indicatif::{ProgressBar, ProgressStyle};
use lora_kernels::{DType, Device};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, error, fs};

type Result<T, E = Box<dyn error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    match parse().and_then(|options| match options {
        Some(options) => run(&options, &mut io::stdout()),
        None => Ok(write!(io::stdout(), "{USAGE}")?),
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Option<Options>> {
    Ok(Options::parse(env::args_os().skip(1))
        .map_err(|error| format!("{error}; --help lists the options"))?)
}

fn run(options: &Options, out: &mut impl Write) -> Result<()> {
    let checkpoint = Checkpoint::open(&options.base)?;
    let model = Model::read(checkpoint.folder())?;
    let (adapters, fan_in_fan_out) = adapter::load(&options.adapter)?;
    let layouts = Layouts::new(&checkpoint, &model, fan_in_fan_out, options.transposed);
    let changes = plan(&checkpoint, &adapters, &layouts, options)?;
    let bytes = checkpoint.bytes()?;
    let (files, tensors) = (checkpoint.shards.len(), checkpoint.tensors());
    let base = options.base.display();
    writeln!(out, "base     {base}: {tensors} tensors in {files} files, {}", megabytes(bytes))?;
    let (adapter, count) = (options.adapter.display(), adapters.adapters.len());
    writeln!(out, "adapter  {adapter}: {count} modules")?;
    if options.dry_run {
        list(&checkpoint, &changes, out)?;
        return Ok(writeln!(out, "{count} of {tensors} tensors would change")?);
    }

    let to = options.out.as_deref().ok_or("there is no place for the output")?;
    let places = places(&checkpoint, to)?;
    let inputs = || {
        let adapter = adapter::FILES.map(|file| options.adapter.join(file));
        checkpoint.paths().map(Path::to_path_buf).chain(adapter).collect::<Vec<_>>()
    };
    for place in &places {
        refuse_inputs(place, inputs().iter().map(PathBuf::as_path))?;
    }
    let device = choose_device(options.device.as_deref())?;
    let f32s = changes.iter().flatten().any(|change| change.dtype == DType::F32);
    let note = if device.is_cuda() && f32s { "; f32 on the CPU" } else { "" };
    writeln!(out, "device   {device}{note}")?;

    let progress = progress_bar(bytes)?;
    let mut outputs = Vec::new();
    for ((shard, changes), place) in checkpoint.shards.iter().zip(&changes).zip(&places) {
        let mut output = Output::new(place.clone())?;
        rewrite(shard.path(), &mut output, changes, &device, &progress)
            .map_err(|error| format!("{}: {error}", shard.path().display()))?;
        outputs.push(output);
    }
    if let (Some(index), Some(place)) = (&checkpoint.index, places.last()) {
        let mut output = Output::new(place.clone())?;
        output.write_all(&fs::read(index)?)?;
        outputs.push(output);
    }
    progress.finish_and_clear();
    // All are whole: now they get their names, the index last.
    outputs.into_iter().try_for_each(Output::finish)?;
    sync_names(places[0].parent().unwrap_or(Path::new("")))?;
    Ok(writeln!(out, "merged   {count} of {tensors} tensors, into {}", to.display())?)
}

/// Where the new files go: `out` itself, or the shards' names within it, and the index at last.
fn places(checkpoint: &Checkpoint, out: &Path) -> Result<Vec<PathBuf>> {
    if checkpoint.index.is_none() {
        if out.is_dir() {
            return Err(format!("{} is a directory, not a file", out.display()).into());
        }
        return Ok(vec![out.to_path_buf()]);
    }
    fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
    let name = |path: &Path| path.file_name().expect("a file has a name").to_owned();
    Ok(checkpoint.paths().map(|path| out.join(name(path))).collect())
}

fn list(checkpoint: &Checkpoint, changes: &[Vec<Change>], out: &mut impl Write) -> Result<()> {
    for (shard, changes) in checkpoint.shards.iter().zip(changes) {
        for Change { weight, entry, adapter, scale, transposed, .. } in changes {
            let (dtype, shape, r) = (&entry.dtype_name, &entry.shape, adapter.rank());
            let shard = shard.path().display();
            let note = if *transposed { ", stored transposed" } else { "" };
            writeln!(out, "{shard}: {weight} {shape:?} {dtype}, rank {r}, scale {scale}{note}")?;
        }
    }
    Ok(())
}

fn choose_device(name: Option<&str>) -> Result<Device> {
    Ok(match name {
        Some(name) => name.parse()?,
        None => Device::cuda(0).unwrap_or(Device::cpu()),
    })
}

/// A bar on stderr, which indicatif hides where that is not a terminal.
fn progress_bar(bytes: u64) -> Result<ProgressBar> {
    let style = "merging  {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    Ok(ProgressBar::new(bytes).with_style(ProgressStyle::with_template(style)?))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
