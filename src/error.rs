//! What can go wrong, with the shapes that were involved.

use crate::dtype::DType;
use crate::shape::{InvalidShape, Shape};
use std::fmt;
#[cfg(feature = "peft")]
use std::{io, path::PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call was refused or failed.
///
/// An operation that returns an error has enqueued nothing and left its outputs as they were, with
/// one exception: after [`Error::Driver`] the outputs of the call are unspecified, and the flags of
/// its workspace are zero.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The CUDA driver library could not be loaded.
    NoDriver {
        /// The loader's message.
        reason: String,
    },
    /// The driver was found, but no device with this ordinal.
    NoDevice {
        /// The ordinal asked for.
        ordinal: usize,
        /// How many devices the driver sees.
        count: usize,
    },
    /// This build of the crate has no kernels.
    KernelsNotBuilt {
        /// What the build script found missing.
        reason: &'static str,
    },
    /// The device is older than the oldest architecture the kernels support (8.0).
    UnsupportedDevice {
        /// The device's name.
        name: String,
        /// Its compute capability, major and minor.
        compute_capability: (u32, u32),
    },
    /// A tensor does not have the shape that the other arguments require.
    Shape {
        /// The argument, in the paper's letters.
        argument: &'static str,
        /// The shape it must have, in words and numbers.
        expected: String,
        /// The shape it has.
        got: Shape,
    },
    /// A tensor has a row stride, and the call needs it dense.
    RowStride {
        /// The argument, in the paper's letters.
        argument: &'static str,
        /// Elements from the start of a row to that of the next.
        got: usize,
    },
    /// A slice does not hold as many elements as its shape requires.
    Length {
        /// The shape asked for.
        shape: Shape,
        /// How many elements were given.
        got: usize,
    },
    /// A list of arguments does not have the length that the call requires.
    Count {
        /// The list.
        argument: &'static str,
        /// How many it must hold, in words and numbers.
        expected: String,
        /// How many it holds.
        got: usize,
    },
    /// A tensor has an element type this call cannot take.
    DType {
        /// The argument, in the paper's letters.
        argument: &'static str,
        /// The types it may have.
        expected: &'static str,
        /// The type it has.
        got: DType,
    },
    /// A tensor lives on another device than the one the call runs on.
    Device {
        /// The argument, in the paper's letters.
        argument: &'static str,
        /// The device of the call.
        expected: String,
        /// The device of the tensor.
        got: String,
    },
    /// A device address is not a multiple of its element's size.
    Misaligned {
        /// The address.
        address: u64,
        /// The element type it was said to hold.
        dtype: DType,
    },
    /// Two arguments share memory, and one of them is written.
    Overlap {
        /// The argument that is written.
        output: &'static str,
        /// The argument it overlaps.
        other: &'static str,
    },
    /// The rank is outside `1..=256`.
    Rank {
        /// The rank asked for.
        r: usize,
    },
    /// A scale, alpha or standard deviation is not a finite number.
    NotFinite {
        /// Which one.
        argument: &'static str,
        /// Its value.
        value: f32,
    },
    /// A probability of dropout that is none, or dropout in a call whose operation was made without
    /// it, or the other way round.
    Dropout {
        /// What it must be.
        expected: &'static str,
        /// The probability p; `None` without dropout.
        got: Option<f32>,
    },
    /// A layer's adapter is merged into its weight and must not be, or the other way round.
    Merged {
        /// Whether it is merged.
        merged: bool,
    },
    /// The workspace is smaller than the operation needs.
    Workspace {
        /// Which part of it, `scratch` or `flags`.
        part: &'static str,
        /// Elements needed.
        needed: usize,
        /// Elements given.
        got: usize,
    },
    /// A dimension or a product of dimensions is larger than the kernels can index.
    TooLarge {
        /// What is too large, with its size.
        what: String,
    },
    /// There is not enough memory on the device.
    OutOfMemory {
        /// The bytes asked for.
        bytes: usize,
    },
    /// The call is not possible while a stream captures a CUDA graph, or it would break the order
    /// that a captured graph relies on.
    Capture {
        /// What is not possible, and what to do instead.
        what: String,
    },
    /// A text could not be parsed.
    Parse {
        /// What it should name.
        expected: &'static str,
        /// The text.
        got: String,
    },
    /// The CUDA driver refused a call, or reports the failure of an earlier one.
    Driver {
        /// The call that returned the error.
        call: &'static str,
        /// The raw `CUresult`.
        code: u32,
        /// Its name, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
    },
    /// A file could not be read or written.
    #[cfg(feature = "peft")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: `read`, `written`.
        action: &'static str,
        /// The kind of the system's error.
        kind: io::ErrorKind,
        /// The system's message.
        reason: String,
    },
    /// A file is broken, or two of its parts disagree. For a file to be written: it would be.
    #[cfg(feature = "peft")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The tensor or field, or the part of the file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file asks for something that this crate does not support.
    #[cfg(feature = "peft")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor or field.
        key: String,
        /// What it asks for.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDriver { reason } => {
                write!(f, "no CUDA driver: {reason}; install NVIDIA's driver")
            }
            Error::NoDevice { ordinal, count } => {
                write!(f, "no CUDA device {ordinal}: the driver sees {count}")
            }
            Error::KernelsNotBuilt { reason } => write!(
                f,
                "this build of lora-kernels holds no CUDA kernels: {reason}; install nvcc \
                 (scripts/install-nvcc.sh) or set NVCC, and build again"
            ),
            Error::UnsupportedDevice { name, compute_capability: (major, minor) } => write!(
                f,
                "{name} has compute capability {major}.{minor}; the kernels need 8.0 or newer"
            ),
            Error::Shape { argument, expected, got } => {
                write!(f, "{argument} has shape {got}, expected {expected}")
            }
            Error::Length { shape, got } => {
                write!(f, "shape {shape} holds {} elements, but {got} were given", shape.elements())
            }
            Error::Count { argument, expected, got } => {
                write!(f, "{argument} is a list of {got}, expected {expected}")
            }
            Error::DType { argument, expected, got } => {
                write!(f, "{argument} holds {got}, expected {expected}")
            }
            Error::Device { argument, expected, got } => {
                write!(f, "{argument} is on {got}, but the call runs on {expected}")
            }
            Error::Misaligned { address, dtype } => {
                write!(f, "address {address:#x} is not aligned for {dtype}")
            }
            Error::Overlap { output, other } => {
                write!(f, "{output} is written, but shares memory with {other}")
            }
            Error::Rank { r } => write!(f, "rank {r} is outside 1..=256"),
            Error::NotFinite { argument, value } => {
                write!(f, "{argument} must be a finite number, got {value}")
            }
            Error::Dropout { expected, got } => {
                write!(f, "dropout must be {expected}, got ")?;
                match got {
                    Some(p) => write!(f, "p = {p}"),
                    None => f.write_str("none"),
                }
            }
            Error::Merged { merged: true } => {
                write!(f, "the adapter is merged into the layer's weight; unmerge it first")
            }
            Error::Merged { merged: false } => {
                write!(f, "the adapter is not merged into the layer's weight")
            }
            Error::Workspace { part, needed, got } => {
                write!(f, "the workspace has {got} elements of {part}, but {needed} are needed")
            }
            Error::TooLarge { what } => write!(f, "{what} is too large"),
            Error::OutOfMemory { bytes } => {
                write!(f, "out of memory: {bytes} bytes could not be allocated")
            }
            Error::RowStride { argument, got } => {
                write!(f, "{argument} must have dense rows, but they start {got} elements apart")
            }
            Error::Capture { what } => write!(f, "refused for the sake of a CUDA graph: {what}"),
            Error::Parse { expected, got } => write!(f, "{got:?} is not {expected}"),
            Error::Driver { call, code, name } => write!(f, "{call} failed: {name} ({code})"),
            #[cfg(feature = "peft")]
            Error::Io { path, action, reason, .. } => {
                write!(f, "{} could not be {action}: {reason}", path.display())
            }
            #[cfg(feature = "peft")]
            Error::Malformed { path, key, reason } => {
                write!(f, "{}: {key} {reason}", path.display())
            }
            #[cfg(feature = "peft")]
            Error::Unsupported { path, key, reason } => {
                write!(f, "{}: {key} is not supported: {reason}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<InvalidShape> for Error {
    fn from(shape: InvalidShape) -> Self {
        Error::TooLarge { what: shape.to_string() }
    }
}
