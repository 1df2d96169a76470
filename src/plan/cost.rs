//! What launches cost on a class of cards: the rates and latencies from which plans predict µs.

/// Every number that was fitted to a card. Bytes are per µs: 1e6 is 1 TB/s.
///
/// `linear` and `grads` predict with it; only differences between candidates matter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CostModel {
    // ---- Tiles of `linear`, two CTAs of 128 rows at settled clocks ----
    /// µs of a step of 64 along k, for no columns.
    pub(crate) step_us: f64,
    /// µs that a column adds to a step.
    pub(crate) step_column_us: f64,
    /// µs of tensor core time that the epilogue of a tile costs.
    pub(crate) tile_end_us: f64,
    /// µs of the fix-up of a stream-K tile.
    pub(crate) stream_k_us: f64,
    /// µs that a step adds to a launch with stream-K, in which clusters drift apart along k.
    pub(crate) stream_k_step_us: f64,
    /// µs that a cooperative launch costs: all CTAs start together, and none by PDL.
    pub(crate) cooperative_us: f64,

    // ---- Projections ----
    /// Fused: µs from the end of a slice of S to its use by another cluster.
    pub(crate) slice_handover_us: f64,
    /// Dedicated: µs from the start to the first rows of S.
    pub(crate) dedicated_start_us: f64,
    /// Dedicated: bytes of X that a CTA reads, with tiles of 16 ranks.
    pub(crate) dedicated_bytes: f64,
    /// The share of that with wider tiles, which are bound by wgmma too.
    pub(crate) dedicated_wide: f64,
    /// Separate: µs of the launch.
    pub(crate) separate_launch_us: f64,
    /// Separate: bytes of X that the launch reads.
    pub(crate) separate_bytes: f64,

    // ---- dA and dB ----
    /// A launch of their own: its µs.
    pub(crate) grads_launch_us: f64,
    /// A launch of their own: bytes of dH and X that it reads.
    pub(crate) grads_bytes: f64,
    /// Grad CTAs beside dX: µs of the start and the end of an item.
    pub(crate) item_us: f64,
    /// Grad CTAs beside dX: bytes of dH or X that one reads, with tiles of 16, 64 and 128 ranks. A
    /// wgmma of few columns is bound by reading its rows.
    pub(crate) item_bytes: [f64; 3],
    /// What dX loses to grad CTAs for each column that its tiles are narrower than 256: narrow tiles
    /// read their operands more often from the L2, as grad CTAs read dH and X.
    pub(crate) narrow_beside_grads: f64,
    /// What the shorter of dX and its grad CTAs adds to the longer.
    pub(crate) shorter_beside_longer: f64,
}

impl CostModel {
    /// An H100 SXM: HBM3 at 3.07 TB/s, 700 W. Fitted to whole runs.
    pub(crate) const H100_SXM: CostModel = CostModel {
        step_us: 0.045,
        step_column_us: 0.00276,
        tile_end_us: 0.1,
        stream_k_us: 7.0,
        stream_k_step_us: 0.045,
        cooperative_us: 1.0,
        slice_handover_us: 2.8,
        dedicated_start_us: 4.0,
        dedicated_bytes: 90e3,
        dedicated_wide: 0.7,
        separate_launch_us: 9.0,
        separate_bytes: 2.9e6,
        grads_launch_us: 9.0,
        grads_bytes: 2.6e6,
        item_us: 1.5,
        item_bytes: [110e3, 80e3, 42e3],
        narrow_beside_grads: 6e-4,
        shorter_beside_longer: 0.01,
    };
}
