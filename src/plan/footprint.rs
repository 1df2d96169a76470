//! What a launch takes of an SM.

/// Threads and dynamic shared memory of a CTA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) threads: [u32; 2],
    pub(crate) shared_bytes: u32,
}

impl Footprint {
    /// A pipeline of `stages` buffers for m×k and n×k elements of 16 bits.
    pub(super) const fn of_tiles(threads: usize, stages: usize, [m, n, k]: [usize; 3]) -> Self {
        let shared_bytes = (stages * (m + n) * k * 2) as u32;
        Footprint { threads: [threads as u32, 1], shared_bytes }
    }
}
