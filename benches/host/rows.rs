//! The rows of a problem: the operations and the layer, on the host and as a whole.

use crate::args::Options;
use crate::calls::{LayerCalls, Operations, Tensors};
use crate::common::gpu::{Gpu, nodes};
use crate::common::results::name;
use crate::common::{Result, median};
use crate::report::{Report, Row};
use crate::timing::{self, Call};
use lora_kernels::{Device, Problem};

/// The bars, in µs.
const FORWARD: f64 = 5.0;
const BACKWARD: f64 = 8.0;
const FURTHER_LAUNCH: f64 = 2.5;
const LAYER: f64 = 22.0;

/// Measures all rows of the problem; `whole_bar` is that of the ratio of `whole`.
pub fn measure(
    gpu: &Gpu,
    options: &Options,
    problem: Problem,
    whole_bar: Option<f64>,
    report: &mut Report,
) -> Result<()> {
    let streams = [gpu.device.clone(), gpu.another_stream()?];
    let rows = Rows { gpu, options, problem, streams, report };
    let measured = match problem.projections().len() {
        1 => rows.measure::<1>(whole_bar),
        2 => rows.measure::<2>(whole_bar),
        _ => rows.measure::<3>(whole_bar),
    };
    measured.map_err(|error| format!("{}: {error}", name(&problem)).into())
}

struct Rows<'r> {
    gpu: &'r Gpu,
    options: &'r Options,
    problem: Problem,
    streams: [Device; 2],
    report: &'r mut Report,
}

impl Rows<'_> {
    fn wants(&self, op: &str) -> bool {
        self.options.wants(&format!("{} {op}", name(&self.problem)))
    }

    /// Measures a problem of N projections.
    fn measure<const N: usize>(mut self, whole_bar: Option<f64>) -> Result<()> {
        if !["forward", "backward", "layer", "whole"].into_iter().any(|op| self.wants(op)) {
            return Ok(());
        }
        let tensors = Tensors::<N>::new(&self.streams, &self.problem)?;
        let projections = tensors.layer.views()?;
        let mut layer = LayerCalls::new(&tensors)?;

        // On two streams first: a workspace that a graph uses is of one stream from then on.
        let mut operations = Operations::new(&self.streams, &self.problem, &tensors, &projections)?;
        // Backward reads its S.
        operations.forward(0)?;
        let forward = self.host("forward", &mut |stream| operations.forward(stream))?;
        operations.forward(0)?;
        let backward = self.host("backward", &mut |stream| operations.backward(stream))?;
        let layer_us = self.host("layer", &mut |stream| layer.call(stream))?;
        self.gpu.keep_pool(true)?;
        let kept_pool = self.host("layer", &mut |stream| layer.call(stream))?;
        self.gpu.keep_pool(false)?;

        // What a capture enqueues has run before, on this stream.
        operations.forward(0)?;
        operations.backward(0)?;
        if let Some(us) = forward {
            let launches = nodes(&self.gpu.capture(1, |_| operations.forward(0))?)?;
            let row = self.host_row("forward", us, FORWARD + further(launches));
            let row = Row { path: Some(operations.forward_path()), ..row };
            self.report.add(row.with("launches", launches))?;
        }
        if let Some(us) = backward {
            let launches = nodes(&self.gpu.capture(1, |_| operations.backward(0))?)?;
            let row = self.host_row("backward", us, BACKWARD + further(launches));
            let row = Row { path: Some(operations.backward_path()), ..row };
            self.report.add(row.with("launches", launches))?;
        }
        if let (Some(us), Some([kept_pool, _])) = (layer_us, kept_pool) {
            let row = self.host_row("layer", us, LAYER);
            self.report.add(row.with_us("kept_pool_us", kept_pool))?;
        }
        match self.wants("whole") {
            true => self.whole(&mut operations, &mut layer, whole_bar),
            false => Ok(()),
        }
    }

    /// µs of a call on the host, on one stream and on two in turns; `None` if the row is not
    /// selected.
    fn host(&self, op: &str, call: &mut Call<'_>) -> Result<Option<[f64; 2]>> {
        if !self.wants(op) {
            return Ok(None);
        }
        let batches = self.options.batches();
        let one = timing::host_us(&self.streams[..1], batches, call)?;
        Ok(Some([one, timing::host_us(&self.streams, batches, call)?]))
    }

    fn host_row(&self, op: &'static str, [us, other]: [f64; 2], bar: f64) -> Row {
        let row = Row { bar: Some(bar), ..Row::new(Some(self.problem), op, us) };
        row.with_us("other_stream_us", other)
    }

    /// The layer's calls, beside the operations called directly and in a graph.
    fn whole<const N: usize>(
        &mut self,
        operations: &mut Operations<'_, N>,
        layer: &mut LayerCalls<'_, N>,
        ratio_bar: Option<f64>,
    ) -> Result<()> {
        let (gpu, options) = (self.gpu, self.options);
        let mut both = |_| {
            operations.forward(0)?;
            operations.backward(0)
        };
        let graph = gpu.capture(1, &mut both)?;
        let mut replay = |_| Ok(graph.launch()?);
        let mut layer = |stream| layer.call(stream);
        let contenders: [&mut Call<'_>; 3] = [&mut replay, &mut layer, &mut both];
        let us = timing::whole_us(&gpu.device, options.calls(), options.rounds, contenders)?;
        let [graph_us, layer_us, calls_us] = &us;
        let ratio = |of: &[f64]| {
            let ratios: Vec<f64> = of.iter().zip(graph_us).map(|(us, graph)| us / graph).collect();
            median(&ratios)
        };
        if ratio_bar.is_some() {
            self.report.environment.sample_clocks(|| {
                (0..options.calls()).try_for_each(&mut replay)?;
                gpu.synchronize()
            })?;
        }
        let row = Row::new(Some(self.problem), "whole", median(layer_us));
        let row = Row { ratio: Some(ratio(layer_us)), ratio_bar, ..row };
        let row = row.with_us("graph_us", median(graph_us)).with_us("calls_us", median(calls_us));
        self.report.add(row.with("calls_ratio", format!("{:.4}", ratio(calls_us))))
    }
}

/// What all launches but the first add to a bar.
fn further(launches: usize) -> f64 {
    FURTHER_LAUNCH * launches.saturating_sub(1) as f64
}
