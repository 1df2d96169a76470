//! The training loop.

use crate::Result;
use crate::adamw::AdamW;
use crate::args::Options;
use crate::checkpoint::{self, Checkpoint, Progress};
use crate::data::{self, Data};
use crate::memory::{self, Peak};
use crate::model::Model;
use candle_core::{Device, Tensor};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// In `--out`.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

pub struct Outcome {
    pub progress: Progress,
    /// How long each step of this process took.
    pub step_ms: Vec<f64>,
    /// Forward, backward and optimiser of each step, if asked for.
    pub phases_ms: Vec<[f64; 3]>,
    pub peak: Option<Peak>,
}

/// Trains up to `--steps`, or until `stop`. A checkpoint is left either way.
pub fn train(
    options: &Options,
    model: &mut Model,
    data: &Data,
    device: &Device,
    checkpoint: Option<Checkpoint>,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let settings = &options.settings;
    let (batch, seq) = (settings.batch, settings.seq);
    let vars = model.vars();
    let mut optimiser = AdamW::new(vars.clone(), settings.lr)?;
    let path = options.out.join(CHECKPOINT);
    let mut progress = match checkpoint {
        Some(checkpoint) => checkpoint.restore(&vars, &mut optimiser)?,
        None => Progress::default(),
    };
    model.refresh()?;
    if progress.held_out.is_empty() {
        progress.held_out.push((0, evaluate(options, model, data, device)?));
    }
    memory::reset_peak(device)?;

    let starts = data::starts(&data.train, seq)?;
    let order = data::order(&starts, options.steps * batch, settings.seed);
    let bar = progress_bar(options.steps)?;
    let (mut step_ms, mut phases_ms) = (Vec::new(), Vec::new());
    for (step, starts) in order.chunks(batch).enumerate().skip(progress.losses.len()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        let (ids, targets) = data::batch(&data.train, starts, seq, device)?;
        // Rows of the masks follow from the step: so a run that resumes has the same.
        model.train(settings, step * batch * seq)?;
        let mut phases = Phases::new(options.phases.then_some(device));
        let loss = step_of(model, &mut optimiser, &ids, &targets, &mut phases)?;
        phases_ms.extend(phases.ms());
        let seconds = begin.elapsed().as_secs_f64();
        step_ms.push(1e3 * seconds);
        progress.losses.push(loss);
        if (step + 1) % options.every == 0 || step + 1 == options.steps {
            progress.held_out.push((step + 1, evaluate(options, model, data, device)?));
            checkpoint::save(&path, &vars, &optimiser, &progress, settings)?;
        }
        let (_, held_out) = progress.held_out.last().copied().unwrap_or_default();
        let memory = memory::peak(device)?.map_or(0, |peak| peak.bytes);
        let rate = (batch * seq) as f64 / seconds;
        let memory = HumanBytes(memory);
        bar.set_message(format!("{loss:.3}, held out {held_out:.3}, {rate:.0} tokens/s, {memory}"));
        bar.set_position(step as u64 + 1);
    }
    bar.finish_and_clear();
    model.eval();
    checkpoint::save(&path, &vars, &optimiser, &progress, settings)?;
    Ok(Outcome { progress, step_ms, phases_ms, peak: memory::peak(device)? })
}

/// One step; the loss before it. Nothing of its graph is left when it returns.
fn step_of(
    model: &Model,
    optimiser: &mut AdamW,
    ids: &Tensor,
    targets: &Tensor,
    phases: &mut Phases<'_>,
) -> Result<f32> {
    let loss = model.loss(ids, targets)?;
    phases.end()?;
    let gradients = loss.backward()?;
    phases.end()?;
    optimiser.step(&gradients)?;
    model.refresh()?;
    phases.end()?;
    // Waits for the GPU, so that the caller's clock has the whole step.
    Ok(loss.to_scalar()?)
}

/// A clock for the parts of a step, which waits for the device at the end of each.
struct Phases<'a> {
    device: Option<&'a Device>,
    begin: Instant,
    ms: Vec<f64>,
}

impl<'a> Phases<'a> {
    /// Without a device it does nothing.
    fn new(device: Option<&'a Device>) -> Self {
        Phases { device, begin: Instant::now(), ms: Vec::new() }
    }

    fn end(&mut self) -> Result<()> {
        if let Some(device) = self.device {
            device.synchronize()?;
            self.ms.push(1e3 * self.begin.elapsed().as_secs_f64());
            self.begin = Instant::now();
        }
        Ok(())
    }

    fn ms(self) -> Option<[f64; 3]> {
        self.ms.try_into().ok()
    }
}

/// The mean loss on what is held out, in sequences of `--seq` tokens, without dropout.
fn evaluate(options: &Options, model: &mut Model, data: &Data, device: &Device) -> Result<f32> {
    let (batch, seq) = (options.settings.batch, options.settings.seq);
    let starts = held_out(options, data)?;
    model.eval();
    let mut sum = 0.0;
    for starts in starts.chunks(batch) {
        let (ids, targets) = data::batch(&data.held_out, starts, seq, device)?;
        sum += model.loss(&ids, &targets)?.to_scalar::<f32>()? * starts.len() as f32;
    }
    Ok(sum / starts.len() as f32)
}

fn held_out(options: &Options, data: &Data) -> Result<Vec<usize>> {
    let mut starts = data::starts(&data.held_out, options.settings.seq)?;
    starts.truncate(options.held_out);
    Ok(starts)
}

/// What another program needs for the same run: where the sequences of each step start, and those
/// of an evaluation.
pub fn save_order(options: &Options, data: &Data) -> Result<()> {
    let (batch, seq) = (options.settings.batch, options.settings.seq);
    let train = data::starts(&data.train, seq)?;
    let order = data::order(&train, options.steps * batch, options.settings.seed);
    let steps: Vec<_> = order.chunks(batch).collect();
    let json = serde_json::json!({
        "steps": steps,
        "held_out": held_out(options, data)?,
        "every": options.every,
        "settings": options.settings,
    });
    Ok(std::fs::write(options.out.join("order.json"), json.to_string())?)
}

/// A bar on stderr, which indicatif hides where that is not a terminal.
fn progress_bar(steps: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} loss {msg}")?;
    Ok(ProgressBar::new(steps as u64).with_style(style))
}
