//! What launches cost on a class of cards: the rates and latencies from which plans predict µs.

/// Declares [`CostModel`] and [`CostModel::FIELDS`], which calibration goes through by name.
macro_rules! cost_model {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// Every number that was fitted to a class of cards. Bytes are per µs: 1e6 is 1 TB/s.
        ///
        /// Plans predict with it; only differences between candidates matter.
        /// `cargo bench --bench calibrate` fits the fields to the launches it times.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct CostModel {
            $($(#[$doc])* pub(crate) $field: f64,)*
        }

        impl CostModel {
            /// The names of the fields.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// The field of this name.
            pub fn field(&mut self, name: &str) -> Option<&mut f64> {
                match name {
                    $(stringify!($field) => Some(&mut self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

cost_model! {
    // ---- Tiles of `linear`, two CTAs of 128 rows at settled clocks ----
    /// µs of a step of 64 along k, for no columns.
    step_us,
    /// µs that a column adds to a step.
    step_column_us,
    /// µs of tensor core time that the epilogue of a tile costs.
    tile_end_us,
    /// µs of the fix-up of a stream-K tile.
    stream_k_us,
    /// µs that a step adds to a launch with stream-K, in which clusters drift apart along k.
    stream_k_step_us,
    /// µs that a cooperative launch costs: all CTAs start together, and none by PDL.
    cooperative_us,

    // ---- Projections ----
    /// Fused: µs from the end of a slice of S to its use by another cluster.
    slice_handover_us,
    /// Dedicated: µs from the start to the first rows of S.
    dedicated_start_us,
    /// Dedicated: bytes of X that a CTA reads, with tiles of 16 ranks.
    dedicated_bytes,
    /// The share of that with wider tiles, which are bound by wgmma too.
    dedicated_wide,
    /// Separate: µs of the launch.
    separate_launch_us,
    /// Separate: bytes of X that the launch reads.
    separate_bytes,

    // ---- dA and dB ----
    /// A launch of their own: its µs.
    grads_launch_us,
    /// A launch of their own: bytes of dH and X that it reads.
    grads_bytes,
    /// Grad CTAs beside dX: µs of the start and the end of an item.
    item_us,
    /// Grad CTAs beside dX: bytes of dH or X that one reads, with tiles of 16 ranks. A wgmma of few
    /// columns is bound by reading its rows.
    item_bytes_16,
    /// The same with tiles of 64 ranks.
    item_bytes_64,
    /// The same with tiles of 128 ranks.
    item_bytes_128,
    /// What dX loses to grad CTAs for each column that its tiles are narrower than 256: narrow tiles
    /// read their operands more often from the L2, as grad CTAs read dH and X.
    narrow_beside_grads,
    /// What the shorter of dX and its grad CTAs adds to the longer.
    shorter_beside_longer,

    // ---- Tiles of `short` ----
    /// µs of a launch without its steps.
    short_launch_us,
    /// µs of a step of 64 along k, for no rows and columns.
    short_step_us,
    /// µs that each row and each column that a CTA loads adds to a step.
    short_row_us,
    /// Bytes of both operands that the launch reads, at best.
    short_bytes,
    /// µs that dA and dB add to the launch that computes them beside dX.
    short_grads_us,
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
        item_bytes_16: 110e3,
        item_bytes_64: 80e3,
        item_bytes_128: 42e3,
        narrow_beside_grads: 6e-4,
        shorter_beside_longer: 0.01,
        short_launch_us: 4.0,
        short_step_us: 0.05,
        short_row_us: 0.0009,
        short_bytes: 2.9e6,
        short_grads_us: 1.0,
    };
}
