//! Every operation, on any device.

use super::buffer::{Buffer, DeviceElement, Guarded, Place};
use super::gradient::Gradient;
use super::{Inputs, Sizes, assert_same_bits};
use lora_kernels::ops::{self, Backward, BaseForward, BaseInputGrad, Forward, GradientsMut};
use lora_kernels::ops::{Projection, Weights};
use lora_kernels::{Accumulation, DType, Result, WorkspaceSize};

/// The operations, and the buffers of all.
pub struct Buffers<E> {
    place: Place,
    inputs: Inputs<E>,
    forward: Forward,
    backward: Backward,
    /// With gradients in 16 bits; `None` if the element type is f32.
    rounded_backward: Option<Backward>,
    x: Buffer<E>,
    a: Buffer<E>,
    s_in: Buffer<E>,
    s: Buffer<E>,
    dx: Buffer<E>,
    rounded_dx: Buffer<E>,
    da: Gradient<E>,
    /// Of every projection.
    of: Vec<BuffersOf<E>>,
    made: Vec<MadeOf<E>>,
    workspace: Guarded,
    rounded_workspace: Guarded,
    base_workspace: Guarded,
}

/// The inputs of a projection.
struct BuffersOf<E> {
    w0: Buffer<E>,
    b: Buffer<E>,
    dh: Buffer<E>,
}

/// The operations and outputs of a projection.
struct MadeOf<E> {
    base_forward: BaseForward,
    base_input_grad: BaseInputGrad,
    h: Buffer<E>,
    h_without_s: Buffer<E>,
    base_h: Buffer<E>,
    base_dx: Buffer<E>,
    db: Gradient<E>,
    merged: Buffer<E>,
    merged_in_place: Buffer<E>,
}

impl<E: DeviceElement> Buffers<E> {
    pub fn new(place: &Place, inputs: &Inputs<E>) -> Self {
        let (Sizes { t, k, .. }, rank) = (inputs.sizes, inputs.sizes.rank());
        let (device, problem) = (&place.device, inputs.problem());
        let forward = Forward::new(device, &problem).expect("a forward pass");
        let backward = Backward::new(device, &problem).expect("a backward pass");
        let rounded_backward = (E::DTYPE != DType::F32)
            .then(|| backward.with_gradients(E::DTYPE).expect("gradients in 16 bits"));
        // Three, so that operations have a band close behind what they ask for.
        let workspace = Guarded::new(device, forward.workspace().max(backward.workspace()));
        let rounded_size =
            rounded_backward.as_ref().map_or_else(Default::default, |op| op.workspace());
        let of = |&(d, r): &(usize, usize)| BuffersOf {
            w0: Buffer::new(place, "w0", [d, k]),
            b: Buffer::new(place, "b", [d, r]),
            dh: Buffer::new(place, "dh", [t, d]),
        };
        let base_forward =
            |d| BaseForward::new(device, t, [d, k], E::DTYPE).expect("a forward pass of W0");
        let base_input_grad =
            |d| BaseInputGrad::new(device, t, [d, k], E::DTYPE).expect("a backward pass of W0");
        let made = |&(d, r): &(usize, usize)| MadeOf {
            base_forward: base_forward(d),
            base_input_grad: base_input_grad(d),
            h: Buffer::new(place, "h", [t, d]),
            h_without_s: Buffer::new(place, "h without s", [t, d]),
            base_h: Buffer::new(place, "h of base", [t, d]),
            base_dx: Buffer::new(place, "dx of base", [t, k]),
            db: Gradient::new(place, ["db", "db added", "db in 16 bits"], [d, r]),
            merged: Buffer::new(place, "merged", [d, k]),
            merged_in_place: Buffer::new(place, "merged in place", [d, k]),
        };
        let made: Vec<_> = inputs.sizes.of().iter().map(made).collect();
        let base_sizes = made
            .iter()
            .flat_map(|made| [made.base_forward.workspace(), made.base_input_grad.workspace()]);
        let base_size = base_sizes.fold(WorkspaceSize::default(), WorkspaceSize::max);
        let mut buffers = Buffers {
            place: place.clone(),
            inputs: inputs.clone(),
            forward,
            backward,
            rounded_backward,
            x: Buffer::new(place, "x", [t, k]),
            a: Buffer::new(place, "a", [rank, k]),
            s_in: Buffer::new(place, "s of backward", [t, rank]),
            s: Buffer::new(place, "s", [t, rank]),
            dx: Buffer::new(place, "dx", [t, k]),
            rounded_dx: Buffer::new(place, "dx beside 16 bits", [t, k]),
            da: Gradient::new(place, ["da", "da added", "da in 16 bits"], [rank, k]),
            of: inputs.sizes.of().iter().map(of).collect(),
            made,
            workspace,
            rounded_workspace: Guarded::new(device, rounded_size),
            base_workspace: Guarded::new(device, base_size),
        };
        buffers.load(inputs);
        buffers
    }

    /// Fills the inputs with others of the same sizes, and poisons the outputs.
    pub fn load(&mut self, inputs: &Inputs<E>) {
        assert_eq!(inputs.sizes, self.inputs.sizes);
        self.inputs = inputs.clone();
        self.x.set(&inputs.x);
        self.a.set(&inputs.a);
        self.s_in.set(&inputs.s);
        for output in [&mut self.s, &mut self.dx, &mut self.rounded_dx] {
            output.set_poison();
        }
        self.da.load();
        for ((of, made), inputs) in self.of.iter_mut().zip(&mut self.made).zip(&inputs.of) {
            of.w0.set(&inputs.w0);
            of.b.set(&inputs.b);
            of.dh.set(&inputs.dh);
            let (h, alone) = (&mut made.h, &mut made.h_without_s);
            for output in [h, alone, &mut made.base_h, &mut made.base_dx, &mut made.merged] {
                output.set_poison();
            }
            made.merged_in_place.set(&inputs.w0);
            made.db.load();
        }
        self.workspace.set_poison();
        self.rounded_workspace.set_poison();
        self.base_workspace.set_poison();
    }

    /// Enqueues every operation: the forward pass with S and without, the base passes, the backward
    /// pass with dX and, adding up, without, both in f32 and in 16 bits, and both merges.
    pub fn enqueue(&mut self) -> Result<()> {
        let (device, sizes) = (&self.place.device, self.inputs.sizes);
        let (x, a, s_in) = (self.x.lend(), self.a.lend(), self.s_in.lend());
        let (x, a, s_in) = (x.view(), a.view(), s_in.view());
        let of = self.of.iter().map(|of| [&of.w0, &of.b, &of.dh].map(Buffer::lend));
        let of: Vec<_> = of.collect();
        let projections: Vec<_> = of
            .iter()
            .zip(&self.inputs.of)
            .map(|([w0, b, _], inputs)| Projection::new(w0.view(), b.view(), inputs.scale))
            .collect();
        let dh: Vec<_> = of.iter().map(|[_, _, dh]| dh.view()).collect();
        let mut weights = Weights::new(a, &projections);
        weights.dropout = self.inputs.dropout;
        let (made, workspace) = (&mut self.made, &mut self.workspace.workspace);

        let mut h: Vec<_> = made.iter_mut().map(|made| made.h.view_mut()).collect();
        self.forward.run(&weights, x, &mut h, self.s.view_mut(), workspace)?;
        let mut h: Vec<_> = made.iter_mut().map(|made| made.h_without_s.view_mut()).collect();
        self.forward.run(&weights, x, &mut h, None, workspace)?;
        for ((made, projection), &dh) in made.iter_mut().zip(&projections).zip(&dh) {
            let workspace = &mut self.base_workspace.workspace;
            made.base_forward.run(projection.w0, x, made.base_h.view_mut(), workspace)?;
            made.base_input_grad.run(projection.w0, dh, made.base_dx.view_mut(), workspace)?;
        }

        let mut db: Vec<_> = made.iter_mut().map(|made| made.db.new.view_mut()).collect();
        let accumulation = Accumulation::Overwrite;
        let out = GradientsMut { da: self.da.new.view_mut(), db: &mut db, accumulation };
        self.backward.run(&weights, &dh, x, s_in, self.dx.view_mut(), out, workspace)?;
        let mut db: Vec<_> = made.iter_mut().map(|made| made.db.added.view_mut()).collect();
        let accumulation = Accumulation::Add;
        let out = GradientsMut { da: self.da.added.view_mut(), db: &mut db, accumulation };
        self.backward.run_params(&weights, &dh, x, s_in, out, workspace)?;

        if let (Some(backward), Some([new, added])) = (&self.rounded_backward, &mut self.da.rounded)
        {
            let workspace = &mut self.rounded_workspace.workspace;
            let of_db = made.iter_mut().flat_map(|made| &mut made.db.rounded);
            let (mut new_db, mut added_db): (Vec<_>, Vec<_>) =
                of_db.map(|[new, added]| (new.view_mut(), added.view_mut())).unzip();
            let accumulation = Accumulation::Overwrite;
            let out = GradientsMut { da: new.view_mut(), db: &mut new_db, accumulation };
            backward.run_params(&weights, &dh, x, s_in, out, workspace)?;
            let (dx, accumulation) = (self.rounded_dx.view_mut(), Accumulation::Add);
            let out = GradientsMut { da: added.view_mut(), db: &mut added_db, accumulation };
            backward.run(&weights, &dh, x, s_in, dx, out, workspace)?;
        }

        for (i, (made, projection)) in made.iter_mut().zip(&projections).enumerate() {
            let start = sizes.start(i);
            let a = a.rows(start..start + sizes.of()[i].1)?;
            let &Projection { w0, b, scale, .. } = projection;
            ops::merge(device, w0, a, b, scale, made.merged.view_mut())?;
            ops::merge_in_place(device, made.merged_in_place.view_mut(), a, b, scale)?;
        }
        Ok(())
    }

    /// What the operations made. Checks on the way that they left alone what is not theirs, that H
    /// is the same where S is not asked for, that gradients follow from one another ([`Gradient`]),
    /// that dX does not depend on their element type, and that both merges agree.
    pub fn outputs(&mut self) -> Outputs<E> {
        let inputs = &self.inputs;
        let mut unchanged =
            vec![(&self.x, &inputs.x), (&self.a, &inputs.a), (&self.s_in, &inputs.s)];
        for (of, inputs) in self.of.iter().zip(&inputs.of) {
            unchanged.extend([(&of.w0, &inputs.w0), (&of.b, &inputs.b), (&of.dh, &inputs.dh)]);
        }
        for (buffer, values) in unchanged {
            assert_same_bits(buffer.name, &buffer.get(), values);
        }
        self.workspace.check();
        self.rounded_workspace.check();
        self.base_workspace.check();

        let (s, dx, da) = (self.s.get(), self.dx.get(), self.da.get());
        if self.rounded_backward.is_some() {
            assert_same_bits(self.rounded_dx.name, &self.rounded_dx.get(), &dx);
        }
        let (mut h, mut base_h, mut base_dx) = (Vec::new(), Vec::new(), Vec::new());
        let (mut db, mut merged) = (Vec::new(), Vec::new());
        for (i, made) in self.made.iter().enumerate() {
            let name = |buffer: &Buffer<E>| format!("{} of projection {i}", buffer.name);
            h.push(made.h.get());
            merged.push(made.merged.get());
            assert_same_bits(&name(&made.h_without_s), &made.h_without_s.get(), &h[i]);
            let in_place = made.merged_in_place.get();
            assert_same_bits(&name(&made.merged_in_place), &in_place, &merged[i]);
            base_h.push(made.base_h.get());
            base_dx.push(made.base_dx.get());
            db.push(made.db.get());
        }
        Outputs { h, s, base_h, dx, base_dx, da, db, merged }
    }
}

/// What the operations made of one set of inputs; lists have one for every projection.
pub struct Outputs<E> {
    pub h: Vec<Vec<E>>,
    pub s: Vec<E>,
    /// H = X W0ᵀ.
    pub base_h: Vec<Vec<E>>,
    pub dx: Vec<E>,
    /// dX = dH W0.
    pub base_dx: Vec<Vec<E>>,
    pub da: Vec<f32>,
    pub db: Vec<Vec<f32>>,
    pub merged: Vec<Vec<E>>,
}

impl<E: DeviceElement> Outputs<E> {
    pub fn assert_same_bits(&self, other: &Self, context: &str) {
        self.compare(other, context, assert_same_bits::<E>, assert_same_bits::<f32>);
    }

    /// Compares every output.
    pub fn compare(
        &self,
        other: &Self,
        context: &str,
        same: impl Fn(&str, &[E], &[E]),
        same_f32: impl Fn(&str, &[f32], &[f32]),
    ) {
        assert_eq!(self.h.len(), other.h.len(), "{context}: projections");
        same(&format!("{context}: s"), &self.s, &other.s);
        for i in 0..self.h.len() {
            let name = |output: &str| format!("{context}: {output} of projection {i}");
            same(&name("h of base"), &self.base_h[i], &other.base_h[i]);
            same(&name("h"), &self.h[i], &other.h[i]);
            same(&name("dx of base"), &self.base_dx[i], &other.base_dx[i]);
            same_f32(&name("db"), &self.db[i], &other.db[i]);
            same(&name("merged"), &self.merged[i], &other.merged[i]);
        }
        same(&format!("{context}: dx"), &self.dx, &other.dx);
        same_f32(&format!("{context}: da"), &self.da, &other.da);
    }
}
