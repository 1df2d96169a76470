//! What a user would call instead: the frozen layer and the adapter by cuBLASLt, one projection
//! after the other.

use crate::common::Result;
use crate::common::gpu::Gpu;
use crate::common::layer::{Layer, SCALE, from};
use crate::common::matrix::{Matrix, Rotating};
use crate::cublaslt::{Lt, Operand as Op, Product};
use std::rc::Rc;

/// The buffers that only the peers need.
pub struct PeerBuffers {
    /// X Aᵀ without the scale, which the peers' last product carries as its alpha; and dS. All
    /// projections lie side by side.
    s: Rotating,
    ds: Rotating,
    /// Of a single projection.
    augmented: Option<Augmented>,
}

struct Augmented {
    /// [x | x Aᵀ], T×(k + r).
    x: Rotating,
    /// [W0 | s·B], d×(k + r).
    w: Rotating,
}

impl PeerBuffers {
    pub fn new(gpu: &Gpu, layer: &Layer) -> Result<Self> {
        let shape = [layer.problem.t(), layer.problem.rank()];
        let rotating =
            || Rotating::new(layer.x.sets(), |_| Matrix::new(gpu, shape, layer.problem.dtype()));
        Ok(PeerBuffers { s: rotating()?, ds: rotating()?, augmented: Augmented::new(gpu, layer)? })
    }
}

impl Augmented {
    fn new(gpu: &Gpu, layer: &Layer) -> Result<Option<Self>> {
        let &[(d, r)] = layer.problem.projections() else { return Ok(None) };
        let (t, k, dtype) = (layer.problem.t(), layer.problem.k(), layer.problem.dtype());
        // The numbers of the layer's B, times s.
        let scaled_b = Matrix::gaussian(gpu, [d, r], dtype, f64::from(SCALE) * from(r), 5000)?;
        let w0 = &layer.projections[0].w0;
        let x = Rotating::new(layer.x.sets(), |i| {
            let matrix = Matrix::new(gpu, [t, k + r], dtype)?;
            matrix.copy_into_columns(0, layer.x.at(i))?;
            Ok(matrix)
        })?;
        let w = Rotating::new(w0.sets(), |i| {
            let matrix = Matrix::new(gpu, [d, k + r], dtype)?;
            matrix.copy_into_columns(0, w0.at(i))?;
            matrix.copy_into_columns(k, &scaled_b)?;
            Ok(matrix)
        })?;
        Ok(Some(Augmented { x, w }))
    }
}

/// Products that make one result, in their order.
pub struct Sequence<'a>(Vec<Rc<Product<'a>>>);

/// A product, unless cuBLASLt has no algorithm for it.
type Planned<'a> = Option<Rc<Product<'a>>>;

impl<'a> Sequence<'a> {
    /// `None` if one of them is missing.
    fn new(products: Vec<Planned<'a>>) -> Option<Self> {
        products.into_iter().collect::<Option<_>>().map(Sequence)
    }

    pub fn run(&self, i: usize) -> Result<()> {
        self.0.iter().try_for_each(|product| product.run(i))
    }
}

/// A peer is absent where cuBLASLt has no algorithm for one of its products.
pub struct Peers<'a> {
    /// H = X W0ᵀ of each projection.
    pub frozen: Option<Sequence<'a>>,
    /// dX = dH W0 of the first, and dX += dH W0 of the others.
    pub frozen_dx: Option<Sequence<'a>>,
    /// H = X W0ᵀ, X Aᵀ, and H += s · (X Aᵀ) Bᵀ in place.
    pub addmm_forward: Option<Sequence<'a>>,
    /// X Aᵀ into the last columns of [x | x Aᵀ], and H = [x | x Aᵀ] [W0 | s·B]ᵀ: of a single
    /// projection.
    pub augmented_forward: Option<Sequence<'a>>,
    /// dS, dX = dH W0, dX += dS A in place, dA and dB in f32. Like ours it is given the S of the
    /// forward pass, which a user of PyTorch's addmm would have to save.
    pub addmm_backward: Option<Sequence<'a>>,
}

impl<'a> Peers<'a> {
    /// Plans and tunes all products. The layer's S must have been computed for every set.
    pub fn new(lt: &'a Lt<'a>, layer: &'a Layer, buffers: &'a PeerBuffers) -> Result<Self> {
        // Out = alpha · L R + beta · Out, given [alpha, beta] and L, R and Out of call i.
        let product = |scales, operands: &dyn Fn(usize) -> [Op<'a>; 3]| -> Result<Planned<'a>> {
            let operands = (0..layer.calls()).map(operands).collect();
            Ok(Product::tuned(lt, scales, operands)?.map(Rc::new))
        };
        let (x, dx) = (|i| layer.x.at(i), |i| layer.dx.at(i));
        let (mut frozen, mut frozen_dx) = (Vec::new(), Vec::new());
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        for (j, one) in layer.projections.iter().enumerate() {
            let ranks = || one.ranks.clone();
            let (w0, h, dh) = (|i| one.w0.at(i), |i| one.h.at(i), |i| one.dh.at(i));
            let (a, b) = (Op::rows(&layer.a, ranks()), &one.b);
            let (da, db) = (Op::rows(&layer.da, ranks()), &one.db);
            let s = |i| Op::columns(buffers.s.at(i), ranks());
            let ds = |i| Op::columns(buffers.ds.at(i), ranks());
            let s_of_ours = |i| Op::columns(layer.s.at(i), ranks());
            let first = if j == 0 { 0.0 } else { 1.0 };

            let make_h =
                product([1.0, 0.0], &|i| [x(i).into(), Op::transposed(w0(i)), h(i).into()])?;
            let make_s = product([1.0, 0.0], &|i| [x(i).into(), Op::transposed(a), s(i)])?;
            let update = product([SCALE, 1.0], &|i| [s(i), Op::transposed(b), h(i).into()])?;
            frozen.push(make_h.clone());
            forward.extend([make_h, make_s, update]);

            let make_dx = product([1.0, first], &|i| [dh(i).into(), w0(i).into(), dx(i).into()])?;
            let make_ds = product([SCALE, 0.0], &|i| [dh(i).into(), b.into(), ds(i)])?;
            let update = product([1.0, 1.0], &|i| [ds(i), a, dx(i).into()])?;
            let make_da = product([1.0, 0.0], &|i| [Op::transposed(ds(i)), x(i).into(), da])?;
            let make_db =
                product([1.0, 0.0], &|i| [Op::transposed(dh(i)), s_of_ours(i), db.into()])?;
            frozen_dx.push(make_dx.clone());
            backward.extend([make_ds, make_dx, update, make_da, make_db]);
        }
        let augmented_forward = match &buffers.augmented {
            None => None,
            Some(Augmented { x, w }) => {
                let (k, h) = (layer.problem.k(), &layer.projections[0].h);
                let make_s = product([1.0, 0.0], &|i| {
                    let x = x.at(i);
                    [Op::columns(x, 0..k), Op::transposed(&layer.a), Op::columns(x, k..x.cols)]
                })?;
                let make_h = product([1.0, 0.0], &|i| {
                    [x.at(i).into(), Op::transposed(w.at(i)), h.at(i).into()]
                })?;
                Sequence::new(vec![make_s, make_h])
            }
        };
        Ok(Peers {
            frozen: Sequence::new(frozen),
            frozen_dx: Sequence::new(frozen_dx),
            addmm_forward: Sequence::new(forward),
            augmented_forward,
            addmm_backward: Sequence::new(backward),
        })
    }
}
