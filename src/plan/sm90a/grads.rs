//! How `kernels/sm90a/grads.cu` is launched, and the time of its items beside dX.
//!
//! An item is a tile of dA or dB over all of T.

use crate::manifest::sm90a::grads::{ITEM_COLS, RANK_TILES, STEP_ROWS};
use crate::manifest::sm90a::linear_tiles::CONSUMER_WARPS;
use crate::manifest::sm90a::{projection::FLAG_ROWS, ptx::BOX_COLS};
use crate::plan::cost::CostModel;
use crate::plan::scratch::Needs;
use crate::plan::sizes::Sizes;

/// The tile that serves this rank.
pub(crate) fn rank_tile(r: usize) -> usize {
    let [narrow, middle, wide] = RANK_TILES;
    match r {
        _ if r <= narrow => narrow,
        _ if r <= middle => middle,
        _ => wide,
    }
}

/// Rows of T and columns of S in a step of an item, beside dX of a small batch.
pub(crate) fn box_beside(t: usize, r: usize) -> [usize; 2] {
    [t.next_multiple_of(16).min(STEP_ROWS), if r <= 16 { 16 } else { 32 }]
}

/// Shared memory of such a step, with a box of dH or X.
pub(crate) fn bytes_beside(t: usize, r: usize) -> usize {
    let [rows, ranks] = box_beside(t, r);
    rows * (BOX_COLS + ranks) * 2
}

/// Flags for dS (T×r): a counter, and one flag for every [`FLAG_ROWS`] rows.
pub(crate) fn flags(t: usize) -> usize {
    1 + t.div_ceil(FLAG_ROWS)
}

/// The splits of T in which dA is computed where X has dropout, each by a CTA of its own, whatever
/// the plan: random numbers make its few items long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Splits {
    pub(crate) count: usize,
    /// Rows of each, the last one's at most.
    pub(crate) rows: usize,
    /// Partial sums, and a counter for every item and warp.
    pub(crate) needs: Needs,
}

impl Splits {
    /// None.
    pub(crate) fn whole(t: usize) -> Self {
        Splits { count: 1, rows: t, needs: Needs::default() }
    }

    pub(crate) fn new(sizes: &Sizes) -> Self {
        /// With fewer, the start, the end and the partial sums of an item weigh too much.
        const LEAST_ROWS: usize = 512;
        const MOST: usize = 4;
        let most = if sizes.dropout { sizes.m.div_ceil(LEAST_ROWS).min(MOST) } else { 1 };
        let rows = sizes.m.div_ceil(most).next_multiple_of(FLAG_ROWS);
        let count = sizes.m.div_ceil(rows);
        if count == 1 {
            return Splits::whole(sizes.m);
        }
        // Items are as wide, or twice as wide beside dX.
        let (k, rank) = (sizes.n[0], sizes.rank().next_multiple_of(rank_tile(sizes.rank())));
        let partials = count * k.next_multiple_of(2 * ITEM_COLS) * rank;
        let flags = items_of_da(sizes, ITEM_COLS) * CONSUMER_WARPS;
        Splits { count, rows, needs: Needs { partials, flags } }
    }
}

/// What a launch computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Makes {
    Ds,
    DaDb,
    All,
}

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// CTAs that compute dS, the first of the grid.
    pub(crate) proj_ctas: usize,
    pub(crate) blocks: usize,
}

impl Schedule {
    /// For the sizes of dX, on `sms` SMs, two at least.
    pub(crate) fn new(sizes: &Sizes, makes: Makes, sms: usize) -> Self {
        let r = sizes.rank();
        let tiles = sizes.m.div_ceil(FLAG_ROWS) * r.div_ceil(rank_tile(r));
        let of_da = items_of_da(sizes, ITEM_COLS) * Splits::new(sizes).count;
        let items = items_of_db(sizes, ITEM_COLS) + of_da;
        match makes {
            Makes::Ds => Schedule { proj_ctas: tiles.min(sms), blocks: tiles.min(sms) },
            Makes::DaDb => Schedule { proj_ctas: 0, blocks: items.min(sms) },
            Makes::All => {
                // As many as keep dS ahead of dA and dB. With more, its first rows come later.
                let quarter = (sms / 4).max(1);
                let proj_ctas = if items <= sms - quarter { quarter } else { sms / 2 };
                let proj_ctas = proj_ctas.min(tiles);
                Schedule { proj_ctas, blocks: (proj_ctas + items).min(sms) }
            }
        }
    }
}

/// Items of dB of all layers, of `cols` columns of dH and a tile of S.
fn items_of_db(sizes: &Sizes, cols: usize) -> usize {
    let rank_tile = rank_tile(sizes.rank());
    let layers = sizes.k.iter().zip(&sizes.r);
    layers.map(|(d, r)| d.div_ceil(cols) * r.div_ceil(rank_tile)).sum()
}

/// Items of dA, of `cols` columns of X and a tile of dS, in each split of T.
fn items_of_da(sizes: &Sizes, cols: usize) -> usize {
    let r = sizes.rank();
    sizes.n[0].div_ceil(cols) * r.div_ceil(rank_tile(r))
}

/// µs of a launch for dA and dB on so many SMs.
pub(crate) fn alone_us(sizes: &Sizes, sms: usize, cost: &CostModel) -> f64 {
    let d = sizes.k.iter().sum::<usize>();
    let us = (sizes.m * (sizes.n[0] + d) * 2) as f64 / cost.grads_bytes;
    let splits = Splits::new(sizes);
    let items = items_of_db(sizes, ITEM_COLS) + items_of_da(sizes, ITEM_COLS) * splits.count;
    let waves = items.div_ceil(sms) as f64;
    let drop_us = if sizes.dropout { waves * drop_us(splits.rows, ITEM_COLS, cost) } else { 0.0 };
    cost.grads_launch_us + us + drop_us
}

/// µs of random numbers for an item of dA.
fn drop_us(t: usize, cols: usize, cost: &CostModel) -> f64 {
    (t * cols * 2) as f64 / cost.drop_bytes
}

/// Columns of an item beside dX, and its µs.
fn item_beside(t: usize, r: usize, cost: &CostModel) -> (usize, f64) {
    let (cols, bytes) = match rank_tile(r) {
        16 => (256, cost.item_bytes_16),
        64 => (256, cost.item_bytes_64),
        _ => (128, cost.item_bytes_128),
    };
    (cols, cost.item_us + (t * cols * 2) as f64 / bytes)
}

/// The items of dB and dA beside dX, whatever the number of grad CTAs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Items {
    of_db: usize,
    all: usize,
    db_us: f64,
    da_us: f64,
}

impl Items {
    pub(crate) fn new(sizes: &Sizes, cost: &CostModel) -> Self {
        let (cols, db_us) = item_beside(sizes.m, sizes.rank(), cost);
        let of_db = items_of_db(sizes, cols);
        let splits = Splits::new(sizes);
        let rows = match splits.count {
            1 => splits.rows,
            // Its sums in f32 are written, and read by the last of the splits.
            _ => splits.rows + 4 * rank_tile(sizes.rank()),
        };
        let (_, mut da_us) = item_beside(rows, sizes.rank(), cost);
        if sizes.dropout {
            da_us += drop_us(splits.rows, cols, cost);
        }
        let of_da = items_of_da(sizes, cols) * splits.count;
        Items { of_db, all: of_db + of_da, db_us, da_us }
    }

    /// The times of `clusters` clusters of grad CTAs, which go through dB, then dA, in turns.
    pub(crate) fn on(&self, clusters: usize) -> GradCtas {
        let (blocks, &Items { of_db, all, db_us, da_us }) = (2 * clusters, self);
        let of_block = |block: usize| {
            let count = |items: usize| (items + blocks - 1 - block) / blocks;
            let (db, da) = (count(of_db), count(all) - count(of_db));
            GradCta { db_us: db as f64 * db_us, da_us: da as f64 * da_us }
        };
        // CTAs between these have as many items as the one of these before them.
        GradCtas([0, of_db % blocks, all % blocks].map(of_block))
    }
}

/// µs of the items of a grad CTA.
#[derive(Debug, Clone, Copy)]
struct GradCta {
    db_us: f64,
    da_us: f64,
}

/// The grad CTAs of a launch that may be the slowest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GradCtas([GradCta; 3]);

impl GradCtas {
    /// µs of dB, then dA, if dS is complete after `ds_us`. A later dS never makes it shorter.
    pub(crate) fn us(&self, ds_us: f64) -> f64 {
        let of_cta = |cta: &GradCta| match cta.da_us > 0.0 {
            true => f64::max(cta.db_us, ds_us) + cta.da_us,
            false => cta.db_us + cta.da_us,
        };
        self.0.iter().map(of_cta).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::shapes;
    use approx::abs_diff_eq;

    #[test]
    fn launches_have_no_idle_ctas() {
        for sizes in shapes() {
            let [t, k, d, r] = sizes;
            let ranks = r.div_ceil(rank_tile(r));
            let (tiles, items) = (t.div_ceil(128), k.div_ceil(128) + d.div_ceil(128));
            for (makes, sms) in [Makes::Ds, Makes::DaDb, Makes::All]
                .into_iter()
                .flat_map(|makes| [2, 4, 132].map(|sms| (makes, sms)))
            {
                let Schedule { proj_ctas, blocks } =
                    Schedule::new(&Sizes::of_layer(sizes), makes, sms);
                let context = format!("{sizes:?}, {makes:?} on {sms}: {proj_ctas} of {blocks}");
                assert!(blocks <= sms, "{context}");
                assert_eq!(proj_ctas > 0, makes != Makes::DaDb, "{context}");
                assert_eq!(blocks > proj_ctas, makes != Makes::Ds, "{context}");
                assert!(proj_ctas <= tiles * ranks, "{context}");
                assert!(blocks - proj_ctas <= items * ranks, "{context}");
            }
        }
    }

    #[test]
    fn splits_cover_t() {
        for sizes in shapes() {
            let [t, k, ..] = sizes;
            let sizes = Sizes::of_layer(sizes);
            assert_eq!(Splits::new(&sizes), Splits::whole(t));
            let Splits { count, rows, needs } = Splits::new(&sizes.with_dropout(true));
            let context = format!("T={t}: {count} of {rows} rows");
            assert!((count - 1) * rows < t && t <= count * rows, "{context}");
            assert!(count == 1 || rows.is_multiple_of(FLAG_ROWS), "{context}: flags");
            let [beside, alone] = [2, 1].map(|times| {
                let cols = times * ITEM_COLS;
                let items = items_of_da(&sizes, cols);
                (items * count * cols * rank_tile(sizes.rank()), items * CONSUMER_WARPS)
            });
            if count > 1 {
                assert!(needs.partials >= beside.0.max(alone.0), "{context}, k={k}");
                assert!(needs.flags >= beside.1.max(alone.1), "{context}, k={k}");
            }
        }
    }

    /// Item by item, as the CTAs go through them.
    #[test]
    fn the_slowest_cta_decides() {
        for [t, k, d, r] in shapes() {
            let (cols, item_us) = item_beside(t, r, &CostModel::H100_SXM);
            let ranks = r.div_ceil(rank_tile(r));
            let (of_db, of_da) = (d.div_ceil(cols) * ranks, k.div_ceil(cols) * ranks);
            if of_db + of_da > 10_000 {
                continue;
            }
            for (clusters, ds_us) in [(1, 0.0), (1, 1e4), (3, 30.0), (5, 1e3), (12, 100.0)] {
                let mut ends = vec![0.0; 2 * clusters];
                for item in 0..of_db + of_da {
                    let end: &mut f64 = &mut ends[item % (2 * clusters)];
                    let ready = if item < of_db { 0.0 } else { ds_us };
                    *end = end.max(ready) + item_us;
                }
                let slowest = ends.into_iter().fold(0.0, f64::max);
                let got = Items::new(&Sizes::of_layer([t, k, d, r]), &CostModel::H100_SXM)
                    .on(clusters)
                    .us(ds_us);
                let context =
                    format!("T={t} k={k} d={d} r={r}, {clusters} clusters: {got} {slowest}");
                assert!(abs_diff_eq!(got, slowest, epsilon = 1e-9 * slowest), "{context}");
            }
        }
    }

    #[test]
    fn rank_tiles_hold_every_rank() {
        for r in 1..=crate::problem::MAX_RANK {
            let tile = rank_tile(r);
            assert!(RANK_TILES.contains(&tile) && r.next_multiple_of(tile) < r + tile, "{r}");
        }
    }
}
