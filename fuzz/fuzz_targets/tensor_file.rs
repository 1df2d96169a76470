//! Safetensors files from arbitrary bytes, see `lora_kernels_fuzz::tensor_file`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    lora_kernels_fuzz::tensor_file(input);
});
