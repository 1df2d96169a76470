//! What launches cost on a class of cards: the rates and latencies from which plans predict µs.

use super::rates::Rates;

/// What a field is proportional to, on cards whose rates differ from those it was fitted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scales {
    /// µs that SMs work: as 1 / clock.
    Clock,
    /// Bytes that an SM reads in a µs: as the clock.
    SmBytes,
    /// Bytes that a launch reads in a µs: as the memory's rate.
    MemoryBytes,
    /// Latencies, shares, and what serves all classes alike.
    Fixed,
}

/// Declares [`CostModel`] and [`CostModel::FIELDS`], which calibration goes through by name.
macro_rules! cost_model {
    ($($(#[$doc:meta])* $field:ident: $scales:ident,)*) => {
        /// Every number that was fitted to a class of cards. Bytes are per µs: 1e6 is 1 TB/s.
        ///
        /// Plans predict with it; only differences between candidates matter.
        /// `cargo bench --bench calibrate` fits the fields to the launches it times. The fields of
        /// `decode` stay: its plans follow rules and predict nothing.
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

            /// The same for a card of other rates.
            fn scaled(mut self, clock: f64, memory: f64) -> Self {
                $(self.$field *= match Scales::$scales {
                    Scales::Clock => 1.0 / clock,
                    Scales::SmBytes => clock,
                    Scales::MemoryBytes => memory,
                    Scales::Fixed => 1.0,
                };)*
                self
            }
        }
    };
}

cost_model! {
    // ---- Tiles of `linear`, two CTAs of 128 rows at settled clocks ----
    /// µs of a step of 64 along k, for no columns.
    step_us: Clock,
    /// µs that a column adds to a step.
    step_column_us: Clock,
    /// µs of tensor core time that the epilogue of a tile costs.
    tile_end_us: Clock,
    /// µs of the fix-up of a stream-K tile.
    stream_k_us: Fixed,
    /// µs that a step adds to a launch with stream-K, in which clusters drift apart along k.
    stream_k_step_us: Clock,
    /// µs that a cooperative launch costs: all CTAs start together, and none by PDL.
    cooperative_us: Fixed,

    // ---- Projections ----
    /// Fused: µs from the end of a slice of S to its use by another cluster.
    slice_handover_us: Fixed,
    /// Dedicated: µs from the start to the first rows of S.
    dedicated_start_us: Fixed,
    /// Dedicated: bytes of X that a CTA reads, with tiles of 16 ranks.
    dedicated_bytes: SmBytes,
    /// The share of that with wider tiles, which are bound by wgmma too.
    dedicated_wide: Fixed,
    /// Separate: µs of the launch.
    separate_launch_us: Fixed,
    /// Separate: bytes of X that the launch reads.
    separate_bytes: MemoryBytes,

    // ---- dA and dB ----
    /// A launch of their own: its µs.
    grads_launch_us: Fixed,
    /// A launch of their own: bytes of dH and X that it reads.
    grads_bytes: MemoryBytes,
    /// Grad CTAs beside dX: µs of the start and the end of an item.
    item_us: Fixed,
    /// Grad CTAs beside dX: bytes of dH or X that one reads, with tiles of 16 ranks. A wgmma of few
    /// columns is bound by reading its rows.
    item_bytes_16: SmBytes,
    /// The same with tiles of 64 ranks.
    item_bytes_64: SmBytes,
    /// The same with tiles of 128 ranks.
    item_bytes_128: SmBytes,
    /// What dX loses to grad CTAs for each column that its tiles are narrower than 256: narrow tiles
    /// read their operands more often from the L2, as grad CTAs read dH and X.
    narrow_beside_grads: Fixed,
    /// What the shorter of dX and its grad CTAs adds to the longer.
    shorter_beside_longer: Fixed,

    // ---- Dropout: estimates, which `calibrate` does not fit ----
    /// Bytes of X that a grad CTA drops elements of, beside what else it does.
    drop_bytes: SmBytes,
    /// Bytes of dX that a CTA drops elements of.
    drop_tile_bytes: SmBytes,

    // ---- `decode`: bytes are of W0, and of a CTA ----
    /// Elements of W0 that a cluster reads, up to which a launch is short.
    decode_short_elements: Fixed,
    /// Bytes in flight with two CTAs per SM.
    decode_half_in_flight: Fixed,
    /// Bytes in flight with one CTA per SM. More only queues, and S queues behind it.
    decode_in_flight: Fixed,
    /// The same in a forward that is not short.
    decode_long_forward_in_flight: Fixed,
    /// Bytes to prefetch before the PDL wait. They compete with the launch before.
    decode_prefetch: Fixed,
    /// The same in a launch that is not short.
    decode_long_prefetch: Fixed,
    /// Bytes left at the PDL trigger, for up to 16 tokens. Earlier, prefetches of the next launch
    /// compete with this one; later, they come too late.
    decode_left_16: Fixed,
    /// The same for up to 32 tokens.
    decode_left_32: Fixed,
    /// The same for up to 64 tokens.
    decode_left_64: Fixed,
}

impl CostModel {
    /// For a card of these rates: of the classes that were fitted, the one with the nearest memory
    /// rate, scaled. Without rates, an H100 SXM.
    pub(crate) fn of(rates: &Rates) -> CostModel {
        const CLASSES: [(Rates, CostModel); 2] =
            [(Rates::H100_SXM, CostModel::H100_SXM), (Rates::H200, CostModel::H200)];
        let ratio = |to: usize, from: usize| to as f64 / from as f64;
        let distance =
            |(of, _): &(Rates, CostModel)| ratio(rates.memory_mb_s, of.memory_mb_s).ln().abs();
        if rates.memory_mb_s == 0 || rates.clock_mhz == 0 {
            return CostModel::H100_SXM;
        }
        let nearest = CLASSES.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let (of, cost) = nearest.expect("there are classes");
        cost.scaled(ratio(rates.clock_mhz, of.clock_mhz), ratio(rates.memory_mb_s, of.memory_mb_s))
    }

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
        drop_bytes: 22e3,
        drop_tile_bytes: 15e3,
        decode_short_elements: 524_288.0,
        decode_half_in_flight: 81_920.0,
        decode_in_flight: 65_536.0,
        decode_long_forward_in_flight: 98_304.0,
        decode_prefetch: 49_152.0,
        decode_long_prefetch: 131_072.0,
        decode_left_16: 131_072.0,
        decode_left_32: 98_304.0,
        decode_left_64: 65_536.0,
    };
    /// An H200: HBM3e at 4.6 TB/s, 700 W. Fitted to benches/results/h200-calibration.json.
    pub(crate) const H200: CostModel = CostModel {
        step_us: 0.0303,
        step_column_us: 0.0029,
        tile_end_us: 0.513,
        stream_k_us: 7.23,
        stream_k_step_us: 0.00752,
        cooperative_us: 1.157,
        slice_handover_us: 2.228,
        dedicated_start_us: 6.91,
        dedicated_bytes: 95.15e3,
        dedicated_wide: 0.8192,
        separate_launch_us: 17.05,
        separate_bytes: 6.125e6,
        grads_launch_us: 10.0,
        grads_bytes: 2.678e6,
        item_us: 2.38,
        item_bytes_16: 131e3,
        item_bytes_64: 82.28e3,
        item_bytes_128: 42e3,
        narrow_beside_grads: 1.515e-4,
        shorter_beside_longer: 0.0377,
        drop_bytes: 22e3,
        drop_tile_bytes: 15e3,
        decode_short_elements: 524_288.0,
        decode_half_in_flight: 81_920.0,
        decode_in_flight: 65_536.0,
        decode_long_forward_in_flight: 98_304.0,
        decode_prefetch: 49_152.0,
        decode_long_prefetch: 131_072.0,
        decode_left_16: 131_072.0,
        decode_left_32: 98_304.0,
        decode_left_64: 65_536.0,
    };
}
