//! Adapters of PEFT and of other programs from arbitrary bytes, see `lora_kernels_fuzz::peft_load`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    lora_kernels_fuzz::peft_load(input, true);
});
