//! How the kernels for many tokens are launched, and the elementwise ones.

use crate::manifest::sm80::linear::{
    DROPOUT_TILES, STAGES_BYTES, TILES, UNALIGNED_DROPOUT_TILES, UNALIGNED_TILES,
};
use crate::manifest::sm80::{merge, project, round, tile::RANK_TILES};
use crate::plan::profile::DeviceProfile;
use crate::plan::rates::HOPPER_MMA_RATE;
use crate::problem::MAX_PROJECTIONS;
use std::fmt;

/// The clocks that a tile of kernels/sm80/linear.cuh takes on an SM of an H200 by itself, in the
/// order of `TILES`: for 64 of k, and for the rest, which is the start of the pipeline and the
/// epilogue.
///
/// Fitted at k = 4096 and 8192 and up to 8 waves of tiles. Two CTAs with tiles of 64×64 fit on one
/// of its SMs, which takes their time one after the other.
const TILE_CLOCKS: [[f64; 2]; TILES.len()] =
    [[1811.0, 7000.0], [1015.0, 4400.0], [617.0, 3100.0], [400.0, 2500.0], [240.0, 2400.0]];

/// A tile of an output of kernels/sm80/linear.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinearTile {
    pub(crate) m: usize,
    pub(crate) n: usize,
}

impl LinearTile {
    /// The one of these that takes the least time for an output of m×n, a sum over `k` columns.
    fn fastest(of: &[[usize; 2]], output: [usize; 2], k: usize, profile: &DeviceProfile) -> Self {
        let tiles = of.iter().map(|&[m, n]| LinearTile { m, n });
        // The widest of equals, which is first.
        let best = tiles
            .min_by(|a, b| a.clocks(output, k, profile).total_cmp(&b.clocks(output, k, profile)));
        best.expect("there are tiles")
    }

    /// What an output of m×n takes: waves of a tile for each SM.
    fn clocks(self, output: [usize; 2], k: usize, profile: &DeviceProfile) -> f64 {
        let ctas = self.ctas(output);
        // The limit of a grid: outputs of many terabytes have wide tiles.
        if i32::try_from(ctas).is_err() {
            return f64::INFINITY;
        }
        let [k64, rest] = self.tile_clocks(profile);
        ctas.div_ceil(profile.sms()) as f64 * (k as f64 / 64.0 * k64 + rest)
    }

    /// `TILE_CLOCKS` on an SM of this card. A heuristic: only an H200 has been measured.
    ///
    /// The first column is the time of a tile's FMAs at an H200's rate, and about 200 clocks for
    /// barriers and latencies; of the narrowest tile, which is bound by filling shared memory, 140.
    /// Only the FMAs scale.
    ///
    /// Two other bounds do not choose a tile. To fill shared memory, at 64 bytes a clock, takes no
    /// longer than this. All tiles read about as much memory, because CTAs of a wave share in the
    /// L2 what they read.
    pub(crate) fn tile_clocks(self, profile: &DeviceProfile) -> [f64; 2] {
        let at = TILES.iter().position(|&[m, n]| [m, n] == [self.m, self.n]);
        let [k64, rest] = TILE_CLOCKS[at.expect("a tile of the kernel")];
        let fmas = (self.m * self.n * 64) as f64;
        [k64 + fmas / profile.mma_rate() as f64 - fmas / HOPPER_MMA_RATE as f64, rest]
    }

    /// CTAs that run at once, at most.
    ///
    /// A launch with projections has idle CTAs up to this number, unless it is one wave. An H200
    /// deals out a smaller grid badly: with 16 projection CTAs before 128 tiles, 4 SMs get two
    /// tiles, which take twice as long. In a grid that fills the GPU, the SMs of the first CTAs,
    /// the projections, get a second CTA first.
    ///
    /// `shifts`: of the instance that shifts unaligned rows.
    pub(crate) fn whole_gpu(self, shifts: bool, profile: &DeviceProfile) -> usize {
        let by_registers = if self.m == 64 && !shifts { 2 } else { 1 };
        profile.sms() * profile.ctas_per_sm(STAGES_BYTES).min(by_registers)
    }

    /// The tiles of an output of m×n.
    pub(crate) fn ctas(self, [m, n]: [usize; 2]) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }
}

impl fmt::Display for LinearTile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{} tiles", self.m, self.n)
    }
}

/// The tiles of a pass: of H for every layer, or of dX. Unused entries are `None`.
///
/// Narrow tiles have another order of sums than the widest: all tiles of a pass are one or the
/// other. That a batch is short, and which tiles serve longer ones, is a matter of the layer alone:
/// of all batches that are short, or that are not, a token has the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinearSchedule {
    pub(crate) tiles: [Option<LinearTile>; MAX_PROJECTIONS],
    /// What serves rows that do not start at multiples of 16 bytes instead, where tiles are narrow.
    pub(crate) unaligned: [Option<LinearTile>; MAX_PROJECTIONS],
    /// Narrow tiles, and S or dS in the first launch of the pass; otherwise a launch before
    /// computes it.
    pub(crate) short: bool,
}

/// The tiles that there are of an output: the widest first, and for rows that do not start at
/// multiples of 16 bytes; and whether there is a launch of them that computes S too.
#[derive(Clone, Copy)]
struct Tiles {
    aligned: &'static [[usize; 2]],
    unaligned: &'static [[usize; 2]],
    with_s: bool,
}

impl LinearSchedule {
    const WHOLE: Tiles = Tiles { aligned: &TILES, unaligned: &UNALIGNED_TILES, with_s: true };
    const DROPPED: Tiles =
        Tiles { aligned: &DROPOUT_TILES, unaligned: &UNALIGNED_DROPOUT_TILES, with_s: false };

    /// Of an empty batch.
    pub(crate) const NONE: Self = LinearSchedule {
        tiles: [None; MAX_PROJECTIONS],
        unaligned: [None; MAX_PROJECTIONS],
        short: false,
    };
    /// Tokens of a short batch, at most: of more, the partial sums of S are not small.
    pub(crate) const SHORT_TOKENS: usize = 2048;
    /// Tokens of a batch that is long for every layer.
    const LONG_TOKENS: usize = 8192;

    /// Of outputs T×n, each a sum over k columns, given n and k. The ranks have no say: with an
    /// adapter the frozen layer is summed as without.
    fn new(
        t: usize,
        outputs: impl Iterator<Item = [usize; 2]> + Clone,
        of_tiles: Tiles,
        profile: &DeviceProfile,
    ) -> Self {
        let of = |t, all: &[[usize; 2]]| {
            let mut tiles = [None; MAX_PROJECTIONS];
            let mut clocks = 0.0;
            for (entry, [n, k]) in tiles.iter_mut().zip(outputs.clone()) {
                let tile = LinearTile::fastest(all, [t, n], k, profile);
                clocks += tile.clocks([t, n], k, profile);
                *entry = Some(tile);
            }
            (clocks, tiles)
        };
        let [narrow, widest] = [&of_tiles.aligned[1..], &of_tiles.aligned[..1]];
        let [narrow, widest] = [narrow, widest].map(|tiles| move |t| of(t, tiles));
        let are_narrow = |t| narrow(t).0 < widest(t).0;
        let always = are_narrow(Self::LONG_TOKENS);
        let short = of_tiles.with_s && t <= Self::SHORT_TOKENS && (always || are_narrow(t));
        if short || always {
            let ((_, tiles), (_, unaligned)) = (narrow(t), of(t, of_tiles.unaligned));
            LinearSchedule { tiles, unaligned, short }
        } else {
            let (_, tiles) = widest(t);
            LinearSchedule { tiles, unaligned: [None; MAX_PROJECTIONS], short }
        }
    }

    /// Of H of layers of these (d, r).
    pub(crate) fn forward(
        [t, k]: [usize; 2],
        layers: &[(usize, usize)],
        profile: &DeviceProfile,
    ) -> Self {
        LinearSchedule::of_h([t, k], layers, Self::WHOLE, profile)
    }

    /// The same where a launch before computes S, of X with dropout.
    pub(crate) fn forward_after_s(
        [t, k]: [usize; 2],
        layers: &[(usize, usize)],
        profile: &DeviceProfile,
    ) -> Self {
        let tiles = Tiles { with_s: false, ..Self::WHOLE };
        LinearSchedule::of_h([t, k], layers, tiles, profile)
    }

    fn of_h(
        [t, k]: [usize; 2],
        layers: &[(usize, usize)],
        tiles: Tiles,
        profile: &DeviceProfile,
    ) -> Self {
        LinearSchedule::new(t, layers.iter().map(|&(d, _)| [d, k]), tiles, profile)
    }

    /// Of dX of layers of these (d, r).
    pub(crate) fn input_grad(
        [t, k]: [usize; 2],
        layers: &[(usize, usize)],
        profile: &DeviceProfile,
    ) -> Self {
        LinearSchedule::of_dx([t, k], layers, Self::WHOLE, profile)
    }

    /// The same with dropout.
    pub(crate) fn input_grad_dropout(
        [t, k]: [usize; 2],
        layers: &[(usize, usize)],
        profile: &DeviceProfile,
    ) -> Self {
        LinearSchedule::of_dx([t, k], layers, Self::DROPPED, profile)
    }

    fn of_dx(
        [t, k]: [usize; 2],
        layers: &[(usize, usize)],
        tiles: Tiles,
        profile: &DeviceProfile,
    ) -> Self {
        let d = layers.iter().map(|&(d, _)| d).sum();
        LinearSchedule::new(t, std::iter::once([k, d]), tiles, profile)
    }
}

/// The tiles of each layer.
impl fmt::Display for LinearSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tiles = self.tiles.iter().flatten().enumerate();
        tiles.try_for_each(|(i, tile)| write!(f, "{} {tile}", if i == 0 { "" } else { ";" }))
    }
}

/// The grid of kernels/sm80/project.cu for an output of m×r.
pub(crate) fn project_blocks(m: usize, r: usize, dropout: bool) -> usize {
    let tile_m = match (dropout, rank_tile(r)) {
        (true, 16) => project::DROPOUT_TILE_M,
        _ => project::TILE_M,
    };
    m.div_ceil(tile_m) * r.div_ceil(rank_tile(r))
}

/// The grid of kernels/sm80/round.cu for segments of so many elements: a CTA for every chunk of
/// each, and no more than run at the same time.
pub(crate) fn round_blocks(elements: impl Iterator<Item = usize>, sms: usize) -> usize {
    let chunks = elements.map(|elements| elements.div_ceil(round::CHUNK)).sum::<usize>();
    chunks.min(8 * sms)
}

/// The grid of kernels/sm80/merge.cu for a weight of d×k.
pub(crate) fn merge_blocks([d, k]: [usize; 2]) -> usize {
    d.div_ceil(merge::TILE_D) * k.div_ceil(merge::TILE_K)
}

/// The tile along r of the kernels that serve this rank.
pub(crate) fn rank_tile(r: usize) -> usize {
    let [narrow, wide] = RANK_TILES;
    if r <= narrow { narrow } else { wide }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sm80::linear::{FLAG_ROWS, WARP_K, WIDE_TILE_N};
    use crate::plan::testing::shapes;
    use crate::problem::{MAX_RANK, MAX_SIZE};

    /// All presets, and an H200 with fewer SMs.
    fn cards() -> Vec<DeviceProfile> {
        let limits = [2, 60, 132].map(|sms| DeviceProfile::h200().with_sm_limit(sms));
        DeviceProfile::presets().into_iter().chain(limits).collect()
    }

    const WIDEST: LinearTile = LinearTile { m: TILES[0][0], n: TILES[0][1] };

    fn is_widest(tile: LinearTile) -> bool {
        tile == WIDEST
    }

    #[test]
    fn linear_tiles_cover_the_output_and_fit_the_grid() {
        for ([t, k, d, r], card) in shapes().zip(cards().iter().cycle()) {
            let of_h = LinearSchedule::forward([t, k], &[(d, r), (k, r)], card);
            let of_dx = LinearSchedule::input_grad([t, k], &[(d, r), (k, r)], card);
            let [h0, h1] = [of_h.tiles[0], of_h.tiles[1]].map(Option::unwrap);
            assert_eq!((of_h.tiles[2], of_dx.tiles[1]), (None, None));
            for (tile, output) in [(h0, [t, d]), (h1, [t, k]), (of_dx.tiles[0].unwrap(), [t, k])] {
                let context = format!("{output:?} on {}: {tile:?}", card.name());
                assert!(TILES.contains(&[tile.m, tile.n]), "{context}");
                let [m, n] = output;
                let [tiles_m, tiles_n] = [m.div_ceil(tile.m), n.div_ceil(tile.n)];
                assert!(tiles_m * tile.m >= m && tiles_n * tile.n >= n, "{context}");
                assert_eq!(tile.ctas(output), tiles_m * tiles_n, "{context}");
                assert!(i32::try_from(tile.ctas(output)).is_ok(), "{context}");
            }
            assert_eq!(is_widest(h0), is_widest(h1), "two orders of sums");
            for of in [of_h, of_dx] {
                let narrow = !is_widest(of.tiles[0].unwrap());
                assert_eq!(
                    of.unaligned.map(|tile| tile.is_some()),
                    of.tiles.map(|t| narrow && t.is_some())
                );
                for tile in of.unaligned.into_iter().flatten() {
                    assert!(UNALIGNED_TILES.contains(&[tile.m, tile.n]), "{tile:?}");
                }
            }
        }
        // No tile makes the grid fit.
        let huge = LinearSchedule::forward([MAX_SIZE, 8], &[(MAX_SIZE, 1)], &DeviceProfile::h200());
        assert_eq!(huge.tiles[0], Some(WIDEST));
    }

    /// With the stages of every tile one CTA fits on an SM of 8.6, which has 100 KiB of which each
    /// CTA takes one, and warps that sum apart find room for their sums.
    #[test]
    fn linear_tiles_fit_shared_memory() {
        for [m, n] in TILES {
            let warps_k = if n == WIDE_TILE_N { 1 } else { 2 };
            let stage = (m + n) * warps_k * WARP_K * 2;
            assert_eq!(STAGES_BYTES % stage, 0);
            assert!(STAGES_BYTES / stage >= 3);
            assert!(n == WIDE_TILE_N || m * n * 4 <= STAGES_BYTES);
            assert_eq!(FLAG_ROWS % m, 0, "a tile waits for one flag");
        }
        const { assert!(STAGES_BYTES <= 99 << 10) };
    }

    /// The µs of each tile on an H200, X W0ᵀ at k = 4096 alone, with compute_80's code.
    #[test]
    fn the_fastest_linear_tile_is_chosen() {
        for (t, d, us) in [
            (1024, 4096, [80.0, 85.2, 103.3, 126.3]),
            (512, 4096, [70.6, 43.4, 52.2, 65.1]),
            (256, 4096, [70.6, 40.9, 26.1, 32.7]),
            (128, 4096, [70.6, 40.6, 25.6, 18.2]),
        ] {
            let schedule = LinearSchedule::forward([t, 4096], &[(d, 16)], &DeviceProfile::h200());
            let fastest = (0..4).min_by(|&a, &b| f64::total_cmp(&us[a], &us[b])).unwrap();
            let [m, n] = TILES[fastest];
            assert_eq!(schedule.tiles[0], Some(LinearTile { m, n }), "T={t} d={d}");
            assert_eq!(schedule.short, fastest > 0, "T={t} d={d}");
        }
        for [t, k, d] in [[8192, 4096, 4096], [8192, 8192, 8192], [512, 4096, 14336]] {
            let schedule = LinearSchedule::forward([t, k], &[(d, 16)], &DeviceProfile::h200());
            assert_eq!(schedule.tiles[0], Some(WIDEST), "T={t} d={d}");
            assert!(!schedule.short);
        }
    }

    #[test]
    fn ranks_do_not_change_tiles() {
        let a100 = DeviceProfile::a100_sxm();
        for [t, k, d, r] in shapes() {
            let of_r = |r| {
                let layers = [(d, r)];
                let of = [LinearSchedule::forward, LinearSchedule::input_grad];
                of.map(|of| of([t, k], &layers, &a100))
            };
            assert_eq!(of_r(r), of_r(0));
        }
    }

    /// Tiles of a batch that is short are narrow; of batches that are not, all are, or none.
    #[test]
    fn the_order_of_sums_does_not_depend_on_t() {
        for ([_, k, d, r], card) in shapes().zip(cards().iter().cycle()) {
            let mut long = None;
            for t in [1, 33, 64, 100, 128, 256, 1000, 2048, 2049, 3000, 8191, 8192, 8193, 100_000] {
                let LinearSchedule { tiles, short, .. } =
                    LinearSchedule::forward([t, k], &[(d, r)], card);
                let widest = is_widest(tiles[0].unwrap());
                let context = format!("T={t} k={k} d={d} on {}", card.name());
                match short {
                    true => assert!(!widest && t <= LinearSchedule::SHORT_TOKENS, "{context}"),
                    false => assert_eq!(*long.get_or_insert(widest), widest, "{context}"),
                }
            }
        }
    }

    #[test]
    fn rank_tiles_hold_every_rank() {
        for r in 1..=MAX_RANK {
            let tile = rank_tile(r);
            assert!(RANK_TILES.contains(&tile), "no kernel for a tile of {tile}");
            assert!(r.next_multiple_of(tile) < r + tile);
            assert!(tile == 64 || r <= 16, "rank {r} would need {} passes", r.div_ceil(16));
        }
    }
}
