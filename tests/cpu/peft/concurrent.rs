//! Loading and saving one directory at the same time.

use super::files::{CONFIG, WEIGHTS, parts};
use lora_kernels::peft::{self, Config, TensorFile};
use lora_kernels::{Adapter, DType, Device, Scaling, Tensor};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// An adapter whose A, B and alpha are all the same number.
fn adapter(value: f32) -> Adapter {
    let filled = |shape: [usize; 2]| {
        Tensor::from_f32(&Device::cpu(), &vec![value; shape[0] * shape[1]], shape, DType::F32)
            .unwrap()
    };
    Adapter::from_tensors(filled([2, 3]), filled([4, 2]), value, Scaling::Standard).unwrap()
}

fn save(dir: &Path, value: f32) -> lora_kernels::Result<()> {
    peft::save(dir, &Config::default(), [("q", &adapter(value))])
}

/// The number that the loaded adapter is of.
fn load(dir: &Path) -> lora_kernels::Result<f32> {
    let adapter = peft::load(dir, &Device::cpu(), None)?.adapters.remove("q").unwrap();
    let values = [adapter.a().to_vec::<f32>()?, adapter.b().to_vec::<f32>()?].concat();
    let alpha = adapter.alpha();
    assert!(values.iter().all(|&value| value == alpha), "alpha {alpha} with {values:?}");
    Ok(alpha)
}

/// Three savers and a loader: no load sees two saves, and none fails.
#[test]
fn no_load_sees_two_saves() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    save(dir, 1.0).unwrap();
    let done = AtomicBool::new(false);
    let mut seen = [0usize; 4];
    std::thread::scope(|scope| {
        for value in [1.0, 2.0, 3.0] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    save(dir, value).unwrap();
                }
            });
        }
        // Also if a load fails: the savers are to end.
        let loads = std::panic::catch_unwind(|| {
            let mut seen = [0usize; 4];
            (0..5000).for_each(|_| seen[load(dir).unwrap() as usize] += 1);
            seen
        });
        done.store(true, Ordering::Relaxed);
        seen = loads.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(seen[1..].iter().all(|&n| n > 0), "{seen:?}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "nothing is left over");
}

/// A save that was killed between its two files is found out. A configuration that was edited
/// afterwards is taken, and so are files that do not know of each other.
#[test]
fn halves_of_two_saves_are_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(one.path(), 1.0).unwrap();
    save(other.path(), 2.0).unwrap();
    let (weights, config) = (one.path().join(WEIGHTS), one.path().join(CONFIG));
    fs::rename(other.path().join(WEIGHTS), &weights).unwrap();
    let (variant, key, message) = parts(&load(one.path()).unwrap_err());
    assert_eq!((variant, key.as_str()), ("malformed", "the file"));
    assert!(message.contains(WEIGHTS) && message.contains("of another save"), "{message}");

    let later = SystemTime::now() + Duration::from_secs(1);
    File::options().write(true).open(&config).unwrap().set_modified(later).unwrap();
    let loaded = peft::load(one.path(), &Device::cpu(), None).unwrap();
    assert_eq!(loaded.adapters["q"].alpha(), 1.0);
    // The fingerprint is not needed.
    let mut file = TensorFile::open(&weights).unwrap();
    assert_eq!(
        file.tensor("base_model.model.q.lora_A.weight", &Device::cpu(), None)
            .unwrap()
            .to_vec::<f32>()
            .unwrap()[0],
        2.0
    );
}
