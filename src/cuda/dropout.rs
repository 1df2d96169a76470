//! Kernels that have an instance with dropout and one without.

use super::last::Last;
use super::operands::Layers;
use crate::driver::params::{KernelParams, WithDropout};
use crate::driver::{Kernel, LaunchMode, Run};
use crate::error::Result;

/// A kernel, with the parameters of its last launch, which were made of a `Key`.
pub(super) enum Launch<Key, P> {
    Whole(Kernel<P>, Last<Key, P>),
    Dropped(Kernel<WithDropout<P>>, Last<Key, WithDropout<P>>),
}

impl<Key: PartialEq, P: KernelParams> Launch<Key, P> {
    pub(super) fn whole(kernel: Option<Kernel<P>>) -> Self {
        Launch::Whole(kernel.expect("there is a kernel for every schedule"), Last::new())
    }

    pub(super) fn dropped(kernel: Option<Kernel<WithDropout<P>>>) -> Self {
        Launch::Dropped(kernel.expect("there is a kernel for every schedule"), Last::new())
    }

    /// With the dropout of these layers.
    pub(super) fn run(
        &self,
        run: &Run<'_>,
        (blocks, mode): (usize, LaunchMode),
        layers: &Layers,
        key: Key,
        params: impl FnOnce() -> Result<P>,
    ) -> Result<()> {
        let grid = [blocks, 1];
        match self {
            Launch::Whole(kernel, last) => {
                last.launch(key, params, |params| run.launch(kernel, grid, mode, params))
            }
            Launch::Dropped(kernel, last) => last.launch(
                key,
                || {
                    let dropout = layers.dropout.expect("checked to have dropout");
                    Ok(WithDropout { pass: params()?, dropout })
                },
                |params| run.launch(kernel, grid, mode, params),
            ),
        }
    }
}
