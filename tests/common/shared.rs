//! Projections that share their input: inputs, and a run of both passes on any device.

use super::run::{base_gradient, guard, poison, BAND};
use super::{assert_same_bits, assert_same_values, Buffer, DeviceElement, Inputs, Place};
use super::{Placement, Sizes};
use lora_kernels::ops::{self, Projection, SharedBackwardOutputs, SharedWeights};
use lora_kernels::{Accumulation, DType, Device, Element, Result, SharedProblem};
use lora_kernels::{Tensor, TensorView, TensorViewMut, Workspace};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SharedSizes {
    pub t: usize,
    pub k: usize,
    /// d and r of every projection.
    pub of: &'static [(usize, usize)],
}

impl SharedSizes {
    pub const fn new(t: usize, k: usize, of: &'static [(usize, usize)]) -> Self {
        SharedSizes { t, k, of }
    }

    /// The sum of the ranks.
    pub fn rank(&self) -> usize {
        self.of.iter().map(|&(_, r)| r).sum()
    }

    /// The column of S at which a projection begins.
    pub fn start(&self, projection: usize) -> usize {
        self.of[..projection].iter().map(|&(_, r)| r).sum()
    }

    pub fn problem(&self, dtype: DType) -> SharedProblem {
        SharedProblem::new(self.t, self.k, self.of, dtype).expect("sizes within the limits")
    }
}

impl fmt::Display for SharedSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SharedSizes { t, k, of } = self;
        write!(f, "T={t} k={k} (d, r)={of:?}")
    }
}

/// The inputs of both passes. `s` is that of the backward pass, which takes any S.
#[derive(Clone)]
pub struct SharedInputs<E> {
    pub sizes: SharedSizes,
    pub x: Vec<E>,
    pub a: Vec<E>,
    pub s: Vec<E>,
    pub of: Vec<Of<E>>,
}

/// What a projection has for itself.
#[derive(Clone)]
pub struct Of<E> {
    pub scale: f32,
    pub w0: Vec<E>,
    pub b: Vec<E>,
    pub dh: Vec<E>,
}

impl<E: DeviceElement> SharedInputs<E> {
    /// Integers of which no sum is ever rounded, as [`Inputs::integers`] makes them. The scales are
    /// powers of two, with which S and dS have no more bits than there.
    pub fn integers(sizes: SharedSizes, seed: u64) -> Self {
        Self::of_each(sizes, [0.5, -1.0, 0.25, 2.0], seed, Inputs::integers)
    }

    /// Reals, as [`Inputs::reals`] makes them.
    pub fn reals(sizes: SharedSizes, seed: u64) -> Self {
        Self::of_each(sizes, [0.7, -1.1, 0.3, 0.9], seed, Inputs::reals)
    }

    fn of_each(
        sizes: SharedSizes,
        scales: [f32; 4],
        seed: u64,
        inputs: impl Fn(Sizes, u64) -> Inputs<E>,
    ) -> Self {
        let SharedSizes { t, k, of } = sizes;
        let all = inputs(Sizes::new(t, k, 1, sizes.rank()), seed);
        let one = |(i, &(d, r)): (usize, &(usize, usize))| {
            let seed = seed ^ ((i as u64 + 1) << 32);
            let Inputs { w0, b, dh, .. } = inputs(Sizes::new(t, k, d, r), seed);
            Of { scale: scales[i], w0, b, dh }
        };
        let of = of.iter().enumerate().map(one).collect();
        SharedInputs { sizes, x: all.x, a: all.a, s: all.s, of }
    }

    /// Those of one projection, as if it were alone.
    pub fn alone(&self, i: usize) -> Inputs<E> {
        let SharedSizes { t, k, of } = self.sizes;
        let ((d, r), start) = (of[i], self.sizes.start(i));
        let Of { scale, w0, b, dh } = self.of[i].clone();
        Inputs {
            sizes: Sizes::new(t, k, d, r),
            scale,
            x: self.x.clone(),
            w0,
            a: self.a[start * k..(start + r) * k].to_vec(),
            b,
            s: columns(&self.s, self.sizes.rank(), start, r),
            dh,
        }
    }

    /// The same numbers in f32, for a reference whose outputs are hardly rounded.
    pub fn widened(&self) -> SharedInputs<f32> {
        let widen = |values: &[E]| values.iter().map(|v| v.to_f64() as f32).collect();
        let of = |Of { scale, w0, b, dh }: &Of<E>| Of {
            scale: *scale,
            w0: widen(w0),
            b: widen(b),
            dh: widen(dh),
        };
        SharedInputs {
            sizes: self.sizes,
            x: widen(&self.x),
            a: widen(&self.a),
            s: widen(&self.s),
            of: self.of.iter().map(of).collect(),
        }
    }
}

/// So many columns from `start` on, of a matrix of `cols`.
pub fn columns<E: Copy>(values: &[E], cols: usize, start: usize, n: usize) -> Vec<E> {
    values.chunks(cols).flat_map(|row| &row[start..start + n]).copied().collect()
}

/// The buffers of both passes.
pub struct SharedBuffers<E> {
    place: Place,
    inputs: SharedInputs<E>,
    x: Buffer<E>,
    a: Buffer<E>,
    s_in: Buffer<E>,
    s: Buffer<E>,
    dx: Buffer<E>,
    da: Buffer<f32>,
    da_added: Buffer<f32>,
    of: Vec<BuffersOf<E>>,
    workspace: Workspace,
    /// What of the workspace's scratch the plans ask for; after it comes a band.
    scratch: usize,
}

struct BuffersOf<E> {
    w0: Buffer<E>,
    b: Buffer<E>,
    dh: Buffer<E>,
    h: Buffer<E>,
    h_without_s: Buffer<E>,
    db: Buffer<f32>,
    db_added: Buffer<f32>,
}

impl<E: DeviceElement> SharedBuffers<E> {
    pub fn new(place: &Place, inputs: &SharedInputs<E>) -> Self {
        let (SharedSizes { t, k, of }, rank) = (inputs.sizes, inputs.sizes.rank());
        let (device, problem) = (&place.device, inputs.sizes.problem(E::DTYPE));
        let forward = ops::forward_shared_plan(device, &problem);
        let backward = ops::backward_shared_plan(device, &problem);
        let mut workspace = Workspace::new(device, &[forward, backward]).expect("a workspace");
        let scratch = forward.scratch.max(backward.scratch);
        workspace.scratch =
            Tensor::zeros(device, [scratch + BAND], DType::F32).expect("more scratch");
        let buffers_of = |&(d, r): &(usize, usize)| BuffersOf {
            w0: Buffer::new(place, "w0", [d, k]),
            b: Buffer::new(place, "b", [d, r]),
            dh: Buffer::new(place, "dh", [t, d]),
            h: Buffer::new(place, "h", [t, d]),
            h_without_s: Buffer::new(place, "h without s", [t, d]),
            db: Buffer::new(place, "db", [d, r]),
            db_added: Buffer::new(place, "db added", [d, r]),
        };
        let mut buffers = SharedBuffers {
            place: place.clone(),
            inputs: inputs.clone(),
            x: Buffer::new(place, "x", [t, k]),
            a: Buffer::new(place, "a", [rank, k]),
            s_in: Buffer::new(place, "s of backward", [t, rank]),
            s: Buffer::new(place, "s", [t, rank]),
            dx: Buffer::new(place, "dx", [t, k]),
            da: Buffer::new(place, "da", [rank, k]),
            da_added: Buffer::new(place, "da added", [rank, k]),
            of: of.iter().map(buffers_of).collect(),
            workspace,
            scratch,
        };
        buffers.load(inputs);
        buffers
    }

    /// Fills the inputs with others of the same sizes, and poisons the outputs.
    pub fn load(&mut self, inputs: &SharedInputs<E>) {
        assert_eq!(inputs.sizes, self.inputs.sizes);
        self.inputs = inputs.clone();
        self.x.set(&inputs.x);
        self.a.set(&inputs.a);
        self.s_in.set(&inputs.s);
        self.s.set_poison();
        self.dx.set_poison();
        self.da.set_poison();
        self.da_added.set(&base_gradient(self.da_added.elements()));
        for (buffers, inputs) in self.of.iter_mut().zip(&inputs.of) {
            buffers.w0.set(&inputs.w0);
            buffers.b.set(&inputs.b);
            buffers.dh.set(&inputs.dh);
            buffers.h.set_poison();
            buffers.h_without_s.set_poison();
            buffers.db.set_poison();
            buffers.db_added.set(&base_gradient(buffers.db_added.elements()));
        }
        let mut scratch = vec![poison::<f32>(); self.scratch];
        scratch.resize(self.scratch + BAND, guard());
        self.workspace.scratch.copy_from_slice(&scratch).expect("scratch");
    }

    /// Enqueues both passes twice: with S, and without; with dX, and, adding up, without.
    pub fn enqueue(&mut self) -> Result<()> {
        let device = &self.place.device;
        let (mut projections, mut dh) = (Vec::new(), Vec::new());
        let (mut h, mut h_without_s): (Vec<_>, Vec<_>) = Default::default();
        let (mut db, mut db_added): (Vec<_>, Vec<_>) = Default::default();
        for (buffers, inputs) in self.of.iter_mut().zip(&self.inputs.of) {
            let (w0, b) = (buffers.w0.view(), buffers.b.view());
            projections.push(Projection { w0, b, scale: inputs.scale });
            dh.push(buffers.dh.view());
            h.push(buffers.h.view_mut());
            h_without_s.push(buffers.h_without_s.view_mut());
            db.push(buffers.db.view_mut());
            db_added.push(buffers.db_added.view_mut());
        }
        let weights = SharedWeights { a: self.a.view(), projections: &projections };
        let (workspace, x) = (&mut self.workspace, || self.x.view());
        let forward = |h: &mut [TensorViewMut<'_>], s: Option<TensorViewMut<'_>>, w: &mut _| {
            ops::forward_shared(device, &weights, x(), h, s, w)
        };
        forward(&mut h, Some(self.s.view_mut()), workspace)?;
        forward(&mut h_without_s, None, workspace)?;

        let s = || -> TensorView<'_> { self.s_in.view() };
        let out = SharedBackwardOutputs {
            dx: Some(self.dx.view_mut()),
            da: self.da.view_mut(),
            db: &mut db,
            accumulation: Accumulation::Overwrite,
        };
        ops::backward_shared(device, &weights, &dh, x(), s(), out, workspace)?;
        let out = SharedBackwardOutputs {
            dx: None,
            da: self.da_added.view_mut(),
            db: &mut db_added,
            accumulation: Accumulation::Add,
        };
        ops::backward_shared(device, &weights, &dh, x(), s(), out, workspace)
    }

    /// What the passes made. Checks on the way that they left alone what is not theirs, that H is
    /// the same where S is not asked for, and that `Add` gave the bits of an overwrite and an
    /// addition.
    pub fn outputs(&self) -> SharedOutputs<E> {
        let inputs = &self.inputs;
        let mut unchanged =
            vec![(&self.x, &inputs.x), (&self.a, &inputs.a), (&self.s_in, &inputs.s)];
        for (of, inputs) in self.of.iter().zip(&inputs.of) {
            unchanged.extend([(&of.w0, &inputs.w0), (&of.b, &inputs.b), (&of.dh, &inputs.dh)]);
        }
        for (buffer, values) in unchanged {
            assert_same_bits("an input", &buffer.get(), values);
        }
        let scratch: Vec<f32> = self.workspace.scratch.to_vec().expect("scratch");
        assert_same_bits("after the scratch", &scratch[self.scratch..], &[guard(); BAND]);

        let added = |gradient: &Buffer<f32>, added: &Buffer<f32>, name: &str| {
            let new = gradient.get();
            let base = base_gradient(new.len());
            let sum: Vec<f32> = base.iter().zip(&new).map(|(base, new)| base + new).collect();
            assert_same_bits(name, &added.get(), &sum);
            new
        };
        let da = added(&self.da, &self.da_added, "da added");
        let (mut h, mut db) = (Vec::new(), Vec::new());
        for (i, of) in self.of.iter().enumerate() {
            h.push(of.h.get());
            db.push(added(&of.db, &of.db_added, &format!("db[{i}] added")));
            assert_same_bits(&format!("h[{i}] without s"), &of.h_without_s.get(), &h[i]);
        }
        SharedOutputs { h, s: self.s.get(), dx: self.dx.get(), da, db }
    }
}

/// What both passes made of one set of inputs.
pub struct SharedOutputs<E> {
    pub h: Vec<Vec<E>>,
    pub s: Vec<E>,
    pub dx: Vec<E>,
    pub da: Vec<f32>,
    pub db: Vec<Vec<f32>>,
}

impl<E: DeviceElement> SharedOutputs<E> {
    pub fn assert_same_bits(&self, other: &Self, context: &str) {
        self.compare(other, context, assert_same_bits::<E>, assert_same_bits::<f32>);
    }

    /// As [`SharedOutputs::assert_same_bits`], with the sign of zeros left free.
    pub fn assert_same_values(&self, other: &Self, context: &str) {
        self.compare(other, context, assert_same_values::<E>, assert_same_values::<f32>);
    }

    fn compare(
        &self,
        other: &Self,
        context: &str,
        same: impl Fn(&str, &[E], &[E]),
        same_f32: impl Fn(&str, &[f32], &[f32]),
    ) {
        same(&format!("{context}: s"), &self.s, &other.s);
        for (i, (h, other)) in self.h.iter().zip(&other.h).enumerate() {
            same(&format!("{context}: h[{i}]"), h, other);
        }
        same(&format!("{context}: dx"), &self.dx, &other.dx);
        same_f32(&format!("{context}: da"), &self.da, &other.da);
        for (i, (db, other)) in self.db.iter().zip(&other.db).enumerate() {
            same_f32(&format!("{context}: db[{i}]"), db, other);
        }
    }
}

/// What the CPU reference makes of the inputs.
pub fn shared_on_cpu<E: DeviceElement>(inputs: &SharedInputs<E>) -> SharedOutputs<E> {
    let place = Place { device: Device::cpu(), placement: Placement::Aligned };
    let mut buffers = SharedBuffers::new(&place, inputs);
    buffers.enqueue().expect("the CPU reference");
    buffers.outputs()
}

/// Runs both passes twice in fresh buffers on a CUDA device, and fails unless both runs made the
/// same bits.
pub fn shared_on_cuda<E: DeviceElement>(
    place: &Place,
    inputs: &SharedInputs<E>,
) -> SharedOutputs<E> {
    let run = || {
        let mut buffers = SharedBuffers::new(place, inputs);
        buffers.enqueue().expect("both passes enqueued");
        buffers.outputs()
    };
    let outputs = run();
    let context = format!("{}, {:?}, a second run", inputs.sizes, place.device);
    outputs.assert_same_bits(&run(), &context);
    outputs
}
