//! Safetensors files, read a tensor at a time.

use super::file::{malformed, open_regular, unreadable, unsupported};
use super::text;
use super::unique::Header;
use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::Shape;
use crate::tensor::Tensor;
use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The longest header that is read. The format allows 100 MB; a header of 100 000 tensors has 15.
const MAX_HEADER: u64 = 32 << 20;

/// The key of the fingerprint in the metadata.
pub(super) const FINGERPRINT: &str = "lora_kernels.config";

/// The key of the configurations that diffusers writes into the metadata.
const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// A safetensors file that is open for reading.
///
/// The header is read and checked when the file is opened: names are unique, every tensor has the
/// bytes that its shape and type require, and the tensors fill the file without a gap. Each call of
/// [`tensor`](TensorFile::tensor) reads one tensor.
///
/// ```
/// use lora_kernels::peft::TensorFile;
/// use lora_kernels::Device;
/// use std::io::Cursor;
///
/// # fn main() -> lora_kernels::Result<()> {
/// let header = br#"{"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
/// let length = (header.len() as u64).to_le_bytes();
/// let data = [0.5f32, 2.0].map(f32::to_le_bytes).concat();
/// let bytes = [&length[..], header, &data].concat();
///
/// let mut file = TensorFile::new("w.safetensors", Cursor::new(bytes))?; // or TensorFile::open
/// let w = file.tensor("w", &Device::cpu(), None)?;
/// assert_eq!(w.shape().dims(), [1, 2]);
/// assert_eq!(w.to_vec::<f32>()?, [0.5, 2.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TensorFile<R = File> {
    path: PathBuf,
    reader: R,
    entries: BTreeMap<String, TensorEntry>,
    fingerprint: Option<u64>,
    adapter_metadata: Option<String>,
}

/// A tensor in the header of a [`TensorFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorEntry {
    /// Its element type; `None` if this crate does not have it.
    pub dtype: Option<DType>,
    /// The name of its element type in the file, such as `BF16`.
    pub dtype_name: String,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its bytes in the file, from the file's first byte.
    pub bytes: Range<u64>,
}

impl TensorFile {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read or is not a regular file, [`Error::Malformed`] if its
    /// header is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        TensorFile::new(path, open_regular(path)?)
    }

    /// When the file was last written.
    pub(super) fn modified(&self) -> io::Result<SystemTime> {
        self.reader.metadata()?.modified()
    }
}

impl<R: Read + Seek> TensorFile<R> {
    /// Reads the file from `reader`; errors call it `path`.
    ///
    /// # Errors
    /// As for [`TensorFile::open`].
    pub fn new(path: impl Into<PathBuf>, mut reader: R) -> Result<Self> {
        let path = path.into();
        let malformed = |reason: String| malformed(&path, "the header", reason);
        let length = reader.seek(SeekFrom::End(0)).map_err(|error| unreadable(&path, error))?;
        let read = |reader: &mut R, at, into: &mut [u8]| {
            read_at(reader, at, into).map_err(|error| unreadable(&path, error))
        };
        if length < 8 {
            return Err(malformed(format!("is cut off: the file has {length} bytes")));
        }
        let mut prefix = [0; 8];
        read(&mut reader, 0, &mut prefix)?;
        if prefix == *b"version " {
            let mut start = zeros(length.min(64) as usize)?;
            read(&mut reader, 0, &mut start)?;
            text::refuse_pointer(&path, &start)?;
        }
        let header_length = u64::from_le_bytes(prefix);
        if header_length > MAX_HEADER {
            return Err(malformed(format!("has {header_length} bytes, more than {MAX_HEADER}")));
        }
        if header_length > length - 8 {
            return Err(malformed(format!(
                "has {header_length} bytes, but the file has {length} in all"
            )));
        }
        let mut header = zeros(header_length as usize)?;
        read(&mut reader, 8, &mut header)?;
        // serde_json does not look into texts that nobody asks for.
        let header = str::from_utf8(&header).map_err(|error| malformed(error.to_string()))?;
        let Header { metadata, tensors } =
            serde_json::from_str(header).map_err(|error| malformed(error.to_string()))?;
        let entries = entries(&path, tensors, 8 + header_length, length)?;
        let (mut fingerprint, mut adapter_metadata) = (None, None);
        for (key, value) in metadata {
            match &*key {
                FINGERPRINT => fingerprint = u64::from_str_radix(&value, 16).ok(),
                ADAPTER_METADATA => adapter_metadata = Some(value),
                _ => {}
            }
        }
        Ok(TensorFile { path, reader, entries, fingerprint, adapter_metadata })
    }

    /// The fingerprint of the configuration that `save` wrote along with the file.
    pub(super) fn fingerprint(&self) -> Option<u64> {
        self.fingerprint
    }

    /// The configurations that diffusers wrote into the metadata.
    pub(super) fn adapter_metadata(&self) -> Option<&str> {
        self.adapter_metadata.as_deref()
    }

    /// The file's path, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    /// Reads a tensor onto a device, rounded to `dtype`, or in the file's element type.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the file has no tensor of this name, [`Error::Unsupported`] unless
    /// it is bf16, f16 or f32 and has one to six dimensions; [`Error::Io`]; [`Error::OutOfMemory`];
    /// [`Error::Driver`].
    pub fn tensor(&mut self, name: &str, device: &Device, dtype: Option<DType>) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            return Err(malformed(&self.path, name, "is not in the file"));
        };
        let Ok(shape) = Shape::new(&entry.shape) else {
            let reason = format!("it has {} dimensions, not one to six", entry.shape.len());
            return Err(unsupported(&self.path, name, reason));
        };
        self.shaped(name, shape, device, dtype)
    }

    /// Reads a tensor of the file, under another shape of as many elements.
    pub(super) fn matrix(
        &mut self,
        name: &str,
        shape: [usize; 2],
        device: &Device,
        dtype: Option<DType>,
    ) -> Result<Tensor> {
        let shape =
            Shape::new(&shape).map_err(|error| unsupported(&self.path, name, error.to_string()))?;
        debug_assert_eq!(self.entries[name].shape.iter().product::<usize>(), shape.elements());
        self.shaped(name, shape, device, dtype)
    }

    fn shaped(
        &mut self,
        name: &str,
        shape: Shape,
        device: &Device,
        dtype: Option<DType>,
    ) -> Result<Tensor> {
        let entry = &self.entries[name];
        let Some(own) = entry.dtype else {
            return Err(unsupported(&self.path, name, not_numbers(entry)));
        };
        let at = entry.bytes.start;
        match own {
            DType::Bf16 => self.read::<bf16>(at, device, shape, dtype),
            DType::F16 => self.read::<f16>(at, device, shape, dtype),
            DType::F32 => self.read::<f32>(at, device, shape, dtype),
        }
    }

    /// Reads a tensor of the file that is one number.
    pub(super) fn scalar(&mut self, name: &str) -> Result<f32> {
        let entry = &self.entries[name];
        let (bytes, dtype) = (entry.bytes.clone(), entry.dtype_name.clone());
        if entry.shape.iter().product::<usize>() != 1 {
            let reason = format!("is not one number: its shape is {:?}", entry.shape);
            return Err(malformed(&self.path, name, reason));
        }
        let mut raw = [0; 8];
        let raw = &mut raw[..(bytes.end - bytes.start).min(8) as usize];
        read_at(&mut self.reader, bytes.start, raw)
            .map_err(|error| unreadable(&self.path, error))?;
        let number = match (&*dtype, &*raw) {
            ("BF16", &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            ("F16", &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            ("F32", &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            ("I32", &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]) as f32,
            ("F64", raw) => f64::from_le_bytes(raw.try_into().expect("eight")) as f32,
            ("I64", raw) => i64::from_le_bytes(raw.try_into().expect("eight")) as f32,
            _ => return Err(unsupported(&self.path, name, format!("a number in {dtype}"))),
        };
        match number.is_finite() {
            true => Ok(number),
            false => Err(malformed(&self.path, name, format!("is {number}"))),
        }
    }

    fn read<E: Element>(
        &mut self,
        at: u64,
        device: &Device,
        shape: Shape,
        dtype: Option<DType>,
    ) -> Result<Tensor> {
        let mut values: Vec<E> = zeros(shape.elements())?;
        let bytes = bytemuck::cast_slice_mut(&mut values);
        read_at(&mut self.reader, at, bytes).map_err(|error| unreadable(&self.path, error))?;
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(size_of::<E>()).for_each(<[u8]>::reverse);
        }
        match dtype {
            Some(dtype) if dtype != E::DTYPE => {
                let values: Vec<f32> = values.iter().map(|value| value.to_f64() as f32).collect();
                Tensor::from_f32(device, &values, shape, dtype)
            }
            _ => Tensor::from_slice(device, &values, shape),
        }
    }
}

/// Checks that the tensors fill the file from the end of the header on.
fn entries(
    path: &Path,
    mut tensors: Vec<(String, TensorInfo)>,
    data: u64,
    length: u64,
) -> Result<BTreeMap<String, TensorEntry>> {
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut entries = BTreeMap::new();
    let mut expected = 0;
    for (name, info) in tensors {
        let TensorInfo { dtype, shape, data_offsets: (start, end) } = info;
        let wrong = |reason: String| Err(malformed(path, &name, reason));
        if start != expected {
            return wrong(format!("begins at byte {start} of the data, not at {expected}"));
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |n, &dim| n.checked_mul(dim));
        let Some(bits) = bits else {
            return wrong(format!("has shape {shape:?}, which is more than can be"));
        };
        if end.checked_sub(start).and_then(|bytes| bytes.checked_mul(8)) != Some(bits) {
            return wrong(format!(
                "of shape {shape:?} and type {dtype} cannot be bytes {start} to {end} of the data"
            ));
        }
        if end as u64 > length - data {
            return wrong(format!("ends at byte {end} of the data, which has {}", length - data));
        }
        expected = end;
        let bytes = data + start as u64..data + end as u64;
        let (dtype, dtype_name) = (known(dtype), dtype.to_string());
        entries.insert(name, TensorEntry { dtype, dtype_name, shape, bytes });
    }
    if data + expected as u64 != length {
        let reason =
            format!("describes {} bytes, but the file has {length}", data + expected as u64);
        return Err(malformed(path, "the header", reason));
    }
    Ok(entries)
}

fn known(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::Bf16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}

/// A vector of zeros, or an error where there is no memory for it.
fn zeros<E: Pod>(elements: usize) -> Result<Vec<E>> {
    let mut values = Vec::new();
    let bytes = elements * size_of::<E>();
    values.try_reserve_exact(elements).map_err(|_| Error::OutOfMemory { bytes })?;
    values.resize(elements, E::zeroed());
    Ok(values)
}

fn read_at(reader: &mut (impl Read + Seek), at: u64, into: &mut [u8]) -> io::Result<()> {
    reader.seek(SeekFrom::Start(at))?;
    reader.read_exact(into)
}

/// Why a tensor cannot be read.
pub(super) fn not_numbers(entry: &TensorEntry) -> String {
    format!("it holds {}, not F32, F16 or BF16", entry.dtype_name)
}
