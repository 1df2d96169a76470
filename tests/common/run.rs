//! Every operation, on any device, in buffers that show what was written where.

use super::{Inputs, Sizes, assert_same_bits, assert_same_values};
use lora_kernels::cudarc::driver::{CudaSlice, CudaView, DevicePtr, DeviceRepr};
use lora_kernels::ops::{self, Backward, BaseForward, BaseInputGrad, Forward, GradientsMut};
use lora_kernels::ops::{Projection, Weights};
use lora_kernels::{
    Accumulation, DType, Device, Element, Result, Tensor, TensorView, TensorViewMut, Workspace,
    WorkspaceSize,
};
use std::ops::Range;

/// An element type that cudarc can copy to a device.
pub trait DeviceElement: Element + DeviceRepr + PartialEq + std::fmt::Debug {}
impl<E: Element + DeviceRepr + PartialEq + std::fmt::Debug> DeviceElement for E {}

/// How buffers are laid out: which start at a multiple of 16 bytes, where the others are off by one
/// element, and whether their rows lie in a wider matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Placement {
    Aligned,
    Odd,
    OddActivations,
    OddWeights,
    /// Columns of wider matrices, all but S, dA and dB, which must be dense. Rows of multiples of
    /// 16 bytes start at such.
    Strided,
}

impl Placement {
    pub const ALL: [Placement; 5] =
        [Self::Aligned, Self::Odd, Self::OddActivations, Self::OddWeights, Self::Strided];

    fn is_odd(self, name: &str) -> bool {
        let weight = matches!(name, "w0" | "a" | "b" | "merged" | "merged in place");
        match self {
            Placement::Aligned | Placement::Strided => false,
            Placement::Odd => true,
            Placement::OddActivations => !weight,
            Placement::OddWeights => weight,
        }
    }

    /// Elements on both sides of every row.
    fn gap(self, name: &str) -> usize {
        let is_dense = ["s", "da", "db"].iter().any(|dense| name.split(' ').next() == Some(dense));
        match self {
            Placement::Strided if !is_dense => 16,
            _ => 0,
        }
    }
}

/// A device, and how buffers are laid out on it.
#[derive(Clone)]
pub struct Place {
    pub device: Device,
    pub placement: Placement,
}

impl Place {
    pub fn aligned(device: &Device) -> Self {
        Place { device: device.clone(), placement: Placement::Aligned }
    }
}

/// Elements of guard band on either side of a buffer: with 8 more in front, a multiple of 16 bytes
/// but of no larger power of two.
const BAND: usize = 64;

/// A NaN that no arithmetic makes: a band that is written changes, one that is read spoils sums.
fn guard<E: Element>() -> E {
    let mut value = E::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut value);
    bytes.fill(0xa5);
    bytes[size_of::<E>() - 1] = 0x7f;
    value
}

/// Another NaN: what an output holds before it is written.
fn poison<E: Element>() -> E {
    let mut value = E::zeroed();
    bytemuck::bytes_of_mut(&mut value).fill(0xff);
    value
}

/// A matrix within guard bands, and with gaps of the same between its rows if it is strided.
pub struct Buffer<E> {
    name: &'static str,
    shape: [usize; 2],
    /// Elements in front of the first row with its gaps.
    before: usize,
    /// Elements in front of and behind every row.
    gap: usize,
    memory: Memory<E>,
}

enum Memory<E> {
    Host(Vec<E>),
    Cuda { slice: CudaSlice<E>, device: Device },
}

/// A buffer that is lent to operations as an input.
pub struct Lent<'a, E> {
    name: &'static str,
    shape: [usize; 2],
    gap: usize,
    memory: LentMemory<'a, E>,
}

enum LentMemory<'a, E> {
    Host(&'a [E]),
    Cuda(CudaView<'a, E>),
}

impl<E: DeviceElement> Lent<'_, E> {
    pub fn view(&self) -> TensorView<'_> {
        let ([rows, cols], gap) = (self.shape, self.gap);
        let whole = [rows, cols + 2 * gap];
        let view = match &self.memory {
            LentMemory::Host(values) => TensorView::from_host(values, whole),
            LentMemory::Cuda(slice) => TensorView::from_cuda(slice, whole),
        };
        view.and_then(|view| view.columns(gap..gap + cols)).expect(self.name)
    }
}

impl<E: DeviceElement> Buffer<E> {
    /// A buffer of poison.
    pub fn new(place: &Place, name: &'static str, shape: [usize; 2]) -> Self {
        let Place { device, placement } = place;
        let before = BAND + 8 + usize::from(placement.is_odd(name));
        let gap = placement.gap(name);
        let elements = before + shape[0] * (shape[1] + 2 * gap) + BAND;
        let contents = vec![guard(); elements];
        let memory = match device.stream() {
            None => Memory::Host(contents),
            Some(stream) => Memory::Cuda {
                slice: stream.clone_htod(&contents).expect(name),
                device: device.clone(),
            },
        };
        let mut buffer = Buffer { name, shape, before, gap, memory };
        buffer.set_poison();
        buffer
    }

    fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Elements from a row to the next.
    fn stride(&self) -> usize {
        self.shape[1] + 2 * self.gap
    }

    /// Where the rows are, with their gaps.
    fn rows(&self) -> Range<usize> {
        self.before..self.before + self.shape[0] * self.stride()
    }

    /// Overwrites the matrix, in the order of the device's stream.
    pub fn set(&mut self, values: &[E]) {
        assert_eq!(values.len(), self.elements(), "{}", self.name);
        if values.is_empty() {
            return;
        }
        let (rows, gap, cols) = (self.rows(), self.gap, self.shape[1]);
        let mut contents = vec![guard(); rows.len()];
        for (row, values) in contents.chunks_mut(self.stride()).zip(values.chunks(cols)) {
            row[gap..gap + cols].copy_from_slice(values);
        }
        match &mut self.memory {
            Memory::Host(to) => to[rows].copy_from_slice(&contents),
            Memory::Cuda { slice, device } => {
                let mut to = slice.slice_mut(rows);
                let stream = device.stream().expect("a CUDA device");
                stream.memcpy_htod(&contents, &mut to).expect(self.name);
            }
        }
    }

    pub fn set_poison(&mut self) {
        self.set(&vec![poison(); self.elements()]);
    }

    /// The matrix, after the work on the device's stream, and with the guard bands and gaps
    /// checked.
    pub fn get(&self) -> Vec<E> {
        let all = match &self.memory {
            Memory::Host(values) => values.clone(),
            Memory::Cuda { slice, device } => {
                let stream = device.stream().expect("a CUDA device");
                let all = stream.clone_dtoh(slice).expect(self.name);
                device.synchronize().expect(self.name);
                all
            }
        };
        let (front, rest) = all.split_at(self.before);
        let (rows, back) = rest.split_at(self.rows().len());
        assert_same_bits(&format!("before {}", self.name), front, &vec![guard(); self.before]);
        assert_same_bits(&format!("after {}", self.name), back, &[guard(); BAND]);
        let (gap, cols) = (self.gap, self.shape[1]);
        if gap == 0 {
            return rows.to_vec();
        }
        let mut values = Vec::with_capacity(self.elements());
        for row in rows.chunks(self.stride()) {
            let gaps = [&row[..gap], &row[gap + cols..]].concat();
            assert_same_bits(
                &format!("between rows of {}", self.name),
                &gaps,
                &vec![guard(); 2 * gap],
            );
            values.extend_from_slice(&row[gap..gap + cols]);
        }
        values
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        let Memory::Cuda { slice, device } = &self.memory else {
            panic!("{} is in host memory", self.name);
        };
        let (start, _record) = slice.device_ptr(device.stream().expect("a CUDA device"));
        start + ((self.before + self.gap) * size_of::<E>()) as u64
    }

    pub fn lend(&self) -> Lent<'_, E> {
        let memory = match &self.memory {
            Memory::Host(values) => LentMemory::Host(&values[self.rows()]),
            Memory::Cuda { slice, .. } => LentMemory::Cuda(slice.slice(self.rows())),
        };
        Lent { name: self.name, shape: self.shape, gap: self.gap, memory }
    }

    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        let ([rows, cols], gap, stride) = (self.shape, self.gap, self.stride());
        if let Memory::Cuda { device, .. } = &self.memory {
            // SAFETY: the memory is the buffer's own, which the view borrows for as long as it
            // lives, and is freed in the order of the same stream.
            unsafe { TensorViewMut::from_raw(device, self.address(), self.shape, stride, E::DTYPE) }
        } else {
            let place = self.rows();
            let Memory::Host(values) = &mut self.memory else { unreachable!() };
            TensorViewMut::from_host(&mut values[place], [rows, stride])
                .and_then(|view| view.columns(gap..gap + cols))
        }
        .expect(self.name)
    }
}

/// A workspace of just this size, with a guard band behind its scratch.
struct Guarded {
    workspace: Workspace,
    /// f32 elements in front of the band.
    scratch: usize,
}

impl Guarded {
    fn new(device: &Device, size: WorkspaceSize) -> Self {
        let mut workspace = Workspace::new(device, size).expect("a workspace");
        let scratch = workspace.scratch_mut().shape().elements();
        *workspace.scratch_mut() =
            Tensor::zeros(device, [scratch + BAND], DType::F32).expect("more scratch");
        Guarded { workspace, scratch }
    }

    fn set_poison(&mut self) {
        let mut scratch = vec![poison::<f32>(); self.scratch];
        scratch.resize(self.scratch + BAND, guard());
        self.workspace.scratch_mut().copy_from_slice(&scratch).expect("scratch");
    }

    /// The band alone: what the scratch holds afterwards is nobody's business.
    fn check(&mut self) {
        let scratch: Vec<f32> = self.workspace.scratch_mut().to_vec().expect("scratch");
        assert_same_bits("after the scratch", &scratch[self.scratch..], &[guard(); BAND]);
    }
}

/// Where the gradients of a matrix go: overwritten and added to, in f32 and in 16 bits.
struct Gradient<E> {
    new: Buffer<f32>,
    added: Buffer<f32>,
    /// `None` if the element type is f32.
    rounded: Option<[Buffer<E>; 2]>,
}

impl<E: DeviceElement> Gradient<E> {
    fn new(place: &Place, [new, added, rounded]: [&'static str; 3], shape: [usize; 2]) -> Self {
        let two = || [0; 2].map(|_| Buffer::new(place, rounded, shape));
        Gradient {
            new: Buffer::new(place, new, shape),
            added: Buffer::new(place, added, shape),
            rounded: (E::DTYPE != DType::F32).then(two),
        }
    }

    /// What the buffers hold that are added to.
    fn base<G: Element>(&self) -> Vec<G> {
        let base = |i: usize| G::from_f64((0.1 * (i % 7) as f32).into());
        (0..self.new.elements()).map(base).collect()
    }

    fn load(&mut self) {
        self.new.set_poison();
        self.added.set(&self.base::<f32>());
        let base = self.base::<E>();
        if let Some([new, added]) = &mut self.rounded {
            new.set_poison();
            added.set(&base);
        }
    }

    /// The f32 gradient. Checks that all others follow from it: `Add` gave the bits of an overwrite
    /// and an f32 addition, and those in 16 bits are these numbers, rounded.
    fn get(&self) -> Vec<f32> {
        let new = self.new.get();
        let base = self.base::<f32>();
        let sum: Vec<f32> = base.iter().zip(&new).map(|(base, new)| base + new).collect();
        assert_same_bits(self.added.name, &self.added.get(), &sum);
        if let Some([rounded, added]) = &self.rounded {
            let base = self.base::<E>();
            for (buffer, adds) in [(rounded, false), (added, true)] {
                let sum = |(base, &new): (&E, &f32)| match adds {
                    true => base.to_f64() as f32 + new,
                    false => new,
                };
                let sums = base.iter().zip(&new).map(sum);
                let want: Vec<E> = sums.map(|sum| E::from_f64(sum.into())).collect();
                assert_same_bits(&format!("{}, added: {adds}", buffer.name), &buffer.get(), &want);
            }
        }
        new
    }
}

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
        // Two, so that each operation has a band close behind what it asks for.
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
            made: inputs.sizes.of().iter().map(made).collect(),
            workspace,
            rounded_workspace: Guarded::new(device, rounded_size),
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
        let weights = Weights::new(a, &projections);
        let (made, workspace) = (&mut self.made, &mut self.workspace.workspace);

        let mut h: Vec<_> = made.iter_mut().map(|made| made.h.view_mut()).collect();
        self.forward.run(&weights, x, &mut h, self.s.view_mut(), workspace)?;
        let mut h: Vec<_> = made.iter_mut().map(|made| made.h_without_s.view_mut()).collect();
        self.forward.run(&weights, x, &mut h, None, workspace)?;
        for ((made, projection), &dh) in made.iter_mut().zip(&projections).zip(&dh) {
            made.base_forward.run(projection.w0, x, made.base_h.view_mut())?;
            made.base_input_grad.run(projection.w0, dh, made.base_dx.view_mut())?;
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

    /// As [`Outputs::assert_same_bits`], with the sign of zeros left free.
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

/// What the CPU reference makes of the inputs.
pub fn on_cpu<E: DeviceElement>(inputs: &Inputs<E>) -> Outputs<E> {
    let mut buffers = Buffers::new(&Place::aligned(&Device::cpu()), inputs);
    buffers.enqueue().expect("the CPU reference");
    buffers.outputs()
}
