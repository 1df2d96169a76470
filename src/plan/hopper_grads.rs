//! How `kernels/hopper_grads.cu` is launched, and how long its items take beside dX.

use super::hopper::Sizes;
use super::Footprint;

/// What a block takes: 224 KiB, and what aligning to 1024 bytes may take.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [384, 1], shared_bytes: (224 << 10) + 1024 };

/// The tiles of the rank that the kernel is there for.
pub(crate) const RANK_TILES: [usize; 3] = [16, 64, 128];

/// The one that serves this rank.
pub(crate) fn rank_tile(r: usize) -> usize {
    match r {
        ..=16 => 16,
        17..=64 => 64,
        _ => 128,
    }
}

/// The rows of T and columns of S that an item beside dX of few tokens takes at a time.
pub(crate) fn box_beside(t: usize, r: usize) -> [usize; 2] {
    [t.next_multiple_of(16).min(64), if r <= 16 { 16 } else { 32 }]
}

/// What they take in shared memory, beside as many rows and 64 columns of dH or X.
pub(crate) fn bytes_beside(t: usize, r: usize) -> usize {
    let [rows, ranks] = box_beside(t, r);
    rows * (64 + ranks) * 2
}

/// Rows of dS in a tile.
const TILE_ROWS: usize = 128;

/// Columns of dH or X in an item of a launch of its own.
const ITEM_COLS: usize = 128;

/// The words by which blocks tell each other of dS (T×r): a count, and one for every tile's rows.
pub(crate) fn flags(t: usize) -> usize {
    1 + t.div_ceil(TILE_ROWS)
}

/// What a launch makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Makes {
    Ds,
    DaDb,
    All,
}

/// A launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Blocks that make dS, the first of all.
    pub(crate) projectors: usize,
    pub(crate) blocks: usize,
}

impl Schedule {
    /// For the sizes of dX, on so many multiprocessors, two at least.
    pub(crate) fn new(sizes: &Sizes, makes: Makes, sms: usize) -> Self {
        let r = sizes.rank();
        let tiles = sizes.m.div_ceil(TILE_ROWS) * r.div_ceil(rank_tile(r));
        let items = items_of_db(sizes, ITEM_COLS) + items_of_da(sizes, ITEM_COLS);
        match makes {
            Makes::Ds => Schedule { projectors: tiles.min(sms), blocks: tiles.min(sms) },
            Makes::DaDb => Schedule { projectors: 0, blocks: items.min(sms) },
            Makes::All => {
                // Enough for dS to be made as fast as dA and dB are added up, and no more, so that its
                // first rows are soon there.
                let quarter = (sms / 4).max(1);
                let projectors = if items <= sms - quarter { quarter } else { sms / 2 };
                let projectors = projectors.min(tiles);
                Schedule { projectors, blocks: (projectors + items).min(sms) }
            }
        }
    }
}

/// The items of all layers' dB, of so many columns of dH, and as many of S as a tile has.
fn items_of_db(sizes: &Sizes, cols: usize) -> usize {
    let rank_tile = rank_tile(sizes.rank());
    let layers = sizes.k.iter().zip(&sizes.r);
    layers.map(|(d, r)| d.div_ceil(cols) * r.div_ceil(rank_tile)).sum()
}

/// The items of dA, of so many columns of X.
fn items_of_da(sizes: &Sizes, cols: usize) -> usize {
    let r = sizes.rank();
    sizes.n[0].div_ceil(cols) * r.div_ceil(rank_tile(r))
}

/// How long a launch for dA and dB takes, in µs.
pub(crate) fn alone_us(sizes: &Sizes) -> f64 {
    /// The launch, and bytes of dH and X that are read a µs.
    const LAUNCH: f64 = 9.0;
    const BYTES: f64 = 2.6e6;
    let d = sizes.k.iter().sum::<usize>();
    LAUNCH + (sizes.m * (sizes.n[0] + d) * 2) as f64 / BYTES
}

/// The columns of an item beside dX, and how long it takes, in µs.
fn item_beside(t: usize, r: usize) -> (usize, f64) {
    /// The start and the end of an item.
    const ITEM: f64 = 1.5;
    // The bytes of dH or X that a block reads a µs: wgmmas of few columns are bound by reading their rows.
    let (cols, bytes) = match rank_tile(r) {
        16 => (256, 110e3),
        64 => (256, 80e3),
        _ => (128, 42e3),
    };
    (cols, ITEM + (t * cols * 2) as f64 / bytes)
}

/// How long so many pairs of blocks take for dB and then dA beside dX, in µs, if dS is there after `ds_us`.
pub(crate) fn beside_us(sizes: &Sizes, pairs: usize, ds_us: f64) -> f64 {
    let (cols, item_us) = item_beside(sizes.m, sizes.rank());
    let (blocks, of_db) = (2 * pairs, items_of_db(sizes, cols));
    let all = of_db + items_of_da(sizes, cols);
    let of_block = |block: usize| {
        let count = |items: usize| (items + blocks - 1 - block) / blocks;
        let (db, da) = (count(of_db), count(all) - count(of_db));
        let start = if da > 0 { f64::max(db as f64 * item_us, ds_us) } else { db as f64 * item_us };
        start + da as f64 * item_us
    };
    // Blocks between these have as many items as the one of these before them.
    [0, of_db % blocks, all % blocks].map(of_block).into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::shapes;

    #[test]
    fn launches_have_blocks_for_all_they_make_and_no_idle_ones() {
        for sizes in shapes() {
            let [t, k, d, r] = sizes;
            let ranks = r.div_ceil(rank_tile(r));
            let (tiles, items) = (t.div_ceil(128), k.div_ceil(128) + d.div_ceil(128));
            for (makes, sms) in [Makes::Ds, Makes::DaDb, Makes::All]
                .into_iter()
                .flat_map(|makes| [2, 4, 132].map(|sms| (makes, sms)))
            {
                let Schedule { projectors, blocks } =
                    Schedule::new(&Sizes::of_layer(sizes), makes, sms);
                let context = format!("{sizes:?}, {makes:?} on {sms}: {projectors} of {blocks}");
                assert!(blocks <= sms, "{context}");
                assert_eq!(projectors > 0, makes != Makes::DaDb, "{context}");
                assert_eq!(blocks > projectors, makes != Makes::Ds, "{context}");
                assert!(projectors <= tiles * ranks, "{context}");
                assert!(blocks - projectors <= items * ranks, "{context}");
            }
        }
    }

    /// Item by item, as the blocks go through them.
    #[test]
    fn the_slowest_block_decides() {
        for [t, k, d, r] in shapes() {
            let (cols, item_us) = item_beside(t, r);
            let ranks = r.div_ceil(rank_tile(r));
            let (of_db, of_da) = (d.div_ceil(cols) * ranks, k.div_ceil(cols) * ranks);
            if of_db + of_da > 10_000 {
                continue;
            }
            for (pairs, ds_us) in [(1, 0.0), (1, 1e4), (3, 30.0), (5, 1e3), (12, 100.0)] {
                let mut ends = vec![0.0; 2 * pairs];
                for item in 0..of_db + of_da {
                    let end: &mut f64 = &mut ends[item % (2 * pairs)];
                    let ready = if item < of_db { 0.0 } else { ds_us };
                    *end = end.max(ready) + item_us;
                }
                let slowest = ends.into_iter().fold(0.0, f64::max);
                let got = beside_us(&Sizes::of_layer([t, k, d, r]), pairs, ds_us);
                let context = format!("T={t} k={k} d={d} r={r}, {pairs} pairs: {got} {slowest}");
                assert!((got - slowest).abs() <= 1e-9 * slowest, "{context}");
            }
        }
    }

    #[test]
    fn rank_tiles_hold_every_rank() {
        for r in 1..=crate::plan::MAX_RANK {
            let tile = rank_tile(r);
            assert!(RANK_TILES.contains(&tile) && r.next_multiple_of(tile) < r + tile, "{r}");
        }
    }
}
