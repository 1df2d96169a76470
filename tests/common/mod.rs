//! What the integration tests share: inputs, a run of every operation on any device, and an
//! independent check of single entries.

#![allow(dead_code, unused_imports)] // every test binary uses a part of this

mod inputs;
mod oracle;
#[cfg(feature = "peft")]
pub mod peft;
mod run;

pub use inputs::{Inputs, Of, Rng, Sizes, columns};
pub use oracle::{Expect, check_samples, f32_sums, unit_roundoff};
pub use run::{Buffer, Buffers, DeviceElement, Lent, Outputs, Place, Placement, on_cpu};

use lora_kernels::ops::{Forward, Path};
use lora_kernels::{Device, Element, Problem};
use std::sync::OnceLock;

/// The first CUDA device and its default stream, for the whole process: were every test to make
/// its own, the context would come and go with them.
pub fn cuda() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Device::cuda(0).expect("a CUDA GPU")).clone()
}

/// The device with all its paths, and held to the one that serves every GPU.
pub fn cuda_paths() -> [Device; 2] {
    [cuda(), cuda().generic()]
}

/// The device held to few SMs, which gives small products the tiles and the waits of large ones; the
/// last one to the path that serves every GPU, too.
pub fn few_sms() -> [Device; 3] {
    [cuda().with_sm_limit(6), cuda().with_sm_limit(20), cuda().generic().with_sm_limit(4)]
}

/// The path of a forward pass.
pub fn forward_path(device: &Device, problem: &Problem) -> Path {
    Forward::new(device, problem).expect("a forward pass").path()
}

/// Runs every operation twice in fresh buffers on a CUDA device, and fails unless both runs made
/// the same bits.
pub fn on_cuda<E: DeviceElement>(place: &Place, inputs: &Inputs<E>) -> Outputs<E> {
    let run = || {
        let mut buffers = Buffers::new(place, inputs);
        buffers.enqueue().expect("every operation enqueued");
        buffers.outputs()
    };
    let outputs = run();
    let context = format!("{}, {:?}, a second run", inputs.sizes, place.device);
    outputs.assert_same_bits(&run(), &context);
    outputs
}

/// Fails unless tokens have the same H, S and base H, bit for bit, in smaller batches than this one,
/// all of which are served by the same path.
pub fn check_tokens(device: &Device, sizes: Sizes, smaller: &[usize], path: Path) {
    let run = |inputs: &Inputs<half::bf16>| {
        let on_hopper = device.profile().is_some_and(|profile| profile.hopper());
        let got = forward_path(device, &inputs.problem());
        assert!(got == path || !on_hopper, "{} is served by {got}", inputs.sizes);
        on_cuda(&Place::aligned(device), inputs)
    };
    let all = Inputs::reals(sizes, 9);
    let want = run(&all);
    for &t in smaller {
        let inputs = all.first_tokens(t);
        let Outputs { h, s, base_h, .. } = run(&inputs);
        let context = |output: &str| format!("{output} of {} of {sizes}", inputs.sizes);
        assert_same_bits(&context("s"), &s, &want.s[..s.len()]);
        for (h, want) in h.iter().zip(&want.h) {
            assert_same_bits(&context("h"), h, &want[..h.len()]);
        }
        for (h, want) in base_h.iter().zip(&want.base_h) {
            assert_same_bits(&context("h of base"), h, &want[..h.len()]);
        }
    }
}

/// Fails unless every operation is exact on layers of T, d, k and r, under an SM limit.
pub fn check_exact(device: &Device, shapes: &[([usize; 4], usize)]) {
    for &([t, d, k, r], sms) in shapes {
        let inputs = Inputs::<half::f16>::integers(Sizes::new(t, k, d, r), 5);
        let outputs = on_cuda(&Place::aligned(&device.with_sm_limit(sms)), &inputs);
        outputs.assert_same_values(&on_cpu(&inputs), &format!("{} on {sms}", inputs.sizes));
    }
}

/// Fails unless both hold the same bits.
pub fn assert_same_bits<E: Element>(what: &str, got: &[E], want: &[E]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let same = |(g, w): (&E, &E)| bytemuck::bytes_of(g) == bytemuck::bytes_of(w);
    report_first(what, got, want, same);
}

/// Fails unless both hold the same numbers; unlike the bits, the sign of a zero is free.
pub fn assert_same_values<E: Element>(what: &str, got: &[E], want: &[E]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    report_first(what, got, want, |(g, w)| g.to_f64() == w.to_f64());
}

fn report_first<E: Element>(what: &str, got: &[E], want: &[E], same: impl Fn((&E, &E)) -> bool) {
    let differ: Vec<usize> =
        got.iter().zip(want).enumerate().filter(|(_, p)| !same(*p)).map(|(i, _)| i).collect();
    if let Some(&i) = differ.first() {
        let (got, want) = (got[i].to_f64(), want[i].to_f64());
        let (count, last) = (differ.len(), differ[differ.len() - 1]);
        panic!("{what}: {count} entries differ, {i} to {last}; [{i}] is {got:e}, not {want:e}");
    }
}

/// ‖got − want‖ / ‖want‖, which is NaN if anything is.
pub fn relative_error<E: Element, W: Element>(got: &[E], want: &[W]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut error, mut norm) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        error += (got.to_f64() - want.to_f64()).powi(2);
        norm += want.to_f64().powi(2);
    }
    (error / norm).sqrt()
}
