//! Whether ours and the peers compute the same: a fast wrong product is worth nothing.

use crate::common::Result;
use crate::common::layer::Layer;
use crate::common::matrix::Matrix;
use crate::peers::Peers;
use std::iter;

/// bf16 operands and results leave two right answers about 3e-3 apart.
const TOLERANCE: f64 = 2e-2;

/// Runs everything once over the first buffers and compares the results. Returns the largest
/// difference, relative in norm.
pub fn agreement(layer: &Layer, peers: &Peers<'_>) -> Result<f64> {
    let h: Vec<&Matrix> = layer.projections.iter().map(|one| one.h.at(0)).collect();
    let mut gradients = vec![layer.dx.at(0), &layer.da];
    gradients.extend(layer.projections.iter().map(|one| &one.db));

    let mut largest: f64 = 0.0;
    // Refuses results that differ by more than two right answers do.
    let mut compare = |[this, other]: [&str; 2], ours: &[Vec<f32>], theirs: &[Vec<f32>]| {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let difference = relative_difference(ours, theirs);
            // False for NaN too.
            let agree = difference <= TOLERANCE;
            if !agree {
                return Err(format!("{this} and {other} differ by {difference:.1e}"));
            }
            largest = largest.max(difference);
        }
        Ok(())
    };

    if let Some(peer) = &peers.frozen {
        let ours = fresh(&h, || layer.base(0))?;
        compare(["H of ours frozen", "cuBLASLt"], &ours, &fresh(&h, || peer.run(0))?)?;
    }
    let ours = fresh(&h, || layer.forward(0))?;
    let apart = fresh(&h, || layer.forward_apart(0))?;
    compare(["H of our forward", "ours one after another"], &ours, &apart)?;
    for (name, peer) in [("addmm", &peers.addmm_forward), ("augmented", &peers.augmented_forward)] {
        if let Some(peer) = peer {
            compare(["H of our forward", name], &ours, &fresh(&h, || peer.run(0))?)?;
        }
    }
    let ours = fresh(&gradients, || layer.backward(0))?;
    if let Some(peer) = &peers.addmm_backward {
        let theirs = fresh(&gradients, || peer.run(0))?;
        let names = ["dX of ours", "dA of ours"].into_iter().chain(iter::repeat("dB of ours"));
        for (j, name) in (0..ours.len()).zip(names) {
            compare([name, "addmm"], &ours[j..=j], &theirs[j..=j])?;
        }
    }
    let alone = fresh(&gradients[1..], || layer.backward_ab(0))?;
    compare(["dA, dB of ours", "ours without dX"], &alone, &ours[1..])?;
    Ok(largest)
}

/// Samples of what `call` makes of outputs that hold nothing but NaNs.
fn fresh(outputs: &[&Matrix], call: impl FnOnce() -> Result<()>) -> Result<Vec<Vec<f32>>> {
    outputs.iter().try_for_each(|output| output.poison())?;
    call()?;
    outputs.iter().map(|output| output.sample()).collect()
}

/// ‖a − b‖ / ‖b‖
fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum();
    let difference: f64 = squares(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let reference: f64 = squares(&mut b.iter().map(|&b| f64::from(b)));
    (difference / reference).sqrt()
}
