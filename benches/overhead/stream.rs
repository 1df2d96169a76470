//! The rate at which this card reads memory: the floor of everything that is bound by it.

use crate::common::gpu::Gpu;
use crate::common::matrix::Matrix;
use crate::common::{Result, median};
use lora_kernels::DType;
use lora_kernels::cudarc::driver::sys::CUdevice_attribute;
use lora_kernels::cudarc::driver::{LaunchConfig, PushKernelArg};
use lora_kernels::cudarc::nvrtc::{Ptx, result, sys};
use std::ffi::CString;

/// Far more than any L2 cache.
const ROWS: usize = 1 << 16;
const COLS: usize = 1 << 15;

const ROUNDS: usize = 15;

/// TB/s of a kernel that reads 4 GiB of random numbers once: the median of several passes.
pub fn read_rate(gpu: &Gpu) -> Result<f64> {
    let data = Matrix::gaussian(gpu, [ROWS, COLS], DType::Bf16, 1.0, 1)?;
    let sink = Matrix::new(gpu, [1, 1], DType::F32)?;
    let module = gpu.context().load_module(Ptx::from_binary(compile(gpu)?))?;
    let kernel = module.load_function("stream_read")?;
    let sms = gpu.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    // As many threads as fit at 32 registers each.
    let config = LaunchConfig {
        grid_dim: (8 * sms as u32, 1, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    };
    let (from, to, vectors) = (data.address(), sink.address(), data.bytes() as u64 / 16);
    let pass = || {
        let mut launch = gpu.stream.launch_builder(&kernel);
        launch.arg(&from).arg(&vectors).arg(&to);
        // SAFETY: the arguments are those of the kernel, and both addresses are of live memory.
        unsafe { launch.launch(config) }?;
        Ok(())
    };
    // Each timed pass is launched behind another one, which hides what its launch takes.
    let timed = |_| pass().and_then(|()| gpu.time(pass));
    let us: Vec<f64> = (0..ROUNDS).map(timed).collect::<Result<_>>()?;
    Ok(data.bytes() as f64 / median(&us) / 1e6)
}

/// The machine code of `stream.cu` for this card. A driver may be older than nvrtc, and then takes
/// its machine code, but not its PTX.
fn compile(gpu: &Gpu) -> Result<Vec<u8>> {
    let (major, minor) = gpu.context().compute_capability()?;
    let source = CString::new(include_str!("stream.cu"))?;
    let program = result::create_program(&source, Some(c"stream.cu"))?;
    let mut size = 0;
    // SAFETY: the program is alive and compiled, and the buffer has the size that nvrtc asks for.
    unsafe {
        result::compile_program(program, &[format!("--gpu-architecture=sm_{major}{minor}")])?;
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
        result::destroy_program(program)?;
        Ok(code)
    }
}
