//! Whether a weight is stored as [d, k], as linear layers have it, or as [k, d], as GPT-2's
//! `Conv1D` has it.
//!
//! PEFT knows from the module's class. Here shapes decide, and for square weights the rest of the
//! checkpoint. `fan_in_fan_out` in the adapter's file is the last evidence: PEFT itself writes
//! `false` for an adapter of `Conv1D` modules if its last target is a linear layer.

use crate::Result;
use crate::args::Transposed;
use crate::checkpoint::Checkpoint;
use crate::model::Model;

/// The `Conv1D` modules of the models in transformers, by the last part of their names. Other
/// models (GPT-BigCode) give these names to linear layers.
const CONV1D_MODULES: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];

/// What tells how the square weights of a checkpoint are stored.
pub struct Layouts {
    asked: Transposed,
    /// From the modules with names of `Conv1D` modules that are not square.
    siblings: Option<bool>,
    has_conv1d: Option<bool>,
    fan_in_fan_out: bool,
}

impl Layouts {
    pub fn new(
        checkpoint: &Checkpoint,
        model: &Model,
        fan_in_fan_out: bool,
        asked: Transposed,
    ) -> Self {
        let siblings = siblings(checkpoint);
        Layouts { asked, siblings, has_conv1d: model.has_conv1d(), fan_in_fan_out }
    }

    /// Whether the weight of a module is [k, d]; `None` if it has neither shape.
    pub fn transposed(
        &self,
        module: &str,
        shape: &[usize],
        [d, k]: [usize; 2],
    ) -> Result<Option<bool>> {
        if shape != [d, k] {
            return Ok((shape == [k, d]).then_some(true));
        }
        if d != k {
            return Ok(Some(false));
        }
        match self.asked {
            Transposed::Yes => return Ok(Some(true)),
            Transposed::No => return Ok(Some(false)),
            Transposed::Auto => {}
        }
        let named = CONV1D_MODULES.contains(&last(module));
        // What is known of the model settles all of its modules.
        if let Some(known) = self.siblings.or(self.has_conv1d) {
            return Ok(Some(known && named));
        }
        match (named, self.fan_in_fan_out) {
            (false, false) => Ok(Some(false)),
            (true, true) => Ok(Some(true)),
            _ => Err(format!(
                "{module}.weight is square, and nothing tells whether it is stored transposed, as \
                 by GPT-2's Conv1D: no config.json beside the checkpoint names its model_type; say \
                 --transposed yes or --transposed no"
            )
            .into()),
        }
    }
}

/// How the modules with names of `Conv1D` modules are stored, from those with a bias [d] and a
/// weight that is not square.
fn siblings(checkpoint: &Checkpoint) -> Option<bool> {
    let mut found = None;
    for name in checkpoint.names() {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        if !CONV1D_MODULES.contains(&last(module)) {
            continue;
        }
        let bias = checkpoint.find(&format!("{module}.bias")).map(|(_, entry)| &entry.shape[..]);
        let weight = checkpoint.find(name).map(|(_, entry)| &entry.shape[..]);
        let (Some(&[rows, cols]), Some(&[d])) = (weight, bias) else { continue };
        if rows == cols || (d != rows && d != cols) {
            continue;
        }
        match found {
            Some(known) if known != (d == cols) => return None,
            _ => found = Some(d == cols),
        }
    }
    found
}

/// The last part of a module's path.
fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}
