//! A check that training trains.

use candle_core::backprop::GradStore;
use candle_core::{Result, Var, bail};

/// Refuses gradients that lack one of these variables, and names every missing variable.
///
/// Some of candle's operations have no backward pass, among them `candle_nn::ops::rms_norm`,
/// `rope` and `softmax_last_dim`. The graph ends there, `backward` succeeds, and an optimiser
/// skips variables without a gradient: the layers below are silently not trained.
///
/// # Errors
/// If a variable has no gradient.
pub fn check_gradients(gradients: &GradStore, vars: &[(&str, &Var)]) -> Result<()> {
    let missing: Vec<_> = vars
        .iter()
        .filter(|(_, var)| gradients.get(var).is_none())
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        let (n, of, names) = (missing.len(), vars.len(), missing.join(", "));
        bail!("{n} of {of} variables have no gradient: {names}")
    }
    Ok(())
}
