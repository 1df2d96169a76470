//! Both files of a PEFT directory from arbitrary bytes: an adapter or an error, never a panic.
//!
//! Input: a byte of flags, one of the data's length, the configuration, `\0`, and the tensors'
//! file. With the first flag, the file is a header: the length in front and the data behind are
//! added, so that the fuzzer need not guess them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_kernels::{peft, DType, Device, Error};
use safetensors::SafeTensors;

fuzz_target!(|input: &[u8]| {
    let [flags, data, rest @ ..] = input else { return };
    let Some(end) = rest.iter().position(|&byte| byte == 0) else { return };
    let (config, tensors) = (&rest[..end], &rest[end + 1..]);
    let file = match flags & 1 {
        0 => tensors.to_vec(),
        _ => {
            let length = (tensors.len() as u64).to_le_bytes();
            [&length[..], tensors, &vec![0x3c; 2 * usize::from(*data)]].concat()
        }
    };
    let dtype =
        [None, Some(DType::F32), Some(DType::Bf16), Some(DType::F16)][usize::from(flags >> 6)];

    match peft::load_from_bytes(config, &file, &Device::cpu(), dtype) {
        Err(Error::Malformed { .. } | Error::Unsupported { .. }) => {}
        Err(error) => panic!("{error:?}"),
        Ok(loaded) => {
            assert!(SafeTensors::deserialize(&file).is_ok());
            let dir = tempfile::tempdir().expect("a directory");
            let adapters = loaded.adapters.iter().map(|(module, a)| (module.as_str(), a));
            peft::save(dir.path(), &loaded.config, adapters).expect("saved");
            let again = peft::load(dir.path(), &Device::cpu(), None).expect("loaded again");
            assert!(again.adapters.keys().eq(loaded.adapters.keys()));
            for (one, other) in loaded.adapters.values().zip(again.adapters.values()) {
                assert_eq!((one.rank(), one.scaling()), (other.rank(), other.scaling()));
                assert_eq!(one.alpha(), other.alpha());
                let bits = |of: &lora_kernels::Tensor| -> Vec<u32> {
                    of.to_f32_vec().unwrap().iter().map(|value| value.to_bits()).collect()
                };
                assert_eq!(bits(one.a()), bits(other.a()));
                assert_eq!(bits(one.b()), bits(other.b()));
            }
        }
    }
});
