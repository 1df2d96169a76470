//! What the driver takes for a launch alone: the floor of every call.

use crate::args::Options;
use crate::common::Result;
use crate::common::gpu::Gpu;
use crate::report::{Report, Row};
use crate::timing;
use lora_kernels::cudarc::driver::{result, sys};
use std::ffi::CString;
use std::ptr;
use std::slice;

/// Kernels that do nothing, with as many bytes of parameters as those for few tokens and for many.
const PTX: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry take_896(.param .align 64 .b8 params[896]) { ret; }
.visible .entry take_3136(.param .align 64 .b8 params[3136]) { ret; }
";

/// How a launch relates to others, as the crate's kernels are launched.
#[derive(Clone, Copy)]
enum Mode {
    Overlap,
    Plain,
    Cooperative,
}

/// Measures the rows `launch ..`.
pub fn measure(gpu: &Gpu, options: &Options, report: &mut Report) -> Result<()> {
    gpu.context().bind_to_thread()?;
    let image = CString::new(PTX)?;
    // SAFETY: the image is PTX, and ends with a zero. The module is never unloaded.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
    let rows = [
        ("launch 896 B, early", "take_896", Mode::Overlap),
        ("launch 3136 B, early", "take_3136", Mode::Overlap),
        ("launch 3136 B", "take_3136", Mode::Plain),
        ("launch 3136 B, cooperative", "take_3136", Mode::Cooperative),
    ];
    for (op, kernel, mode) in rows.into_iter().filter(|(op, ..)| options.wants(op)) {
        // SAFETY: the module has this entry point.
        let function = unsafe { result::module::get_function(module, CString::new(kernel)?) }?;
        let params = [0u64; 3136 / 8];
        let mut call = |_| launch(gpu, function, &params, mode);
        let us = timing::host_us(slice::from_ref(&gpu.device), options.batches(), &mut call)?;
        report.add(Row::new(None, op, us))?;
    }
    Ok(())
}

fn launch(gpu: &Gpu, function: sys::CUfunction, params: &[u64], mode: Mode) -> Result<()> {
    use sys::CUlaunchAttributeID::*;
    let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let (overlap, cooperative) = match mode {
        Mode::Overlap => (1, 0),
        Mode::Plain => (0, 0),
        Mode::Cooperative => (0, 1),
    };
    let overlap = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: overlap };
    let mut attributes = [
        attribute(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, overlap),
        attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, sys::CUlaunchAttributeValue { cooperative }),
    ];
    let config = sys::CUlaunchConfig {
        gridDimX: 132,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 384,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: gpu.stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    let mut args = [params.as_ptr().cast_mut().cast()];
    // SAFETY: the kernel takes no more bytes than these, and does nothing.
    let launched =
        unsafe { sys::cuLaunchKernelEx(&config, function, args.as_mut_ptr(), ptr::null_mut()) };
    Ok(launched.result()?)
}
