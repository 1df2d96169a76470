//! Files with bytes changed: an adapter or an error that names the file, never a panic.

use super::extras::{cases, names, save};
use super::files::{CONFIG, WEIGHTS, config, good_weights, load};
use crate::common::random::rng;
use crate::peft_fixtures::fixture;
use lora_kernels::{Device, Error, Result, peft};
use rand::RngExt;
use serde_json::json;
use std::fs;

fn assert_names_a_file(error: &Error) {
    let message = error.to_string();
    assert!(message.contains(CONFIG) || message.contains(WEIGHTS), "{message}");
}

/// Bytes changed, inserted, removed or cut off. What is taken is what the safetensors crate takes
/// too.
#[test]
fn mutated_files_never_panic() {
    let config = config(json!({
        "exclude_modules": "k|(?!q)v{2,3}$",
        "layers_to_transform": [1],
        "layers_pattern": ["layers", "h"],
        "rank_pattern": {r"(?<=l.)q\b|[^\w]": 2},
    }));
    let weights = good_weights();
    let mut rng = rng(1);
    let mut next = |n: usize| rng.random_range(0..n);
    const INTERESTING: &[u8] = b"\"{}[],:09-+eE. \\\x00\xff\x80untrfF";
    let (mut taken, mut refused) = (0, 0);
    for round in 0..200_000 {
        let mut files = [config.clone(), weights.clone()];
        for _ in 0..=next(3) {
            let bytes = &mut files[round % 2];
            // Most of them in the header: data may be anything.
            let at = next(bytes.len().clamp(1, 300));
            if bytes.is_empty() {
                continue;
            }
            match next(6) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = INTERESTING[next(INTERESTING.len())],
                2 => bytes.insert(at, INTERESTING[next(INTERESTING.len())]),
                3 => drop(bytes.remove(at)),
                4 => bytes.truncate(at + 1),
                _ => {
                    let end = (at + next(40)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        match load(&files[0], &files[1]) {
            Ok(loaded) => {
                taken += 1;
                assert!(safetensors::SafeTensors::deserialize(&files[1]).is_ok());
                for adapter in loaded.adapters.values() {
                    assert!((1..=256).contains(&adapter.rank()) && adapter.scale().is_finite());
                }
            }
            Err(error) => {
                refused += 1;
                assert_names_a_file(&error);
            }
        }
    }
    assert!(taken > 5_000 && refused > 50_000, "{taken} taken, {refused} refused");
}

/// PEFT's own files with bytes changed in the header or the configuration: what is taken is saved
/// and loaded again as it is.
#[test]
fn mutated_fixtures_never_panic() -> Result<()> {
    const INTERESTING: &[u8] = b"\"{}[],:0123-. ABbw_wleghtruf";
    let dir = tempfile::tempdir().unwrap();
    let mut rng = rng(2);
    let mut next = |n: usize| rng.random_range(0..n);
    let (mut taken, mut refused) = (0, 0);
    for case in cases() {
        let from = fixture("extras").join(&case);
        let (config, weights) =
            (fs::read(from.join(CONFIG)).unwrap(), fs::read(from.join(WEIGHTS)).unwrap());
        for round in 0..100 {
            let mut files = [config.clone(), weights.clone()];
            for _ in 0..=next(3) {
                let bytes = &mut files[round % 2];
                let header = bytes.len().min(1500);
                let at = next(header);
                match next(4) {
                    0 => bytes[at] ^= 1 << next(8),
                    1 | 2 => bytes[at] = INTERESTING[next(INTERESTING.len())],
                    _ => bytes.swap(at, next(header)),
                }
            }
            match load(&files[0], &files[1]) {
                Ok(loaded) => {
                    taken += 1;
                    save(dir.path(), &loaded.config, &loaded)?;
                    let again = peft::load(dir.path(), &Device::cpu(), None)?;
                    assert!(again.adapters.keys().eq(loaded.adapters.keys()), "{case}");
                    let (one, other) = (loaded.config.extras(), again.config.extras());
                    assert_eq!(names(one), names(other), "{case}");
                    for parameters in one.parameters.values() {
                        let shape: &[usize] = &[3, 8, 8];
                        let shapes: Vec<_> = parameters.candidates().map(|p| (p, shape)).collect();
                        let _ = parameters.fit(&shapes, Some(false));
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert_names_a_file(&error);
                }
            }
        }
    }
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
    Ok(())
}
