//! Matrix products by cuBLASLt, planned once and run over rotating buffers.

use crate::common::gpu::Gpu;
use crate::common::matrix::Matrix;
use crate::common::{Result, timing};
use lora_kernels::DType;
use lora_kernels::cudarc::cublaslt::result::{self, CublasError};
use lora_kernels::cudarc::cublaslt::sys::{self, cublasLtMatmulPreferenceAttributes_t as Pref};
use lora_kernels::cudarc::driver::{CudaSlice, DevicePtr};
use std::ffi::c_void;
use std::ops::Range;

/// Twice what NVIDIA recommends for Hopper, so that no algorithm is ruled out by it.
const WORKSPACE_BYTES: usize = 64 << 20;

/// How many of the heuristic's answers are timed.
const CANDIDATES: usize = 8;

/// How long a candidate is timed, in µs.
const CANDIDATE_US: f64 = 500.0;

/// cuBLASLt, with the workspace that all products share on their one stream.
pub struct Lt<'g> {
    gpu: &'g Gpu,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
}

impl<'g> Lt<'g> {
    /// The library must be present: cudarc would panic.
    pub fn open(gpu: &'g Gpu) -> Result<Self> {
        gpu.context().bind_to_thread()?;
        let handle = result::create_handle().map_err(|error| format!("cublasLtCreate: {error}"))?;
        Ok(Lt { gpu, handle, workspace: gpu.allocate(WORKSPACE_BYTES)? })
    }

    /// The library's version, such as 130100.
    pub fn version(&self) -> usize {
        // SAFETY: takes nothing and touches nothing; the library is loaded.
        unsafe { sys::cublasLtGetVersion() }
    }
}

impl Drop for Lt<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, and no product outlives the borrow of `self`.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A row-major matrix as it enters a product: some of its rows and columns, and transposed or not.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    matrix: &'a Matrix,
    first_row: usize,
    rows: usize,
    first: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> From<&'a Matrix> for Operand<'a> {
    fn from(matrix: &'a Matrix) -> Self {
        let Matrix { rows, cols, .. } = *matrix;
        Operand { matrix, first_row: 0, rows, first: 0, cols, transposed: false }
    }
}

impl<'a> Operand<'a> {
    pub fn columns(matrix: &'a Matrix, columns: Range<usize>) -> Self {
        assert!(columns.start < columns.end && columns.end <= matrix.cols);
        Operand { first: columns.start, cols: columns.len(), ..Operand::from(matrix) }
    }

    pub fn rows(matrix: &'a Matrix, rows: Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= matrix.rows);
        Operand { first_row: rows.start, rows: rows.len(), ..Operand::from(matrix) }
    }

    pub fn transposed(operand: impl Into<Operand<'a>>) -> Self {
        Operand { transposed: true, ..operand.into() }
    }

    fn address(&self) -> u64 {
        let elements = self.first_row * self.matrix.cols + self.first;
        self.matrix.address() + (elements * self.matrix.dtype.bytes()) as u64
    }

    /// All that a plan knows of it.
    fn form(&self) -> ([usize; 2], usize, DType, bool) {
        (self.shape(), self.matrix.cols, self.matrix.dtype, self.transposed)
    }

    /// Rows and columns as the product sees them.
    fn shape(&self) -> [usize; 2] {
        let shape = [self.rows, self.cols];
        if self.transposed { [shape[1], shape[0]] } else { shape }
    }
}

/// Out = alpha · L R + beta · Out, over rotating L, R and Out.
///
/// cuBLASLt is column-major: to it, every row-major matrix is its own transpose. So it computes
/// Outᵀ = Rᵀ Lᵀ, with R's memory as its A and L's as its B, and transposes what the row-major
/// formula transposes.
pub struct Product<'a> {
    lt: &'a Lt<'a>,
    plan: Plan,
    algorithm: sys::cublasLtMatmulAlgo_t,
    alpha: f32,
    beta: f32,
    sets: Vec<[Operand<'a>; 3]>,
}

impl<'a> Product<'a> {
    /// Plans the product of L, R and Out, a triple for each call, with the fastest of the
    /// heuristic's first answers, each timed. `None` if it has no answer.
    pub fn tuned(
        lt: &'a Lt<'a>,
        [alpha, beta]: [f32; 2],
        sets: Vec<[Operand<'a>; 3]>,
    ) -> Result<Option<Self>> {
        let [lhs, rhs, out] = sets[0];
        let ([m, inner], [inner_too, n]) = (lhs.shape(), rhs.shape());
        assert_eq!((inner, out.shape()), (inner_too, [m, n]));
        // One plan serves all sets.
        assert!(sets.iter().all(|set| set.map(|o| o.form()) == sets[0].map(|o| o.form())));

        let plan = Plan::new([rhs, lhs, out])?;
        let aligned = |j: usize| sets.iter().fold(256, |bits, set| bits | set[j].address());
        let alignments = [1, 0, 2].map(|j| 1 << aligned(j).trailing_zeros());
        let mut fastest: Option<(f64, sys::cublasLtMatmulAlgo_t)> = None;
        let answers = plan.heuristic(lt, alignments)?;
        let Some(&algorithm) = answers.first() else { return Ok(None) };
        let mut product = Product { lt, plan, algorithm, alpha, beta, sets };
        for answer in answers {
            product.algorithm = answer;
            // An answer that is refused after all is no candidate.
            if product.enqueue(0).is_err() {
                continue;
            }
            let calls = product.sets.len();
            let us = timing::estimate(lt.gpu, calls, CANDIDATE_US, &|i| product.run(i))?;
            if fastest.is_none_or(|(best, _)| us < best) {
                fastest = Some((us, answer));
            }
        }
        Ok(fastest.map(|(_, algorithm)| Product { algorithm, ..product }))
    }

    /// Enqueues call `i`.
    pub fn run(&self, i: usize) -> Result<()> {
        Ok(self.enqueue(i)?)
    }

    fn enqueue(&self, i: usize) -> std::result::Result<(), CublasError> {
        let [lhs, rhs, out] = &self.sets[i % self.sets.len()];
        let [a, b, c] = [rhs, lhs, out].map(|operand| operand.address() as *mut c_void);
        let stream = &self.lt.gpu.stream;
        let workspace = self.lt.workspace.device_ptr(stream).0 as *mut c_void;
        let [a_layout, b_layout, c_layout] = [0, 1, 2].map(|j| self.plan.layouts[j].0);
        // SAFETY: the descriptors are alive, the memory is that of the matrices borrowed, which
        // are as large as the layouts say, and all of it is used in the order of one stream.
        // alpha and beta are read before the call returns.
        unsafe {
            result::matmul(
                self.lt.handle,
                self.plan.matmul,
                (&raw const self.alpha).cast(),
                (&raw const self.beta).cast(),
                a,
                a_layout,
                b,
                b_layout,
                c,
                c_layout,
                c,
                c_layout,
                &self.algorithm,
                workspace,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
    }
}

/// The descriptors of a product, in cuBLASLt's order: A, B, and C for the output.
struct Plan {
    matmul: sys::cublasLtMatmulDesc_t,
    layouts: [Layout; 3],
}

impl Plan {
    fn new(operands: [Operand<'_>; 3]) -> Result<Self> {
        let layouts = [layout(&operands[0])?, layout(&operands[1])?, layout(&operands[2])?];
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let matmul = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let plan = Plan { matmul, layouts };
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_TRANSA as TRANSA, CUBLASLT_MATMUL_DESC_TRANSB as TRANSB,
        };
        for (attribute, operand) in [(TRANSA, &operands[0]), (TRANSB, &operands[1])] {
            // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
            let operation = i32::from(operand.transposed);
            let value = (&raw const operation).cast();
            // SAFETY: the descriptor is alive, and the attribute is an i32.
            unsafe { result::set_matmul_desc_attribute(matmul, attribute, value, 4) }?;
        }
        Ok(plan)
    }

    /// The heuristic's first answers, best guess first, for memory of these alignments in bytes.
    fn heuristic(
        &self,
        lt: &Lt<'_>,
        alignments: [u32; 3],
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let preference = Preference(result::create_matmul_pref()?);
        let workspace = WORKSPACE_BYTES as u64;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        let [a, b, c] = &alignments;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c)?;

        // SAFETY: a plain C struct of numbers and an enum that has a zero.
        let empty: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut answers = [empty; CANDIDATES];
        let mut count = 0;
        let [a, b, c] = [0, 1, 2].map(|j| self.layouts[j].0);
        // SAFETY: handle and descriptors are alive; there is room for the answers asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                lt.handle,
                self.matmul,
                a,
                b,
                c,
                c,
                preference.0,
                CANDIDATES as i32,
                answers.as_mut_ptr(),
                &mut count,
            )
        };
        if let Err(CublasError(status)) = status.result() {
            // The usual way to say that there is no algorithm; anything else is worth a word.
            if status != sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
                eprintln!("overhead: cuBLASLt's heuristic: {status:?}");
            }
            return Ok(Vec::new());
        }
        let valid = answers.iter().take(count as usize).filter(|a| a.state.result().is_ok());
        Ok(valid.map(|answer| answer.algo).collect())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and not used after this.
        let _ = unsafe { result::destroy_matmul_desc(self.matmul) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

/// The memory of a row-major operand as cuBLASLt sees it: column-major, with rows and columns
/// exchanged and the row stride as leading dimension.
fn layout(operand: &Operand<'_>) -> Result<Layout> {
    let matrix = operand.matrix;
    let dtype = match matrix.dtype {
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        _ => sys::cudaDataType::CUDA_R_32F,
    };
    let (rows, cols) = (operand.cols as u64, operand.rows as u64);
    Ok(Layout(result::create_matrix_layout(dtype, rows, cols, matrix.cols as i64)?))
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `layout`, and not used after this.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `V` is the type the attribute has in cublasLt.h.
    fn set<V>(&self, attribute: Pref, value: &V) -> Result<()> {
        let pointer: *const V = value;
        // SAFETY: the preference is alive, and the value is as long as said.
        Ok(unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, pointer.cast(), size_of::<V>())
        }?)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_pref`, and not used after this.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
