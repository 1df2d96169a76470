//! What is fuzzed: the readers of files, which give an error or what the file holds, never a panic.

pub mod generate;
pub mod random;

use lora_kernels::peft::{self, Adapters, Format, TensorFile};
use lora_kernels::{Adapter, DType, Device, Error, Tensor};
use safetensors::SafeTensors;
use std::io::Cursor;

/// How an input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has not the form of an input.
    None,
    Refused,
    Loaded(Format),
    /// A file of tensors that is not an adapter's.
    Read,
}

/// Adapters, with their configuration, of PEFT or another program.
///
/// Input: a byte of flags, one of the data's length, the configuration, `\0`, and the tensors' file.
/// With the first flag, the file is a header: the length in front and the data behind are added, so
/// that the fuzzer need not guess them. What is loaded is saved and loaded again, if that is asked
/// for.
pub fn peft_load(input: &[u8], save: bool) -> Outcome {
    let [flags, data, rest @ ..] = input else { return Outcome::None };
    let Some(end) = rest.iter().position(|&byte| byte == 0) else { return Outcome::None };
    let (config, tensors) = (&rest[..end], &rest[end + 1..]);
    let file = file(*flags, *data, tensors);
    let dtype =
        [None, Some(DType::F32), Some(DType::Bf16), Some(DType::F16)][usize::from(flags >> 6)];
    match peft::load_from_bytes(config, &file, &Device::cpu(), dtype) {
        Err(Error::Malformed { .. } | Error::Unsupported { .. }) => Outcome::Refused,
        Err(error) => panic!("{error:?}"),
        Ok(loaded) => {
            assert!(SafeTensors::deserialize(&file).is_ok());
            if save {
                save_and_load(&loaded);
            }
            Outcome::Loaded(loaded.format)
        }
    }
}

/// A safetensors file, by itself. Input as for [`peft_load`], without a configuration.
pub fn tensor_file(input: &[u8]) -> Outcome {
    let [flags, data, tensors @ ..] = input else { return Outcome::None };
    let bytes = file(*flags, *data, tensors);
    let mut file = match TensorFile::new("model.safetensors", Cursor::new(&bytes)) {
        Err(Error::Malformed { .. } | Error::Unsupported { .. }) => return Outcome::Refused,
        Err(error) => panic!("{error:?}"),
        Ok(file) => file,
    };
    let names: Vec<String> = file.entries().keys().cloned().collect();
    let mut end = 0;
    for name in &names {
        let entry = file.entries()[name].clone();
        end = end.max(entry.bytes.end);
        match file.tensor(name, &Device::cpu(), None) {
            Ok(tensor) => assert_eq!(tensor.shape().dims(), entry.shape),
            Err(Error::Unsupported { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(names.is_empty() || end == bytes.len() as u64);
    Outcome::Read
}

fn file(flags: u8, data: u8, tensors: &[u8]) -> Vec<u8> {
    match flags & 1 {
        0 => tensors.to_vec(),
        _ => {
            let length = (tensors.len() as u64).to_le_bytes();
            [&length[..], tensors, &vec![0x3c; 2 * usize::from(data)]].concat()
        }
    }
}

fn save_and_load(loaded: &Adapters) {
    let dir = tempfile::tempdir().expect("a directory");
    let adapters = || loaded.adapters.iter().map(|(module, adapter)| (module.as_str(), adapter));
    match peft::save(dir.path(), &loaded.config, adapters()) {
        Ok(()) => {}
        // The parts of a pipeline may differ in it, PEFT's adapters may not.
        Err(Error::Unsupported { key, .. })
            if key == "use_rslora" && loaded.format == Format::Diffusers =>
        {
            return;
        }
        Err(error) => panic!("{error:?}"),
    }
    let again = peft::load(dir.path(), &Device::cpu(), None).expect("loaded again");
    assert!(again.adapters.keys().eq(loaded.adapters.keys()));
    for (one, other) in loaded.adapters.values().zip(again.adapters.values()) {
        assert_same(one, other);
    }
}

fn assert_same(one: &Adapter, other: &Adapter) {
    assert_eq!((one.rank(), one.scaling()), (other.rank(), other.scaling()));
    assert_eq!(one.alpha(), other.alpha());
    let bits = |of: &Tensor| -> Vec<u32> {
        of.to_f32_vec().unwrap().iter().map(|value| value.to_bits()).collect()
    };
    assert_eq!(bits(one.a()), bits(other.a()));
    assert_eq!(bits(one.b()), bits(other.b()));
}
