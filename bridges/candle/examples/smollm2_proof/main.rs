//! One chart and one table of four runs of the example `smollm2` and of `scripts/peft_proof.py`.
//!
//! `cargo run --example smollm2_proof -- DIR` reads ours.json, again.json (the same run once more),
//! plain.json and peft.json, writes curves.svg beside them and prints the table as Markdown.
//! `scripts/proof.sh` makes the files.

#[path = "../smollm2/chart.rs"]
mod chart;
#[path = "../../../../examples/common/svg.rs"]
mod svg;

use crate::chart::Curve;
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, error, fs};

type Result<T, E = Box<dyn error::Error>> = std::result::Result<T, E>;

/// What the chart and the table read of a result file.
#[derive(Debug, Clone, Deserialize)]
struct Run {
    device: String,
    dtype: String,
    date: String,
    commit: String,
    settings: Settings,
    model_parameters: usize,
    trainable_parameters: usize,
    gradient_bytes: usize,
    optimiser_bytes: usize,
    adapter_bytes: usize,
    adapter_sha256: String,
    losses: Vec<f32>,
    held_out: Vec<(usize, f32)>,
    step_ms: f64,
    peak: Option<Peak>,
    loaded_held_out: Option<f32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Settings {
    rank: usize,
    alpha: f32,
    lr: f64,
    #[serde(default)]
    dropout: f64,
    batch: usize,
    seq: usize,
    seed: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct Peak {
    bytes: u64,
}

struct Proof {
    ours: Run,
    again: Run,
    plain: Run,
    peft: Run,
}

fn main() -> Result<()> {
    let dir = env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or("usage: smollm2_proof DIR, with ours.json, plain.json and so on")?;
    let proof = Proof::read(&dir)?;
    fs::write(dir.join("curves.svg"), proof.chart())?;
    Ok(write!(io::stdout(), "{}", proof.table()?)?)
}

impl Proof {
    fn read(dir: &Path) -> Result<Self> {
        let run = |name: &str| -> Result<Run> {
            let path = dir.join(name).with_extension("json");
            let read = fs::read_to_string(&path).map_err(Into::into);
            let run = read.and_then(|text| Ok(serde_json::from_str(&text)?));
            run.map_err(|error: Box<dyn error::Error>| {
                format!("{}: {error}", path.display()).into()
            })
        };
        let proof = Proof {
            ours: run("ours")?,
            again: run("again")?,
            plain: run("plain")?,
            peft: run("peft")?,
        };
        let Run { settings, losses, .. } = &proof.ours;
        for (name, other) in
            [("again", &proof.again), ("plain", &proof.plain), ("peft", &proof.peft)]
        {
            if (&other.settings, other.losses.len()) != (settings, losses.len()) {
                let (steps, n) = (losses.len(), other.losses.len());
                let other = &other.settings;
                let text =
                    format!("{n} steps with {other:?}, and ours is {steps} with {settings:?}");
                return Err(format!("{name} is {text}").into());
            }
        }
        Ok(proof)
    }

    fn subtitle(&self) -> String {
        let Run { device, dtype, settings, losses, .. } = &self.ours;
        let Settings { rank, batch, seq, lr, dropout, .. } = settings;
        let dropout = if *dropout > 0.0 { format!("dropout {dropout}, ") } else { String::new() };
        let steps = losses.len();
        format!(
            "r = {rank}, {dropout}{steps} steps of {batch} × {seq} tokens, AdamW {lr}, {dtype}, \
             {device}"
        )
    }

    fn chart(&self) -> String {
        let (ours, peft) = (&self.ours, &self.peft);
        let curves = [
            Curve::steps("PEFT, training", "other-train", &peft.losses),
            Curve::steps("lora-kernels, training", "train", &ours.losses),
            Curve::sparse("lora-kernels, held out", "held-out", &ours.held_out),
            Curve::sparse("PEFT, held out", "other-held-out", &peft.held_out),
        ];
        chart::svg("Fine-tune of SmolLM2-135M", &self.subtitle(), &curves)
    }

    fn table(&self) -> Result<String> {
        let Proof { ours, again, plain, peft } = self;
        let last = |run: &Run| run.held_out.last().map_or(f32::NAN, |&(_, loss)| loss);
        let loaded = peft.loaded_held_out.ok_or("peft.json has no loaded_held_out")?;
        let first = ours.held_out.first().map_or(f32::NAN, |&(_, loss)| loss);
        let apart = |a: f32, b: f32| format!("{:.2} %", 100.0 * (a / b - 1.0).abs());
        let memory = |run: &Run| run.peak.as_ref().map_or(f64::NAN, |peak| peak.bytes as f64 / 1e9);
        let bits = if ours.adapter_sha256 == again.adapter_sha256 { "the same" } else { "others" };

        let mut text = format!("{}; {}, commit {}\n\n", self.subtitle(), ours.date, ours.commit);
        text += "| | lora-kernels | plain candle | PEFT | | bar |\n|---|---|---|---|---|---|\n";
        let mut row = |name: &str, values: [String; 3], ratio: String, bar: &str| {
            let [ours, plain, peft] = values;
            writeln!(text, "| {name} | {ours} | {plain} | {peft} | {ratio} | {bar} |")
        };
        row(
            &format!("held-out loss, {first:.4} before"),
            [ours, plain, peft].map(|run| format!("{:.4}", last(run))),
            format!("{} from PEFT's", apart(last(ours), last(peft))),
            "1 %",
        )?;
        row(
            "the same, lora-kernels' adapter loaded by PEFT",
            [format!("{:.4}", last(ours)), String::new(), format!("{loaded:.4}")],
            format!("{} apart", apart(loaded, last(ours))),
            "0.2 %",
        )?;
        row(
            "peak memory, GB",
            [ours, plain, peft].map(|run| format!("{:.2}", memory(run))),
            format!("{:.2} of plain candle", memory(ours) / memory(plain)),
            "0.6",
        )?;
        row(
            "a step, ms",
            [ours, plain, peft].map(|run| format!("{:.1}", run.step_ms)),
            format!("{:.2} of plain candle", ours.step_ms / plain.step_ms),
            "0.75",
        )?;
        row(
            "the adapter's bits in a second run",
            [bits.into(), String::new(), String::new()],
            String::new(),
            "the same",
        )?;

        let full = ours.model_parameters;
        text += "\n| | with LoRA | in full | |\n|---|---|---|---|\n";
        // In full: the same AdamW and gradients in f32, and weights saved in bf16.
        for (name, lora, full) in [
            ("trainable parameters", ours.trainable_parameters, full),
            ("bytes of gradients", ours.gradient_bytes, 4 * full),
            ("bytes of AdamW's moments", ours.optimiser_bytes, 8 * full),
            ("bytes of the adapter's file, or of the model's", ours.adapter_bytes, 2 * full),
        ] {
            let share = 100.0 * lora as f64 / full as f64;
            writeln!(text, "| {name} | {lora} | {full} | {share:.1} % |")?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(loss: f32, steps: usize) -> serde_json::Value {
        json!({
            "device": "GPU", "dtype": "bf16", "date": "2026-11-30", "commit": "c",
            "settings": {"rank": 2, "alpha": 4.0, "lr": 0.1, "batch": 1, "seq": 8, "seed": 0},
            "model_parameters": 1000, "trainable_parameters": 20, "gradient_bytes": 80,
            "optimiser_bytes": 160, "adapter_bytes": 100, "adapter_sha256": "a",
            "losses": vec![3.0; steps], "held_out": [[0, 3.0], [steps, loss]],
            "step_ms": 10.0 * loss, "peak": {"bytes": 2_000_000_000u64}, "loaded_held_out": 2.002,
        })
    }

    #[test]
    fn four_runs_make_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, run: serde_json::Value| {
            fs::write(dir.path().join(name), run.to_string()).unwrap();
        };
        write("ours.json", run(2.0, 4));
        write("again.json", run(2.0, 4));
        write("plain.json", run(2.5, 4));
        write("peft.json", run(2.01, 4));
        let proof = Proof::read(dir.path()).unwrap();
        let table = proof.table().unwrap();
        for expected in [
            "| 2.0000 | 2.5000 | 2.0100 | 0.50 % from PEFT's | 1 % |",
            "| 2.0000 |  | 2.0020 | 0.10 % apart | 0.2 % |",
            "| a step, ms | 20.0 | 25.0 | 20.1 | 0.80 of plain candle | 0.75 |",
            "| bytes of AdamW's moments | 160 | 8000 | 2.0 % |",
        ] {
            assert!(table.contains(expected), "{expected} is not in\n{table}");
        }
        assert!(proof.chart().contains("PEFT, held out"));

        write("peft.json", run(2.0, 5));
        let error = Proof::read(dir.path()).err().expect("an error").to_string();
        assert!(error.starts_with("peft is 5 steps with Settings"), "{error}");
    }
}
