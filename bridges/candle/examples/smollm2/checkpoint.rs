//! A run in the middle: one file with the adapter, the optimiser's moments and the curves so far.

use crate::Result;
use crate::adamw::AdamW;
use crate::args::Settings;
use candle_core::{Tensor, Var};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

const MOMENTS: [&str; 2] = ["adamw.m", "adamw.v"];

/// What a run has come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The loss of each step.
    pub losses: Vec<f32>,
    /// Loss on what is held out, after so many steps.
    pub held_out: Vec<(usize, f32)>,
}

/// Replaces the file at once: a crash leaves the old one or the new one.
pub fn save(
    path: &Path,
    vars: &[(String, Var)],
    optimiser: &AdamW,
    progress: &Progress,
    settings: &Settings,
) -> Result<()> {
    let mut tensors: BTreeMap<&str, &Tensor> = BTreeMap::new();
    tensors.extend(vars.iter().map(|(name, var)| (name.as_str(), var.as_tensor())));
    tensors.extend(MOMENTS.into_iter().zip(optimiser.moments()));
    let metadata = HashMap::from([
        ("settings".to_string(), serde_json::to_string(settings)?),
        ("progress".to_string(), serde_json::to_string(progress)?),
    ]);
    let partial = path.with_extension("partial");
    safetensors::serialize_to_file(tensors, Some(metadata), &partial)?;
    Ok(fs::rename(partial, path)?)
}

/// A file that was read.
pub struct Checkpoint {
    name: String,
    bytes: Vec<u8>,
    progress: Progress,
}

impl Checkpoint {
    /// Reads the file of a run with these settings.
    pub fn read(path: &Path, settings: &Settings) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| format!("{name}: {error}"))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let field = |key: &str| {
            let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get(key));
            metadata.ok_or_else(|| format!("{name} has no {key}: it is not a checkpoint"))
        };
        let kept: Settings = serde_json::from_str(field("settings")?)?;
        if kept != *settings {
            return Err(format!("{name} is of another run, with {kept:?}").into());
        }
        let progress = serde_json::from_str(field("progress")?)?;
        Ok(Checkpoint { name, bytes, progress })
    }

    /// Restores variables and optimiser.
    pub fn restore(self, vars: &[(String, Var)], optimiser: &mut AdamW) -> Result<Progress> {
        let Checkpoint { name, bytes, progress } = self;
        let (_, first) = vars.first().ok_or("there is nothing to train")?;
        let mut tensors = candle_core::safetensors::load_buffer(&bytes, first.device())?;
        let mut take =
            |key: &str| tensors.remove(key).ok_or_else(|| format!("{name} has no {key}"));
        for (key, var) in vars {
            var.set(&take(key)?)?;
        }
        let [m, v] = MOMENTS;
        optimiser.resume(progress.losses.len(), [take(m)?, take(v)?])?;
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Options;
    use candle_core::Device;

    #[test]
    fn a_run_is_kept() {
        let vars =
            |value: f32| vec![("a".to_string(), Var::new(&[value; 3], &Device::Cpu).unwrap())];
        let step = |vars: &[(String, Var)], optimiser: &mut AdamW| {
            let loss = vars[0].1.sqr().unwrap().sum_all().unwrap();
            optimiser.step(&loss.backward().unwrap()).unwrap();
            vars[0].1.to_vec1::<f32>().unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let settings = Options::default().settings;

        let first = vars(1.0);
        let mut optimiser = AdamW::new(first.clone(), 0.1).unwrap();
        step(&first, &mut optimiser);
        let progress = Progress { losses: vec![0.1], held_out: vec![(0, 1.0 / 3.0)] };
        save(&path, &first, &optimiser, &progress, &settings).unwrap();
        let expected = step(&first, &mut optimiser);

        let second = vars(9.0);
        let mut optimiser = AdamW::new(second.clone(), 0.1).unwrap();
        let checkpoint = Checkpoint::read(&path, &settings).unwrap();
        assert_eq!(checkpoint.restore(&second, &mut optimiser).unwrap(), progress);
        assert_eq!(step(&second, &mut optimiser), expected);

        let other = Settings { rank: 3, ..settings };
        let error = Checkpoint::read(&path, &other).err().expect("an error").to_string();
        assert!(error.contains("is of another run") && error.contains("rank: 16"), "{error}");
    }
}
