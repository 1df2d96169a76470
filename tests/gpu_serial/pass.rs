//! A forward and a backward pass in tensors of the crate, and the bits they make.

use crate::common::{Inputs, Sizes};
use half::bf16;
use lora_kernels::ops::{Backward, Forward, GradientsMut, Projection, Weights};
use lora_kernels::{Accumulation, DType, Device, Dropout, DropoutState, Problem, Result};
use lora_kernels::{Tensor, Workspace};

/// Sizes that reach every path of a GPU: few tokens, short batches, large ones, and unaligned.
pub const PATHS: [Sizes; 5] = [
    Sizes::new(5, 264, 136, 16),
    Sizes::new(70, 136, 264, 8),
    Sizes::new(300, 264, 2056, 24),
    Sizes::new(2305, 520, 776, 40),
    Sizes::new(33, 77, 129, 3),
];

/// Large enough to keep the GPU busy for tens of microseconds.
pub const BUSY: Sizes = Sizes::new(4096, 2048, 2048, 16);

/// Everything of both passes.
pub struct Pass {
    pub x: Tensor,
    pub w0: Tensor,
    pub a: Tensor,
    pub b: Tensor,
    pub dh: Tensor,
    pub h: Tensor,
    pub s: Tensor,
    pub dx: Tensor,
    pub da: Tensor,
    pub db: Tensor,
    pub workspace: Workspace,
    pub forward: Forward,
    pub backward: Backward,
    pub drops: Drops,
    scale: f32,
}

/// Where dropout of a pass has its seed and offset.
pub enum Drops {
    Nothing,
    ByValues { p: f32, seed: u64, offset: u64 },
    ByState { p: f32, state: DropoutState },
}

impl Drops {
    fn dropout(&self) -> Result<Option<Dropout<'_>>> {
        Ok(match self {
            Drops::Nothing => None,
            &Drops::ByValues { p, seed, offset } => Some(Dropout::new(p, seed, offset)?),
            Drops::ByState { p, state } => Some(Dropout::from_state(*p, state)?),
        })
    }
}

/// The bits of h, S, dX, dA and dB.
#[derive(Debug, PartialEq, Clone)]
pub struct Bits(Vec<Vec<u16>>, Vec<Vec<u32>>);

impl Pass {
    pub fn new(device: &Device, sizes: Sizes, seed: u64) -> Result<Self> {
        Pass::with(device, sizes, seed, Drops::Nothing)
    }

    pub fn with(device: &Device, sizes: Sizes, seed: u64, drops: Drops) -> Result<Self> {
        let [t, k, d, r] = sizes.single();
        let inputs = Inputs::<bf16>::reals(sizes, seed);
        let tensor = |values: &[bf16], shape| Tensor::from_slice(device, values, shape);
        let zeros = |shape| Tensor::zeros(device, shape, DType::Bf16);
        let gradient = |shape: [usize; 2]| {
            Tensor::from_slice(device, &vec![f32::NAN; shape[0] * shape[1]], shape)
        };
        let problem = Problem::single(t, k, d, r, DType::Bf16)?;
        let problem = problem.with_dropout(!matches!(drops, Drops::Nothing));
        let forward = Forward::new(device, &problem)?;
        let backward = Backward::new(device, &problem)?;
        let size = forward.workspace().max(backward.workspace());
        Ok(Pass {
            x: tensor(&inputs.x, [t, k])?,
            w0: tensor(&inputs.of[0].w0, [d, k])?,
            a: tensor(&inputs.a, [r, k])?,
            b: tensor(&inputs.of[0].b, [d, r])?,
            dh: tensor(&inputs.of[0].dh, [t, d])?,
            h: zeros([t, d])?,
            s: zeros([t, r])?,
            dx: zeros([t, k])?,
            da: gradient([r, k])?,
            db: gradient([d, r])?,
            workspace: Workspace::new(device, size)?,
            forward,
            backward,
            drops,
            scale: inputs.of[0].scale,
        })
    }

    /// The same operations, from now on on the stream of this device.
    pub fn on(&mut self, device: &Device) -> Result<&mut Self> {
        self.forward = self.forward.on(device)?;
        self.backward = self.backward.on(device)?;
        Ok(self)
    }

    pub fn run_forward(&mut self) -> Result<()> {
        let Pass { x, w0, a, b, h, s, workspace, forward, drops, scale, .. } = self;
        let layer = [Projection::new(w0.view(), b.view(), *scale)];
        let mut weights = Weights::new(a.view(), &layer);
        weights.dropout = drops.dropout()?;
        forward.run(&weights, x.view(), &mut [h.view_mut()], s.view_mut(), workspace)
    }

    pub fn run_backward(&mut self) -> Result<()> {
        let Pass { x, w0, a, b, dh, s, dx, da, db, workspace, backward, drops, scale, .. } = self;
        let layer = [Projection::new(w0.view(), b.view(), *scale)];
        let mut weights = Weights::new(a.view(), &layer);
        weights.dropout = drops.dropout()?;
        let db = &mut [db.view_mut()];
        let out = GradientsMut { da: da.view_mut(), db, accumulation: Accumulation::Overwrite };
        let (x, s) = (x.view(), s.view());
        backward.run(&weights, &[dh.view()], x, s, dx.view_mut(), out, workspace)
    }

    /// Both passes with somebody else's W0.
    pub fn run_with(&mut self, w0: &Tensor) -> Result<()> {
        let Pass { x, a, b, dh, h, s, dx, da, db, workspace, forward, backward, scale, .. } = self;
        let layer = [Projection::new(w0.view(), b.view(), *scale)];
        let weights = Weights::new(a.view(), &layer);
        forward.run(&weights, x.view(), &mut [h.view_mut()], s.view_mut(), workspace)?;
        let db = &mut [db.view_mut()];
        let out = GradientsMut { da: da.view_mut(), db, accumulation: Accumulation::Overwrite };
        let (x, s) = (x.view(), s.view());
        backward.run(&weights, &[dh.view()], x, s, dx.view_mut(), out, workspace)
    }

    pub fn run(&mut self) -> Result<()> {
        self.run_forward()?;
        self.run_backward()
    }

    /// h, S, dX, dA and dB. All else is dropped.
    pub fn into_outputs(self) -> [Tensor; 5] {
        [self.h, self.s, self.dx, self.da, self.db]
    }

    pub fn bits(&self) -> Result<Bits> {
        let halves = [&self.h, &self.s, &self.dx].map(|tensor| {
            let values = tensor.to_vec::<bf16>()?;
            Ok(values.into_iter().map(bf16::to_bits).collect())
        });
        let floats = [&self.da, &self.db]
            .map(|tensor| Ok(tensor.to_vec::<f32>()?.into_iter().map(f32::to_bits).collect()));
        let halves = halves.into_iter().collect::<Result<_>>()?;
        Ok(Bits(halves, floats.into_iter().collect::<Result<_>>()?))
    }
}

/// What a pass makes by itself.
pub fn serial(device: &Device, sizes: Sizes, seed: u64) -> Bits {
    let mut pass = Pass::new(device, sizes, seed).expect("a pass");
    pass.run().expect("both passes enqueued");
    pass.bits().expect("results")
}
