//! The launches of kernels/hopper_linear.cuh and kernels/hopper_grads.cu.

use super::kernels::HopperLinear;
use super::launch::{Gradients, LaunchMode, Layer, Layers, Linear};
use super::params::Operand;
use super::tensor_map::TensorMap;
use super::Cuda;
use crate::plan::hopper::{Projection, Schedule, Sizes, GROUP, STEP_K};
use crate::plan::hopper_grads::{self, rank_tile, Makes};
use crate::plan::MAX_PROJECTIONS;
use crate::Result;
use cudarc::driver::{sys, DeviceRepr};

/// As in kernels/hopper_parts.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Parts {
    start: [i32; MAX_PROJECTIONS],
    rank_start: [i32; MAX_PROJECTIONS],
    rank: [i32; MAX_PROJECTIONS],
    scale: [f32; MAX_PROJECTIONS],
}

impl Parts {
    const NONE: Parts = Parts {
        start: [i32::MAX; MAX_PROJECTIONS],
        rank_start: [i32::MAX; MAX_PROJECTIONS],
        rank: [0; MAX_PROJECTIONS],
        scale: [0.0; MAX_PROJECTIONS],
    };
}

/// As in kernels/hopper_tiles.cuh.
#[repr(C)]
struct HopperProduct {
    s: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    partials: sys::CUdeviceptr,
    m: i32,
    n: i32,
    k: i32,
    r: i32,
    slices: i32,
    slice_cols: i32,
    group: i32,
    makers: i32,
    whole: i32,
    projectors: i32,
    streamers: i32,
    parts: Parts,
}

/// As in kernels/hopper_tiles.cuh: an output in boxes of 64, 32 and 16 columns.
type OutBoxes = [TensorMap; 3];

/// As in kernels/hopper_tiles.cuh, of the forward.
#[repr(C)]
struct ForwardParams {
    product: HopperProduct,
    lhs: TensorMap,
    down: TensorMap,
    lhs_ext: TensorMap,
    of: [ForwardLayer; MAX_PROJECTIONS],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ForwardLayer {
    rhs: TensorMap,
    rhs_ext: TensorMap,
    out: OutBoxes,
}

/// As in kernels/hopper_tiles.cuh, of the input gradient.
#[repr(C)]
struct InputGradParams {
    product: HopperProduct,
    lhs_ext: TensorMap,
    rhs_ext: TensorMap,
    out: OutBoxes,
    of: [InputGradLayer; MAX_PROJECTIONS],
    grads: HopperGradsParams,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct InputGradLayer {
    lhs: TensorMap,
    rhs: TensorMap,
    down: TensorMap,
}

/// As in kernels/hopper_grads.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct HopperGradsParams {
    dh: [TensorMap; MAX_PROJECTIONS],
    b: [TensorMap; MAX_PROJECTIONS],
    x: TensorMap,
    s: TensorMap,
    ds: TensorMap,
    ds_out: sys::CUdeviceptr,
    flags: sys::CUdeviceptr,
    db: [sys::CUdeviceptr; MAX_PROJECTIONS],
    da: sys::CUdeviceptr,
    d: [i32; MAX_PROJECTIONS],
    t: i32,
    k: i32,
    r: i32,
    outputs: i32,
    projectors: i32,
    ds_parts: i32,
    accumulate: i32,
    parts: Parts,
}

impl HopperGradsParams {
    /// For a launch that makes neither.
    pub(super) const NONE: HopperGradsParams = HopperGradsParams {
        dh: [TensorMap::NONE; MAX_PROJECTIONS],
        b: [TensorMap::NONE; MAX_PROJECTIONS],
        x: TensorMap::NONE,
        s: TensorMap::NONE,
        ds: TensorMap::NONE,
        ds_out: 0,
        flags: 0,
        db: [0; MAX_PROJECTIONS],
        da: 0,
        d: [0; MAX_PROJECTIONS],
        t: 0,
        k: 0,
        r: 0,
        outputs: 0,
        projectors: 0,
        ds_parts: 0,
        accumulate: 0,
        parts: Parts::NONE,
    };
}

// The same sizes are asserted in the kernels.
const _: () = {
    assert!(size_of::<HopperProduct>() == 136);
    assert!(size_of::<ForwardParams>() == 3136);
    assert!(size_of::<InputGradParams>() == 3968);
    assert!(size_of::<HopperGradsParams>() == 1600);
};

// SAFETY: plain integers, floats, descriptors and device addresses, laid out as C lays them out.
unsafe impl DeviceRepr for ForwardParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for InputGradParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for HopperGradsParams {}

/// Where blocks tell each other what they have made: memory of the sizes that the schedule asks for.
#[derive(Clone, Copy)]
pub(super) struct Handover {
    /// Zeros.
    pub(super) flags: sys::CUdeviceptr,
    pub(super) partials: sys::CUdeviceptr,
}

impl Handover {
    /// For a schedule that needs none.
    pub(super) const NONE: Handover = Handover { flags: 0, partials: 0 };
}

impl Layers<'_> {
    /// The sizes of dX.
    fn input_grad(&self) -> Sizes {
        let of_each = self.of.iter().map(|layer| (layer.d, layer.r));
        Sizes::of_input_grad(self.t, self.k, of_each)
    }

    /// Where layers begin, if the outputs of each are counted in so many at a time, and where the last
    /// one ends.
    fn parts(&self, unit: usize) -> (Parts, i32) {
        let mut parts = Parts::NONE;
        let (mut outputs, mut end, mut ranks) = (0, 0, 0);
        for (i, layer) in self.of.iter().enumerate() {
            (parts.start[i], parts.rank_start[i]) = (outputs, ranks);
            (parts.rank[i], parts.scale[i]) = (layer.r as i32, layer.scale);
            end = outputs + layer.d as i32;
            outputs += layer.d.next_multiple_of(unit) as i32;
            ranks += layer.r as i32;
        }
        (parts, end)
    }

    /// What a descriptor is made of, for every layer.
    fn each<T: Copy>(
        &self,
        none: T,
        of: impl Fn(&Layer) -> Result<T>,
    ) -> Result<[T; MAX_PROJECTIONS]> {
        let mut all = [none; MAX_PROJECTIONS];
        for (one, layer) in all.iter_mut().zip(self.of) {
            *one = of(layer)?;
        }
        Ok(all)
    }

    /// Boxes of a matrix of so many rows and columns.
    fn boxes(&self, of: Operand, size: [usize; 2], box_size: [u32; 2]) -> Result<TensorMap> {
        TensorMap::new(of, size, self.dtype, box_size)
    }

    /// Rows of T and columns of S that kernels/hopper_grads.cu loads at a time.
    fn grads_box(&self) -> [u32; 2] {
        [64, rank_tile(self.rank()).min(64) as u32]
    }

    /// What dA and dB of a layer take in a launch for few tokens, which makes dS and knows who waits for it.
    pub(super) fn grads_beside(&self, gradients: &Gradients) -> Result<HopperGradsParams> {
        let [rows, ranks] = hopper_grads::box_beside(self.t, self.rank());
        self.grads(gradients, 0, [rows, ranks].map(|size| size as u32))
    }

    /// What dA and dB of these layers take, and dS, if others need not be waited for, with T in boxes of so
    /// many rows, and S of so many columns.
    fn grads(
        &self,
        gradients: &Gradients,
        flags: sys::CUdeviceptr,
        [rows, rank_cols]: [u32; 2],
    ) -> Result<HopperGradsParams> {
        let &Layers { t, k, s: ds, .. } = self;
        let &Gradients { x, s, da, db, accumulate } = gradients;
        let r = self.rank();
        let (parts, outputs) = self.parts(STEP_K);
        let mut d = [0; MAX_PROJECTIONS];
        for (d, layer) in d.iter_mut().zip(self.of) {
            *d = layer.d as i32;
        }
        let none = TensorMap::NONE;
        Ok(HopperGradsParams {
            dh: self.each(none, |layer| self.boxes(layer.h, [t, layer.d], [rows, 64]))?,
            b: self.each(none, |layer| self.boxes(layer.b, [layer.d, layer.r], [64, 64]))?,
            x: self.boxes(x, [t, k], [rows, 64])?,
            s: self.boxes(s, [t, r], [rows, rank_cols])?,
            ds: self.boxes(ds, [t, r], [rows, rank_cols])?,
            ds_out: ds.data,
            flags,
            db,
            da,
            d,
            t: t as i32,
            k: k as i32,
            r: r as i32,
            outputs,
            projectors: 0,
            ds_parts: 0,
            accumulate: accumulate.into(),
            parts,
        })
    }

    fn out_boxes(&self, of: Operand, cols: usize) -> Result<OutBoxes> {
        let boxes = |box_cols| self.boxes(of, [self.t, cols], [64, box_cols]);
        Ok([boxes(64)?, boxes(32)?, boxes(16)?])
    }
}

impl Cuda {
    /// H of every layer. Unless the projection comes before, it makes S too.
    pub(super) fn hopper_forward(
        &self,
        layers: &Layers<'_>,
        schedule: &Schedule,
        handover: Handover,
    ) -> Result<()> {
        let &Layers { t, k, x, a, s, .. } = layers;
        let (r, tile_n) = (layers.rank(), schedule.tile_n);
        let (parts, n) = layers.parts(tile_n);
        // A pair's two blocks load half of the rows of W0 and B each.
        let half = tile_n as u32 / 2;
        let lhs = layers.boxes(x, [t, k], [128, 64])?;
        let down_rows = match schedule.projection {
            Projection::Before => None,
            Projection::Within { slice, .. } => Some(slice as u32),
            Projection::Beside { .. } => Some(rank_tile(r) as u32),
        };
        let none = ForwardLayer {
            rhs: TensorMap::NONE,
            rhs_ext: TensorMap::NONE,
            out: [TensorMap::NONE; 3],
        };
        let params = ForwardParams {
            product: self.product(layers, [n, k as i32], parts, schedule, handover),
            lhs,
            // Never read if S is not made here, or r = 0.
            down: down_rows.map_or(Ok(lhs), |rows| layers.boxes(a, [r, k], [rows, 64]))?,
            lhs_ext: if r > 0 { layers.boxes(s, [t, r], [128, 64])? } else { lhs },
            of: layers.each(none, |layer| {
                let &Layer { d, r, w0, b, h, .. } = layer;
                let rhs = layers.boxes(w0, [d, k], [half, 64])?;
                let rhs_ext = if r > 0 { layers.boxes(b, [d, r], [half, 64])? } else { rhs };
                Ok(ForwardLayer { rhs, rhs_ext, out: layers.out_boxes(h, d)? })
            })?,
        };
        self.hopper_product(Linear::Forward, layers, schedule, &params)
    }

    /// dX if `wants_dx`, and dA and dB. dS is made here.
    pub(super) fn hopper_backward(
        &self,
        layers: &Layers<'_>,
        wants_dx: bool,
        gradients: &Gradients,
        schedule: &Schedule,
        handover: Handover,
    ) -> Result<()> {
        let r = layers.rank();
        let grads = layers.grads(gradients, handover.flags, layers.grads_box())?;
        if !wants_dx {
            let ds_parts = r.div_ceil(rank_tile(r)) as i32;
            let grads = HopperGradsParams { ds_parts, ..grads };
            return self.hopper_grads(layers, Makes::All, grads);
        }
        if schedule.projection == Projection::Before {
            self.hopper_grads(layers, Makes::Ds, HopperGradsParams { da: 0, ..grads })?;
        }
        // Not looked at if no block works on gradients.
        let beside = HopperGradsParams { ds_parts: schedule.slices(r) as i32, ..grads };
        self.hopper_input_grad(layers, schedule, handover, beside)?;
        if schedule.streamers == 0 {
            self.hopper_grads(layers, Makes::DaDb, grads)?;
        }
        Ok(())
    }

    /// dA and dB, with dS from a launch before, the last one in the stream.
    pub(super) fn hopper_da_db(&self, layers: &Layers<'_>, gradients: &Gradients) -> Result<()> {
        self.hopper_grads(layers, Makes::DaDb, layers.grads(gradients, 0, layers.grads_box())?)
    }

    /// dX, and dS unless it comes before, with the gradients that some blocks make meanwhile.
    fn hopper_input_grad(
        &self,
        layers: &Layers<'_>,
        schedule: &Schedule,
        handover: Handover,
        grads: HopperGradsParams,
    ) -> Result<()> {
        let &Layers { t, k, x: dx, a, s: ds, .. } = layers;
        let r = layers.rank();
        let none =
            InputGradLayer { lhs: TensorMap::NONE, rhs: TensorMap::NONE, down: TensorMap::NONE };
        // What is read MN-major, in boxes of 64 columns, which is what the swizzle allows, and half of a
        // step's rows for each block of a pair.
        let half = [STEP_K as u32 / 2, 64];
        let params = InputGradParams {
            product: self.product(
                layers,
                [k as i32, grads.outputs],
                grads.parts,
                schedule,
                handover,
            ),
            lhs_ext: layers.boxes(ds, [t, r], [128, 64])?,
            rhs_ext: layers.boxes(a, [r, k], half)?,
            out: layers.out_boxes(dx, k)?,
            of: layers.each(none, |layer| {
                let &Layer { d, r, w0, b, h: dh, .. } = layer;
                Ok(InputGradLayer {
                    lhs: layers.boxes(dh, [t, d], [128, 64])?,
                    rhs: layers.boxes(w0, [d, k], half)?,
                    down: layers.boxes(b, [d, r], half)?,
                })
            })?,
            grads,
        };
        self.hopper_product(Linear::InputGrad, layers, schedule, &params)
    }

    /// A launch of kernels/hopper_grads.cu.
    fn hopper_grads(
        &self,
        layers: &Layers<'_>,
        makes: Makes,
        params: HopperGradsParams,
    ) -> Result<()> {
        let sms = 2 * self.profile().pairs;
        let schedule = hopper_grads::Schedule::new(&layers.input_grad(), makes, sms);
        let mut kernels = self.kernels.of(layers.dtype).hopper_grads.iter();
        let kernel = kernels.find(|(tile, _)| *tile == rank_tile(layers.rank()));
        let (_, kernel) = kernel.expect("there is a kernel for every tile of the rank");
        let params = HopperGradsParams { projectors: schedule.projectors as i32, ..params };
        let (cooperative, after) = (makes == Makes::All, makes == Makes::DaDb);
        let mode = LaunchMode { overlap: self.kernels.overlap && after, cooperative };
        self.launch_with(kernel, kernel.config([schedule.blocks, 1])?, &params, mode)
    }

    /// What both forms of the product have, for an output of n columns over k.
    fn product(
        &self,
        layers: &Layers<'_>,
        [n, k]: [i32; 2],
        parts: Parts,
        schedule: &Schedule,
        handover: Handover,
    ) -> HopperProduct {
        let (slice_cols, makers) = match schedule.projection {
            Projection::Before | Projection::Beside { .. } => (0, 0),
            Projection::Within { slice_cols, makers, .. } => (slice_cols, makers),
        };
        let r = layers.rank();
        HopperProduct {
            s: layers.s.data,
            flags: handover.flags,
            partials: handover.partials,
            m: layers.t as i32,
            n,
            k,
            r: r as i32,
            slices: schedule.slices(r) as i32,
            slice_cols: slice_cols as i32,
            group: GROUP as i32,
            makers: makers as i32,
            whole: schedule.whole as i32,
            projectors: schedule.projectors() as i32,
            streamers: schedule.streamers as i32,
            parts,
        }
    }

    /// A launch of kernels/hopper_linear.cuh.
    fn hopper_product<P: DeviceRepr>(
        &self,
        linear: Linear,
        layers: &Layers<'_>,
        schedule: &Schedule,
        params: &P,
    ) -> Result<()> {
        let (shared, blocks) = (layers.of.len() > 1, schedule.blocks());
        let (tile_n, slice) = (schedule.tile_n, schedule.slice());
        let wanted = HopperLinear { linear, shared, tile_n, slice };
        let mut all = self.kernels.of(layers.dtype).hopper_linear.iter();
        let kernel = all.find(|(of, _)| *of == wanted);
        let (_, kernel) = kernel.expect("there is a kernel for every schedule");
        let cooperative = schedule.is_cooperative();
        // Where there is room beside this launch, early blocks of the next would take it from others, and
        // at 2048×4096×1024 that one took 9 % longer than without overlap.
        let fills_gpu = blocks == 2 * self.all_pairs;
        // Blocks that wait for others than the first must run at the same time. Nothing says that this still
        // holds where some of them start early, and another stream may take the room of the rest.
        let overlap = self.kernels.overlap && fills_gpu && !cooperative;
        let mode = LaunchMode { overlap, cooperative };
        self.launch_with(kernel, kernel.config([blocks, 1])?, params, mode)
    }
}
