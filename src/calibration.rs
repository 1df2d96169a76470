//! Every way to serve a pass, for `cargo bench --bench calibrate`. Not part of the API.

use crate::device::Device;
use crate::error::Result;
use crate::ops::{Backward, Forward};
use crate::plan::sm90a::linear::Projection;
use crate::plan::{self, Alone, Strategy};
use crate::problem::Problem;

pub use crate::plan::DeviceProfile;
pub use crate::plan::cost::CostModel;

/// A pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// S and H.
    Forward,
    /// dX, dA and dB.
    Backward,
}

/// A way to serve a pass.
#[derive(Debug, Clone)]
pub struct Candidate(plan::Candidate);

impl Candidate {
    /// The µs it is predicted to take; `None` for small batches, whose plans follow rules.
    pub fn predicted_us(&self) -> Option<f64> {
        self.0.us
    }

    /// Its name, which no other of the same pass and problem has.
    pub fn schedule(&self) -> String {
        name(&self.0.plan.strategy)
    }

    /// The forward pass served like this.
    ///
    /// # Errors
    /// As for [`Forward::new`].
    pub fn forward(&self, device: &Device, problem: &Problem) -> Result<Forward> {
        Forward::with_plan(device, problem, self.0.plan)
    }

    /// The backward pass served like this.
    ///
    /// # Errors
    /// As for [`Backward::new`].
    pub fn backward(&self, device: &Device, problem: &Problem) -> Result<Backward> {
        Backward::with_plan(device, problem, self.0.plan)
    }
}

/// All ways to serve a pass with the Hopper kernels; none without them.
pub fn candidates(
    problem: &Problem,
    pass: Pass,
    profile: &DeviceProfile,
    cost: &CostModel,
) -> Vec<Candidate> {
    let all = match pass {
        Pass::Forward => plan::all_forward(problem, profile, cost),
        Pass::Backward => plan::all_backward(problem, profile, cost),
    };
    all.into_iter().map(Candidate).collect()
}

/// The name of the way that is chosen.
pub fn chosen(problem: &Problem, pass: Pass, profile: &DeviceProfile) -> String {
    name(&match pass {
        Pass::Forward => plan::forward(problem, Some(profile)).strategy,
        Pass::Backward => plan::backward(problem, Some(profile)).strategy,
    })
}

fn name(strategy: &Strategy) -> String {
    match strategy {
        Strategy::Reference => "reference".to_string(),
        Strategy::Mma(_) | Strategy::MmaDecode(_) => "mma".to_string(),
        Strategy::Small(launches) => {
            let name = |launch: &Alone| match launch {
                Alone::Decode(s) => format!("decode {}x{}", s.tile_t, s.rows),
                Alone::Short(s) => format!("short {}x{}", s.rows, s.tile_n),
            };
            launches.iter().flatten().map(name).collect::<Vec<_>>().join("; ")
        }
        Strategy::Large(s) => {
            let projection = match s.projection {
                Projection::Separate => "separate".to_string(),
                Projection::Dedicated { proj_clusters } => format!("dedicated {proj_clusters}"),
                Projection::Fused { slice, slice_cols, slice_clusters, .. } => {
                    format!("fused {slice}/{slice_cols}/{slice_clusters}")
                }
            };
            let tail = if s.stream_k { " stream-k" } else { "" };
            match s.grad_clusters {
                0 => format!("{} {projection}{tail}", s.tile_n),
                grads => format!("{} {projection}{tail} grads {grads}", s.tile_n),
            }
        }
    }
}
