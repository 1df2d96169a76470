//! Buffers that show what was written where.

use super::assert_same_bits;
use lora_kernels::WorkspaceSize;
use lora_kernels::cudarc::driver::{CudaSlice, CudaView, DevicePtr, DeviceRepr};
use lora_kernels::{DType, Device, Element, Tensor, TensorView, TensorViewMut, Workspace};
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
    OddW0,
    /// Columns of wider matrices, all but S, dA and dB, which must be dense. Rows of multiples of
    /// 16 bytes start at such.
    Strided,
}

impl Placement {
    pub const ALL: [Placement; 6] = [
        Self::Aligned,
        Self::Odd,
        Self::OddActivations,
        Self::OddWeights,
        Self::OddW0,
        Self::Strided,
    ];

    fn is_odd(self, name: &str) -> bool {
        let weight = matches!(name, "w0" | "a" | "b" | "merged" | "merged in place");
        match self {
            Placement::Aligned | Placement::Strided => false,
            Placement::Odd => true,
            Placement::OddActivations => !weight,
            Placement::OddWeights => weight,
            Placement::OddW0 => name == "w0",
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
    pub name: &'static str,
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

    pub fn elements(&self) -> usize {
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
pub struct Guarded {
    pub workspace: Workspace,
    /// f32 elements in front of the band.
    scratch: usize,
}

impl Guarded {
    pub fn new(device: &Device, size: WorkspaceSize) -> Self {
        let mut workspace = Workspace::new(device, size).expect("a workspace");
        let scratch = workspace.scratch_mut().shape().elements();
        *workspace.scratch_mut() =
            Tensor::zeros(device, [scratch + BAND], DType::F32).expect("more scratch");
        Guarded { workspace, scratch }
    }

    pub fn set_poison(&mut self) {
        let mut scratch = vec![poison::<f32>(); self.scratch];
        scratch.resize(self.scratch + BAND, guard());
        self.workspace.scratch_mut().copy_from_slice(&scratch).expect("scratch");
    }

    /// The band alone: what the scratch holds afterwards is nobody's business.
    pub fn check(&mut self) {
        let scratch: Vec<f32> = self.workspace.scratch_mut().to_vec().expect("scratch");
        assert_same_bits("after the scratch", &scratch[self.scratch..], &[guard(); BAND]);
    }
}
