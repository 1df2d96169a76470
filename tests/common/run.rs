//! Every operation, on any device, in buffers that show what was written where.

use super::{assert_same_bits, Inputs, Sizes};
use lora_kernels::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use lora_kernels::ops::{self, BackwardOutputs, Weights};
use lora_kernels::{
    Accumulation, DType, Device, Element, Result, Tensor, TensorView, TensorViewMut, Workspace,
};

/// An element type that cudarc can copy to a device.
pub trait DeviceElement: Element + DeviceRepr + PartialEq + std::fmt::Debug {}
impl<E: Element + DeviceRepr + PartialEq + std::fmt::Debug> DeviceElement for E {}

/// Which device buffers start at a multiple of 16 bytes; the others are off by one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Placement {
    Aligned,
    Odd,
    OddActivations,
    OddWeights,
}

impl Placement {
    pub const ALL: [Placement; 4] =
        [Self::Aligned, Self::Odd, Self::OddActivations, Self::OddWeights];

    fn is_odd(self, name: &str) -> bool {
        let weight = matches!(name, "w0" | "a" | "b" | "merged" | "merged in place");
        match self {
            Placement::Aligned => false,
            Placement::Odd => true,
            Placement::OddActivations => !weight,
            Placement::OddWeights => weight,
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

/// Elements of guard band on either side of a device buffer: with 8 more in front, a multiple
/// of 16 bytes but of no larger power of two.
pub(super) const BAND: usize = 64;

/// A NaN that no arithmetic makes: a band that is written changes, one that is read spoils sums.
pub(super) fn guard<E: Element>() -> E {
    let mut value = E::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut value);
    bytes.fill(0xa5);
    bytes[size_of::<E>() - 1] = 0x7f;
    value
}

/// Another NaN: what an output holds before it is written.
pub(super) fn poison<E: Element>() -> E {
    let mut value = E::zeroed();
    bytemuck::bytes_of_mut(&mut value).fill(0xff);
    value
}

/// A matrix on the host, or within guard bands on a CUDA device.
pub struct Buffer<E> {
    name: &'static str,
    shape: [usize; 2],
    memory: Memory<E>,
}

enum Memory<E> {
    Host(Vec<E>),
    Cuda { slice: CudaSlice<E>, before: usize, device: Device },
}

impl<E: DeviceElement> Buffer<E> {
    /// A buffer of poison.
    pub fn new(place: &Place, name: &'static str, shape: [usize; 2]) -> Self {
        let elements = shape[0] * shape[1];
        let memory = match place.device.stream() {
            None => Memory::Host(vec![poison(); elements]),
            Some(stream) => {
                let before = BAND + 8 + usize::from(place.placement.is_odd(name));
                let mut contents = vec![guard(); before + elements + BAND];
                contents[before..][..elements].fill(poison());
                let slice = stream.clone_htod(&contents).expect(name);
                Memory::Cuda { slice, before, device: place.device.clone() }
            }
        };
        Buffer { name, shape, memory }
    }

    pub(super) fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Overwrites the matrix, in the order of the device's stream.
    pub fn set(&mut self, values: &[E]) {
        assert_eq!(values.len(), self.elements(), "{}", self.name);
        if values.is_empty() {
            return;
        }
        match &mut self.memory {
            Memory::Host(to) => to.copy_from_slice(values),
            Memory::Cuda { slice, before, device } => {
                let mut to = slice.slice_mut(*before..*before + values.len());
                let stream = device.stream().expect("a CUDA device");
                stream.memcpy_htod(values, &mut to).expect(self.name);
            }
        }
    }

    pub fn set_poison(&mut self) {
        self.set(&vec![poison(); self.elements()]);
    }

    /// The matrix, after the work on the device's stream, and with the guard bands checked.
    pub fn get(&self) -> Vec<E> {
        match &self.memory {
            Memory::Host(values) => values.clone(),
            Memory::Cuda { slice, before, device } => {
                let stream = device.stream().expect("a CUDA device");
                let all = stream.clone_dtoh(slice).expect(self.name);
                device.synchronize().expect(self.name);
                let (front, rest) = all.split_at(*before);
                let (values, back) = rest.split_at(self.elements());
                assert_same_bits(&format!("before {}", self.name), front, &vec![guard(); *before]);
                assert_same_bits(&format!("after {}", self.name), back, &[guard(); BAND]);
                values.to_vec()
            }
        }
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        let Memory::Cuda { slice, before, device } = &self.memory else {
            panic!("{} is in host memory", self.name);
        };
        let (start, _record) = slice.device_ptr(device.stream().expect("a CUDA device"));
        start + (before * size_of::<E>()) as u64
    }

    pub fn view(&self) -> TensorView<'_> {
        match &self.memory {
            Memory::Host(values) => TensorView::from_host(values, self.shape),
            Memory::Cuda { slice, before, .. } => {
                TensorView::from_cuda(slice.slice(*before..*before + self.elements()), self.shape)
            }
        }
        .expect(self.name)
    }

    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        if let Memory::Cuda { device, .. } = &self.memory {
            // SAFETY: the memory is the buffer's own, which the view borrows for as long as it
            // lives, and is freed in the order of the same stream.
            unsafe { TensorViewMut::from_raw(device, self.address(), self.shape, E::DTYPE) }
        } else {
            let Memory::Host(values) = &mut self.memory else { unreachable!() };
            TensorViewMut::from_host(values, self.shape)
        }
        .expect(self.name)
    }
}

/// What `da_added` and `db_added` hold before a gradient is added.
pub(super) fn base_gradient(elements: usize) -> Vec<f32> {
    (0..elements).map(|i| 0.1 * (i % 7) as f32).collect()
}

/// The buffers of all operations.
pub struct Buffers<E> {
    place: Place,
    inputs: Inputs<E>,
    x: Buffer<E>,
    w0: Buffer<E>,
    a: Buffer<E>,
    b: Buffer<E>,
    s_in: Buffer<E>,
    dh: Buffer<E>,
    h: Buffer<E>,
    s: Buffer<E>,
    h_without_s: Buffer<E>,
    frozen: Buffer<E>,
    dx: Buffer<E>,
    da: Buffer<f32>,
    db: Buffer<f32>,
    da_added: Buffer<f32>,
    db_added: Buffer<f32>,
    merged: Buffer<E>,
    merged_in_place: Buffer<E>,
    workspace: Workspace,
    /// What of the workspace's scratch the plans ask for; after it comes a band.
    scratch: usize,
}

impl<E: DeviceElement> Buffers<E> {
    pub fn new(place: &Place, inputs: &Inputs<E>) -> Self {
        let Sizes { t, k, d, r } = inputs.sizes;
        let problem = inputs.problem();
        let device = &place.device;
        let plans = [ops::forward_plan(device, &problem), ops::backward_plan(device, &problem)];
        let mut workspace = Workspace::new(device, &plans).expect("a workspace");
        let scratch = plans.map(|plan| plan.scratch).into_iter().max().expect("two plans");
        workspace.scratch =
            Tensor::zeros(device, [scratch + BAND], DType::F32).expect("more scratch");
        let mut buffers = Buffers {
            place: place.clone(),
            inputs: inputs.clone(),
            x: Buffer::new(place, "x", [t, k]),
            w0: Buffer::new(place, "w0", [d, k]),
            a: Buffer::new(place, "a", [r, k]),
            b: Buffer::new(place, "b", [d, r]),
            s_in: Buffer::new(place, "s of backward", [t, r]),
            dh: Buffer::new(place, "dh", [t, d]),
            h: Buffer::new(place, "h", [t, d]),
            s: Buffer::new(place, "s", [t, r]),
            h_without_s: Buffer::new(place, "h without s", [t, d]),
            frozen: Buffer::new(place, "h of frozen", [t, d]),
            dx: Buffer::new(place, "dx", [t, k]),
            da: Buffer::new(place, "da", [r, k]),
            db: Buffer::new(place, "db", [d, r]),
            da_added: Buffer::new(place, "da added", [r, k]),
            db_added: Buffer::new(place, "db added", [d, r]),
            merged: Buffer::new(place, "merged", [d, k]),
            merged_in_place: Buffer::new(place, "merged in place", [d, k]),
            workspace,
            scratch,
        };
        buffers.load(inputs);
        buffers
    }

    /// Fills the inputs with others of the same sizes and scale, and poisons the outputs.
    pub fn load(&mut self, inputs: &Inputs<E>) {
        assert_eq!((inputs.sizes, inputs.scale), (self.inputs.sizes, self.inputs.scale));
        self.inputs = inputs.clone();
        self.x.set(&inputs.x);
        self.w0.set(&inputs.w0);
        self.a.set(&inputs.a);
        self.b.set(&inputs.b);
        self.s_in.set(&inputs.s);
        self.dh.set(&inputs.dh);
        let (h, s, alone) = (&mut self.h, &mut self.s, &mut self.h_without_s);
        for output in [h, s, alone, &mut self.frozen, &mut self.dx, &mut self.merged] {
            output.set_poison();
        }
        self.merged_in_place.set(&inputs.w0);
        for output in [&mut self.da, &mut self.db] {
            output.set_poison();
        }
        for output in [&mut self.da_added, &mut self.db_added] {
            output.set(&base_gradient(output.elements()));
        }
        let mut scratch = vec![poison::<f32>(); self.scratch];
        scratch.resize(self.scratch + BAND, guard());
        self.workspace.scratch.copy_from_slice(&scratch).expect("scratch");
    }

    /// Enqueues every operation, once each, the backward pass with dX and, adding up, without.
    pub fn enqueue(&mut self) -> Result<()> {
        let device = &self.place.device;
        let weights = Weights {
            w0: self.w0.view(),
            a: self.a.view(),
            b: self.b.view(),
            scale: self.inputs.scale,
        };
        let (h, s) = (self.h.view_mut(), self.s.view_mut());
        ops::forward(device, &weights, self.x.view(), h, s, &mut self.workspace)?;
        let h = self.h_without_s.view_mut();
        ops::forward(device, &weights, self.x.view(), h, None, &mut self.workspace)?;
        ops::frozen(device, &weights.w0, self.x.view(), self.frozen.view_mut())?;

        let out = BackwardOutputs {
            dx: Some(self.dx.view_mut()),
            da: self.da.view_mut(),
            db: self.db.view_mut(),
            accumulation: Accumulation::Overwrite,
        };
        let (dh, x, s) = (self.dh.view(), self.x.view(), self.s_in.view());
        ops::backward(device, &weights, dh, x, s, out, &mut self.workspace)?;
        let out = BackwardOutputs {
            dx: None,
            da: self.da_added.view_mut(),
            db: self.db_added.view_mut(),
            accumulation: Accumulation::Add,
        };
        let (dh, x, s) = (self.dh.view(), self.x.view(), self.s_in.view());
        ops::backward(device, &weights, dh, x, s, out, &mut self.workspace)?;

        ops::merge(device, &weights, self.merged.view_mut())?;
        let Weights { a, b, scale, .. } = &weights;
        ops::merge_in_place(device, self.merged_in_place.view_mut(), a, b, *scale)
    }

    /// What the operations made. Checks on the way that they left alone what is not theirs, that H is the
    /// same where S is not asked for, that `Add` gave the bits of an overwrite and an addition, and that
    /// both merges agree.
    pub fn outputs(&self) -> Outputs<E> {
        let unchanged = [
            (&self.x, &self.inputs.x),
            (&self.w0, &self.inputs.w0),
            (&self.a, &self.inputs.a),
            (&self.b, &self.inputs.b),
            (&self.s_in, &self.inputs.s),
            (&self.dh, &self.inputs.dh),
        ];
        for (buffer, values) in unchanged {
            assert_same_bits(buffer.name, &buffer.get(), values);
        }
        // The band alone: what the scratch holds afterwards is nobody's business.
        let scratch: Vec<f32> = self.workspace.scratch.to_vec().expect("scratch");
        assert_same_bits("after the scratch", &scratch[self.scratch..], &[guard(); BAND]);

        let (da, db) = (self.da.get(), self.db.get());
        for (gradient, added) in [(&da, &self.da_added), (&db, &self.db_added)] {
            let base = base_gradient(gradient.len());
            let sum: Vec<f32> = base.iter().zip(gradient).map(|(base, new)| base + new).collect();
            assert_same_bits(added.name, &added.get(), &sum);
        }
        let merged = self.merged.get();
        assert_same_bits(self.merged_in_place.name, &self.merged_in_place.get(), &merged);
        assert_same_bits(self.h_without_s.name, &self.h_without_s.get(), &self.h.get());
        let (h, s, frozen, dx) = (self.h.get(), self.s.get(), self.frozen.get(), self.dx.get());
        Outputs { h, s, frozen, dx, da, db, merged }
    }
}

/// What the operations made of one set of inputs.
pub struct Outputs<E> {
    pub h: Vec<E>,
    pub s: Vec<E>,
    pub frozen: Vec<E>,
    pub dx: Vec<E>,
    pub da: Vec<f32>,
    pub db: Vec<f32>,
    pub merged: Vec<E>,
}

impl<E: DeviceElement> Outputs<E> {
    pub fn assert_same_bits(&self, other: &Self, context: &str) {
        let name = |output: &str| format!("{context}: {output}");
        assert_same_bits(&name("h"), &self.h, &other.h);
        assert_same_bits(&name("s"), &self.s, &other.s);
        assert_same_bits(&name("h of frozen"), &self.frozen, &other.frozen);
        assert_same_bits(&name("dx"), &self.dx, &other.dx);
        assert_same_bits(&name("da"), &self.da, &other.da);
        assert_same_bits(&name("db"), &self.db, &other.db);
        assert_same_bits(&name("merged"), &self.merged, &other.merged);
    }

    /// As [`Outputs::assert_same_bits`], with the sign of zeros left free.
    pub fn assert_same_values(&self, other: &Self, context: &str) {
        use super::assert_same_values as same;
        let name = |output: &str| format!("{context}: {output}");
        same(&name("s"), &self.s, &other.s);
        same(&name("h of frozen"), &self.frozen, &other.frozen);
        same(&name("h"), &self.h, &other.h);
        same(&name("dx"), &self.dx, &other.dx);
        same(&name("da"), &self.da, &other.da);
        same(&name("db"), &self.db, &other.db);
        same(&name("merged"), &self.merged, &other.merged);
    }
}

/// What the CPU reference makes of the inputs.
pub fn on_cpu<E: DeviceElement>(inputs: &Inputs<E>) -> Outputs<E> {
    let place = Place { device: Device::cpu(), placement: Placement::Aligned };
    let mut buffers = Buffers::new(&place, inputs);
    buffers.enqueue().expect("the CPU reference");
    buffers.outputs()
}
