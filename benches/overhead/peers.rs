//! What a user would call instead: the frozen layer and the adapter by cuBLASLt.

use crate::common::gpu::Gpu;
use crate::common::layer::{Layer, SCALE};
use crate::common::matrix::{Matrix, Rotating};
use crate::common::Result;
use crate::cublaslt::{Lt, Operand, Product};
use lora_kernels::Problem;
use std::rc::Rc;

/// The buffers that only the peers need.
pub struct PeerBuffers {
    /// X Aᵀ without the scale, which the peers' last product carries as its alpha.
    s: Rotating,
    ds: Rotating,
    /// [x | x Aᵀ], T×(k + r).
    augmented_x: Rotating,
    /// [W0 | s·B], d×(k + r).
    augmented_w: Rotating,
}

impl PeerBuffers {
    pub fn new(gpu: &Gpu, layer: &Layer) -> Result<Self> {
        let Problem { t, k, d, r, dtype, .. } = layer.problem;
        let sets = layer.x.sets();
        let scaled_b = layer.scaled_b(gpu)?;
        let augmented_x = |i| {
            let matrix = Matrix::new(gpu, [t, k + r], dtype)?;
            matrix.copy_into_columns(0, layer.x.at(i))?;
            Ok(matrix)
        };
        let augmented_w = |i| {
            let matrix = Matrix::new(gpu, [d, k + r], dtype)?;
            matrix.copy_into_columns(0, layer.w0.at(i))?;
            matrix.copy_into_columns(k, &scaled_b)?;
            Ok(matrix)
        };
        Ok(PeerBuffers {
            s: Rotating::new(sets, |_| Matrix::new(gpu, [t, r], dtype))?,
            ds: Rotating::new(sets, |_| Matrix::new(gpu, [t, r], dtype))?,
            augmented_x: Rotating::new(sets, augmented_x)?,
            augmented_w: Rotating::new(layer.w0.sets(), augmented_w)?,
        })
    }
}

/// Products that make one result, in their order.
pub struct Sequence<'a>(Vec<Rc<Product<'a>>>);

/// A product, unless cuBLASLt has no algorithm for it.
pub type Planned<'a> = Option<Rc<Product<'a>>>;

/// Plans and tunes Out = alpha · L R + beta · Out for so many calls, given [alpha, beta] and L, R and Out of
/// call `i`.
pub fn product<'a>(
    lt: &'a Lt<'a>,
    calls: usize,
    scales: [f32; 2],
    operands: impl Fn(usize) -> [Operand<'a>; 3],
) -> Result<Planned<'a>> {
    Ok(Product::tuned(lt, scales, (0..calls).map(operands).collect())?.map(Rc::new))
}

impl<'a> Sequence<'a> {
    /// `None` if one of them is missing.
    pub fn new(products: &[&Planned<'a>]) -> Option<Self> {
        products.iter().map(|&product| product.clone()).collect::<Option<_>>().map(Sequence)
    }

    pub fn run(&self, i: usize) -> Result<()> {
        self.0.iter().try_for_each(|product| product.run(i))
    }
}

/// A peer is absent where cuBLASLt has no algorithm for one of its products.
pub struct Peers<'a> {
    /// H = X W0ᵀ.
    pub frozen: Option<Sequence<'a>>,
    /// dX = dH W0.
    pub frozen_dx: Option<Sequence<'a>>,
    /// H = X W0ᵀ, X Aᵀ, and H += s · (X Aᵀ) Bᵀ in place.
    pub addmm_forward: Option<Sequence<'a>>,
    /// X Aᵀ into the last columns of [x | x Aᵀ], and H = [x | x Aᵀ] [W0 | s·B]ᵀ.
    pub augmented_forward: Option<Sequence<'a>>,
    /// dS, dX = dH W0, dX += dS A in place, dA and dB in f32. Like ours it is given the S of the
    /// forward pass, which a user of PyTorch's addmm would have to save.
    pub addmm_backward: Option<Sequence<'a>>,
}

impl<'a> Peers<'a> {
    /// Plans and tunes all products. The layer's S must have been computed for every set.
    pub fn new(lt: &'a Lt<'a>, layer: &'a Layer, buffers: &'a PeerBuffers) -> Result<Self> {
        let Problem { k, r, .. } = layer.problem;
        let product = |scales, operands: &dyn Fn(usize) -> [Operand<'a>; 3]| {
            product(lt, layer.calls(), scales, operands)
        };
        let sequence = Sequence::new;
        let (a, b) = (&layer.a, &layer.b);
        let (x, dh) = (|i| layer.x.at(i), |i| layer.dh.at(i));
        let (w0, h, dx) = (|i| layer.w0.at(i), |i| layer.h.at(i), |i| layer.dx.at(i));
        let (peer_s, ds) = (|i| buffers.s.at(i), |i| buffers.ds.at(i));
        let (xr, wr) = (|i| buffers.augmented_x.at(i), |i| buffers.augmented_w.at(i));
        use Operand as Op;

        let frozen = product([1.0, 0.0], &|i| [x(i).into(), Op::transposed(w0(i)), h(i).into()])?;
        let frozen_dx = product([1.0, 0.0], &|i| [dh(i).into(), w0(i).into(), dx(i).into()])?;

        let s = product([1.0, 0.0], &|i| [x(i).into(), Op::transposed(a), peer_s(i).into()])?;
        let update = [SCALE, 1.0];
        let h_update = product(update, &|i| [peer_s(i).into(), Op::transposed(b), h(i).into()])?;

        let s_in_place = product([1.0, 0.0], &|i| {
            let (x, s) = (Op::columns(xr(i), 0..k), Op::columns(xr(i), k..k + r));
            [x, Op::transposed(a), s]
        })?;
        let augmented =
            product([1.0, 0.0], &|i| [xr(i).into(), Op::transposed(wr(i)), h(i).into()])?;

        let make_ds = product([SCALE, 0.0], &|i| [dh(i).into(), b.into(), ds(i).into()])?;
        let dx_update = product([1.0, 1.0], &|i| [ds(i).into(), a.into(), dx(i).into()])?;
        let (s_of_ours, da, db) = (|i| layer.s.at(i), &layer.da, &layer.db);
        let make_da = product([1.0, 0.0], &|i| [Op::transposed(ds(i)), x(i).into(), da.into()])?;
        let make_db =
            product([1.0, 0.0], &|i| [Op::transposed(dh(i)), s_of_ours(i).into(), db.into()])?;

        Ok(Peers {
            addmm_forward: sequence(&[&frozen, &s, &h_update]),
            augmented_forward: sequence(&[&s_in_place, &augmented]),
            addmm_backward: sequence(&[&make_ds, &frozen_dx, &dx_update, &make_da, &make_db]),
            frozen: sequence(&[&frozen]),
            frozen_dx: sequence(&[&frozen_dx]),
        })
    }
}
