//! The figures of a run, as its result file has them.

use crate::args::{Options, Settings};
use crate::chart::{self, Curve};
use crate::memory::Peak;
use crate::train::Outcome;
use crate::{Result, fetch};
use candle_core::{DType, Device, Var};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;

/// `scripts/peft_proof.py` writes the same fields.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// `lora-kernels`, `candle` or `peft`.
    pub program: String,
    pub device: String,
    pub dtype: String,
    /// The day in UTC, as YYYY-MM-DD.
    pub date: String,
    pub commit: String,
    pub command: String,
    pub settings: Settings,
    pub model_parameters: usize,
    pub trainable_parameters: usize,
    pub gradient_bytes: usize,
    /// Both moments of AdamW.
    pub optimiser_bytes: usize,
    /// adapter_model.safetensors.
    pub adapter_bytes: u64,
    pub adapter_sha256: String,
    /// The loss of each step, before it.
    pub losses: Vec<f32>,
    /// The loss on what is held out, after so many steps.
    pub held_out: Vec<(usize, f32)>,
    /// The median of a step, without the first.
    pub step_ms: f64,
    /// The medians of forward pass, backward pass and optimiser, with `--phases`.
    pub phases_ms: Option<[f64; 3]>,
    pub peak: Option<Peak>,
}

impl Report {
    /// Of a run that has saved its adapter.
    pub fn new(
        options: &Options,
        outcome: &Outcome,
        device: String,
        dtype: DType,
        vars: &[(String, Var)],
        model: &Path,
    ) -> Result<Self> {
        let weights = fs::read(model.join("model.safetensors"))?;
        let weights = SafeTensors::deserialize(&weights)?;
        let sizes = weights.iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>());
        let adapter = fs::read(options.out.join("adapter/adapter_model.safetensors"))?;
        let trainable: usize = vars.iter().map(|(_, var)| var.elem_count()).sum();
        let phase = |i: usize| {
            let ms: Vec<f64> = outcome.phases_ms.iter().map(|phases| phases[i]).collect();
            median(&ms)
        };
        Ok(Report {
            program: if options.settings.plain { "candle" } else { "lora-kernels" }.into(),
            device,
            dtype: dtype.as_str().into(),
            date: output(Command::new("date").args(["-u", "+%F"])).unwrap_or(UNKNOWN.into()),
            commit: commit(),
            command: command(),
            settings: options.settings.clone(),
            model_parameters: sizes.sum(),
            trainable_parameters: trainable,
            gradient_bytes: trainable * size_of::<f32>(),
            optimiser_bytes: 2 * trainable * size_of::<f32>(),
            adapter_bytes: adapter.len() as u64,
            adapter_sha256: fetch::sha256(&adapter),
            losses: outcome.progress.losses.clone(),
            held_out: outcome.progress.held_out.clone(),
            step_ms: median(&outcome.step_ms),
            phases_ms: options.phases.then(|| [phase(0), phase(1), phase(2)]),
            peak: outcome.peak,
        })
    }

    /// The loss curve as an SVG.
    pub fn chart(&self) -> String {
        let curves = [
            Curve::steps("training", "train", &self.losses),
            Curve::sparse("held out", "held-out", &self.held_out),
        ];
        let model = if self.settings.random_tiny { "a tiny Llama" } else { "SmolLM2-135M" };
        let (rank, steps) = (self.settings.rank, self.losses.len());
        let subtitle = format!("rank {rank}, {steps} steps, on {}", self.device);
        chart::svg(&format!("LoRA fine-tune of {model}"), &subtitle, &curves)
    }
}

const UNKNOWN: &str = "unknown";

/// The first GPU's name and driver, or the CPU's name.
pub fn device_name(device: &Device) -> String {
    let name = match device {
        Device::Cpu => {
            let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let line = info.lines().find_map(|line| line.strip_prefix("model name"));
            line.map(|line| line.trim_start_matches([' ', '\t', ':']).to_string())
        }
        _ => {
            let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
            let lines = output(Command::new("nvidia-smi").args(query));
            lines.and_then(|lines| lines.lines().next().map(|line| line.replace(", ", ", driver ")))
        }
    };
    name.unwrap_or(UNKNOWN.into())
}

/// `LORA_KERNELS_COMMIT`, for executables that run far from their sources, else what git says.
fn commit() -> String {
    std::env::var("LORA_KERNELS_COMMIT").unwrap_or_else(|_| {
        let mut git = Command::new("git");
        git.args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]);
        output(&mut git).unwrap_or(UNKNOWN.into())
    })
}

fn command() -> String {
    let args: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo run --release --example smollm2 -- {}", args.join(" "))
}

/// What a command prints, trimmed, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The median of a step, without the first: that one plans and allocates.
fn median(ms: &[f64]) -> f64 {
    let mut ms = ms.get(1..).unwrap_or_default().to_vec();
    ms.sort_by(f64::total_cmp);
    ms.get(ms.len() / 2).copied().unwrap_or(0.0)
}
