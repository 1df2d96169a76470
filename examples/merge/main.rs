//! Merges a PEFT adapter into a checkpoint: W0 becomes W0 + s·B A.
//!
//! Files are streamed, so memory does not grow with them; only the adapted weights change, all else
//! is copied byte for byte. `cargo run --release --features peft --example merge -- --help` lists
//! the options, and `merging.rs` is the part to read.

mod args;
mod base;
mod beside;
mod change;
mod checkpoint;
mod experts;
mod families;
mod header;
mod layout;
mod leftovers;
mod merging;
mod mistral;
mod model;
mod names;
mod output;
mod packed;
mod plan;
mod product;
mod programs;
mod progress;
mod replacing;
mod shard;
mod target;
#[cfg(test)]
mod tests;
mod tied;
mod untied;
mod whole;

use crate::args::{Options, USAGE};
use crate::beside::Beside;
use crate::change::{Change, Kind};
use crate::checkpoint::Checkpoint;
use crate::layout::Layouts;
use crate::merging::rewrite;
use crate::model::Model;
use crate::names::Names;
use crate::output::Staging;
use crate::plan::{Plan, plan};
use crate::progress::Progress;
use crate::target::Target;
use lora_kernels::peft::{self, Adapters, Format};
use lora_kernels::{Adapter, DType, Device};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, error};

/// The files of adapters, in directories of PEFT and of other programs.
const ADAPTER_FILES: [&str; 6] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapters.safetensors",
    "lora.safetensors",
    "params.json",
    "pytorch_lora_weights.safetensors",
];

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
    let mut model = Model::read(checkpoint.folder())?;
    let (checkpoint, unpacked) = checkpoint.unpacked(&model)?;
    if checkpoint.is_unpacked {
        model.forget_quantisation();
    }
    let mut adapters = peft::load(&options.adapter, &Device::cpu(), None)?;
    let placed = programs::place(&checkpoint, &model, &mut adapters)?;
    let (renamed, saved) = rename(&checkpoint, &model, options, &mut adapters)?;
    let fan_in_fan_out = adapters.config.fan_in_fan_out();
    let layouts = Layouts::new(&checkpoint, &model, fan_in_fan_out, options.transposed);
    let plan = plan(&checkpoint, &adapters, &saved, &model, &layouts, options)?;
    let Plan { changes, notes, untie, vocabulary } = plan;
    let count: usize = changes.iter().map(Vec::len).sum();
    let (changed, added) = changed(&changes);
    let bytes = checkpoint.bytes()?;
    let (files, tensors) = (checkpoint.shards.len(), checkpoint.tensors());
    let base = options.base.display();
    writeln!(out, "base     {base}: {tensors} tensors in {files} files, {}", megabytes(bytes))?;
    let program = match adapters.format {
        Format::Peft => String::new(),
        format => format!(", in the format of {format}{}", scales_of(&adapters)),
    };
    let (adapter, contents) = (options.adapter.display(), contents_of(&adapters));
    writeln!(out, "adapter  {adapter}: {contents}{program}")?;
    let target = match &options.out {
        Some(to) => Some(Target::new(&checkpoint, &options.base, to)?),
        None => None,
    };
    if let Some(target) = &target {
        let adapter = ADAPTER_FILES.map(|file| options.adapter.join(file));
        let folders = [checkpoint.folder(), &options.adapter];
        let inputs = checkpoint.paths().chain(folders);
        target.check(inputs.chain(adapter.iter().map(PathBuf::as_path)))?;
    }
    for note in
        unpacked.iter().chain(&placed).chain(&renamed).chain(&notes_of(&adapters)).chain(&notes)
    {
        writeln!(out, "note     {note}")?;
    }
    if let (true, Some(Target::File(file))) = (untie, &target) {
        return Err(format!(
            "{}: a file has no config.json, and that of the base ties the head to the embedding, \
             which loses the merged head; give the base's folder as --base and a folder as --out",
            file.display()
        )
        .into());
    }
    let beside = match &target {
        Some(Target::File(_)) => None,
        None if !checkpoint.sharded() && !options.base.is_dir() => None,
        _ => Some(Beside::list(checkpoint.folder())?),
    };
    if options.dry_run {
        list(&checkpoint, &changes, out)?;
        for file in beside.iter().flat_map(|beside| &beside.files) {
            writeln!(out, "{}: copied", file.display())?;
        }
        report_left_out(beside.as_ref(), out)?;
        let more = if added > 0 { format!(", {added} would be new") } else { String::new() };
        return Ok(writeln!(out, "{changed} of {tensors} tensors would change{more}")?);
    }

    let target = target.ok_or("there is no place for the output")?;
    leftovers::clean(target.parent(), out)?;
    let device = choose_device(options.device.as_deref())?;
    let f32s = changes.iter().flatten().any(|change| change.dtype == DType::F32);
    let note = if device.is_cuda() && f32s { "; f32 on the CPU" } else { "" };
    writeln!(out, "device   {device}{note}")?;

    let to = target.path().to_path_buf();
    let mut staging = Staging::new(target)?;
    let mut progress = Progress::new(bytes, count)?;
    for (shard, changes) in checkpoint.shards.iter().zip(&changes) {
        let mut output = staging.file(file_name(shard.path()))?;
        rewrite(shard, &mut output, changes, &device, &mut progress)?;
        output.finish()?;
    }
    if let Some((name, index)) = checkpoint.index_file(&changes)? {
        let mut output = staging.file(Path::new(&name))?;
        output.write(&index)?;
        output.finish()?;
    }
    if let Some(beside) = &beside {
        let vocabulary = vocabulary.filter(|_| model.is_known());
        let config = match (untie || vocabulary.is_some(), checkpoint.is_unpacked) {
            (true, _) => Some(model.changed(untie, vocabulary)?),
            (false, true) => model.json()?,
            (false, false) => None,
        };
        beside.copy(&mut staging, config.as_deref())?;
    }
    progress.finish();
    staging.finish()?;
    if let Some(beside) = beside.as_ref().filter(|beside| !beside.files.is_empty()) {
        writeln!(out, "copied   {} files beside the weights", beside.files.len())?;
    }
    report_left_out(beside.as_ref(), out)?;
    let more = if added > 0 { format!(", {added} new") } else { String::new() };
    Ok(writeln!(out, "merged   {changed} of {tensors} tensors{more}, into {}", to.display())?)
}

/// Gives all that an adapter's file holds the checkpoint's names. Returns what is to be said of it,
/// and the parameters that `modules_to_save` names.
fn rename(
    checkpoint: &Checkpoint,
    model: &Model,
    options: &Options,
    adapters: &mut Adapters,
) -> Result<(Vec<String>, BTreeSet<String>)> {
    let extras = adapters.config.extras();
    let modules = adapters.adapters.keys().chain(extras.updates.keys());
    let modules = modules.chain(extras.parameters.keys()).chain(extras.tokens.keys());
    let modules: Vec<String> = modules.cloned().collect();
    let modules = modules.iter().map(String::as_str);
    let names = Names::new(checkpoint, model, &options.renames, modules)?;
    let saved: BTreeSet<String> =
        extras.whole.keys().filter(|name| adapters.config.saves_whole(name)).cloned().collect();
    let mut notes: Vec<String> = names.rename(&mut adapters.adapters)?.into_iter().collect();
    let extras = adapters.config.extras_mut();
    notes.extend(names.rename(&mut extras.updates)?);
    notes.extend(names.rename(&mut extras.parameters)?);
    notes.extend(names.rename(&mut extras.tokens)?);
    let of = |name: String| match name.rsplit_once('.') {
        Some((module, parameter)) => format!("{}.{parameter}", names.of(module)),
        None => name,
    };
    for (name, tensor) in std::mem::take(&mut extras.whole) {
        let path = of(name.clone());
        if extras.whole.insert(path.clone(), tensor).is_some() {
            return Err(format!("{name} and another parameter are both {path}").into());
        }
    }
    Ok((notes, saved.into_iter().map(of).collect()))
}

/// How many tensors change, and how many are added.
fn changed(changes: &[Vec<Change<'_>>]) -> (usize, usize) {
    let changes = || changes.iter().flatten();
    let added = changes().filter(|change| header::is_added(change)).count();
    let weights: BTreeSet<&str> = changes().map(|change| change.weight.as_str()).collect();
    (weights.len() - added, added)
}

/// What an adapter's directory holds, in words.
fn contents_of(adapters: &Adapters) -> String {
    let extras = adapters.config.extras();
    let mut text = format!("{} modules", adapters.adapters.len() + extras.updates.len());
    for (count, what) in [
        (extras.parameters.len(), "modules with parameters"),
        (extras.whole.len(), "parameters saved whole"),
        (extras.tokens.len(), "embeddings with rows"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

/// The scales of the adapters, in words.
fn scales_of(adapters: &Adapters) -> String {
    let scales = || adapters.adapters.values().map(Adapter::scale);
    let (low, high) = (scales().fold(f32::MAX, f32::min), scales().fold(f32::MIN, f32::max));
    match low == high {
        true => format!(", scale {low}"),
        false => format!(", scales from {low} to {high}"),
    }
}

/// What of the adapter's directory is not merged, as in PEFT.
fn notes_of(adapters: &Adapters) -> Vec<String> {
    let mut notes = Vec::new();
    if let [first, ..] = &adapters.left_out[..] {
        let count = adapters.left_out.len();
        notes.push(format!("{count} tensors are left out by the configuration, such as {first}"));
    }
    if adapters.targets_disregarded {
        notes.push("target_modules names none of the adapter's modules, and is disregarded".into());
    }
    if !adapters.unknown_fields.is_empty() {
        let fields = adapters.unknown_fields.join(", ");
        notes.push(format!("settings that PEFT does not know are ignored: {fields}"));
    }
    notes
}

fn file_name(path: &Path) -> &Path {
    Path::new(path.file_name().expect("a file has a name"))
}

fn report_left_out(beside: Option<&Beside>, out: &mut impl Write) -> Result<()> {
    for path in beside.iter().flat_map(|beside| &beside.left_out) {
        writeln!(out, "note     {} is not copied: it is not a regular file", path.display())?;
    }
    Ok(())
}

fn list(checkpoint: &Checkpoint, changes: &[Vec<Change>], out: &mut impl Write) -> Result<()> {
    for (shard, changes) in checkpoint.shards.iter().zip(changes) {
        for Change { weight, shape, dtype, kind, entry, .. } in changes {
            let shard = shard.path().display();
            let (was, dtype) = (&entry.shape, header::name_of(*dtype));
            let what = match kind {
                Kind::Update { updates, .. } => {
                    let updates = updates.iter().map(|update| {
                        let (r, scale) = (update.factors.rank(), update.scale);
                        let note = if update.transposed { ", stored transposed" } else { "" };
                        format!(", rank {r}, scale {scale}{note}")
                    });
                    format!("{was:?} {dtype}{}", updates.collect::<String>())
                }
                Kind::Replace(_) | Kind::Copy { .. } => format!("{shape:?} {dtype}, in full"),
                Kind::AddBias { scale, .. } => format!("{was:?} {dtype}, bias, scale {scale}"),
                Kind::Rows(tokens) => {
                    format!("{was:?} {dtype}, {} rows", tokens.indices.len())
                }
            };
            writeln!(out, "{shard}: {weight} {what}")?;
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

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
