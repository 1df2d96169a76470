//! A shard with plain weights in the place of quantised ones, as a reader.

use super::{Found, Packed, Place, Scales, at};
use crate::Result;
use crate::shard::Shard;
use lora_kernels::DType;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

/// How many elements are decoded at a time.
const CHUNK: usize = 1 << 20;

/// What follows what in the file.
#[derive(Debug)]
pub struct Layout {
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    start: u64,
    length: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Header(Vec<u8>),
    Copy(Place),
    Weight(Box<Packed>),
}

impl Layout {
    /// The file of a shard without the quantised weights, which are taken out of `found`.
    pub fn new(shard: &Shard, found: &mut Found) -> Result<Self> {
        let mut entries: Vec<_> = shard.entries().iter().collect();
        entries.sort_by_key(|(name, entry)| (entry.bytes.start, entry.bytes.end, *name));
        let (mut header, mut contents, mut end) = (Map::new(), Vec::new(), 0);
        if let Some(metadata) = metadata(shard.path())? {
            header.insert("__metadata__".into(), metadata);
        }
        for (name, entry) in entries {
            if found.parts.contains(name) {
                continue;
            }
            let (dtype, shape, content) = match found.weights.remove(name) {
                Some(weight) => (
                    name_of(weight.dtype).into(),
                    weight.shape.clone(),
                    Content::Weight(Box::new(weight)),
                ),
                None => {
                    let place = at(shard.path(), entry);
                    (place.dtype.clone(), place.shape.clone(), Content::Copy(place))
                }
            };
            let start = end;
            end += length(&content);
            let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), info);
            contents.push(content);
        }
        let mut json = serde_json::to_vec(&header)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let json = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        let mut start = 0;
        let contents = [Content::Header(json)].into_iter().chain(contents);
        let segments = contents.map(|content| {
            let segment = Segment { start, length: length(&content), content };
            start += segment.length;
            segment
        });
        Ok(Layout { segments: segments.collect() })
    }

    pub fn length(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.start + last.length)
    }
}

fn length(content: &Content) -> u64 {
    match content {
        Content::Header(bytes) => bytes.len() as u64,
        Content::Copy(place) => place.len(),
        Content::Weight(weight) => weight.bytes(),
    }
}

fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        _ => "F32",
    }
}

/// The metadata of a file whose header has been read before.
fn metadata(path: &Path) -> Result<Option<Value>> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut json = Vec::new();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut json)?;
    let header: Map<String, Value> = serde_json::from_slice(&json)?;
    Ok(header.get("__metadata__").filter(|metadata| metadata.is_object()).cloned())
}

/// A shard of a checkpoint, read from its file or decoded.
#[derive(Debug)]
pub enum Reader {
    File(File),
    Unpacked { layout: Rc<Layout>, at: u64, scales: Option<(usize, Scales)> },
}

impl Reader {
    pub fn open(path: &Path, layout: Option<&Rc<Layout>>) -> io::Result<Self> {
        Ok(match layout {
            Some(layout) => Reader::Unpacked { layout: layout.clone(), at: 0, scales: None },
            None => Reader::File(File::open(path)?),
        })
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (layout, at, scales) = match self {
            Reader::File(file) => return file.read(into),
            Reader::Unpacked { layout, at, scales } => (layout, at, scales),
        };
        // Empty tensors have no byte.
        let next = layout.segments.partition_point(|segment| segment.start <= *at);
        let Some(index) = next.checked_sub(1) else { return Ok(0) };
        let Segment { start, length, content } = &layout.segments[index];
        let within = *at - start;
        let left = length.saturating_sub(within).min(into.len() as u64);
        if left == 0 {
            return Ok(0);
        }
        let count = match content {
            Content::Header(bytes) => {
                let bytes = &bytes[within as usize..][..left as usize];
                into[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            Content::Copy(place) => {
                let count = left.min(4 * CHUNK as u64);
                into[..count as usize].copy_from_slice(&place.read(within..within + count)?);
                count as usize
            }
            Content::Weight(weight) => {
                if scales.as_ref().is_none_or(|(of, _)| *of != index) {
                    *scales = Some((index, weight.scales()?));
                }
                let (_, scales) = scales.as_ref().expect("set above");
                let size = weight.dtype.bytes() as u64;
                let first = within / size;
                let end = (within + left).div_ceil(size).min(first + CHUNK as u64);
                let bytes = weight.decode(scales, first as usize..end as usize)?;
                let bytes = &bytes[(within - first * size) as usize..];
                let count = bytes.len().min(left as usize);
                into[..count].copy_from_slice(&bytes[..count]);
                count
            }
        };
        *at += count as u64;
        Ok(count)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (layout, at) = match self {
            Reader::File(file) => return file.seek(to),
            Reader::Unpacked { layout, at, .. } => (layout, at),
        };
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => layout.length().checked_add_signed(by),
            SeekFrom::Current(by) => at.checked_add_signed(by),
        };
        *at = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(*at)
    }
}
