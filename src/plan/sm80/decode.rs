//! How `kernels/sm80/decode.cu` is launched.

use crate::manifest::sm80::decode::MAX_TOKENS;
use std::fmt;

/// The kernel's classes of chunks along k, and its steps along r.
const CLASSES: usize = 8;
const STEP: usize = 32;
/// Columns of dA or dB in a CTA.
const GRAD_COLS: usize = 64;
/// Rows of tiles that every lane loads for itself.
const LANE_ROWS: usize = 16;

/// An instance of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Tokens that it has room for.
    pub(crate) t: usize,
    /// Of W0, in a tile.
    pub(crate) rows: usize,
    /// CTAs that share a tile, each with some of the classes of k.
    pub(crate) splits: usize,
    /// Whether rows must start at multiples of 16 bytes.
    pub(crate) aligned: bool,
}

impl Instance {
    /// Groups of warps that each have their classes.
    fn groups(&self) -> usize {
        match self.rows {
            LANE_ROWS => 8,
            32 => 4,
            _ => 2,
        }
    }

    /// CTAs that share a tile of S: as many as there are classes for.
    fn proj_splits(&self) -> usize {
        CLASSES / self.groups()
    }
}

/// A launch: of one layer, in the forward or with dX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) instance: Instance,
    /// Tiles of S or dS.
    pub(crate) rank_tiles: usize,
    /// Tiles of H or dX.
    pub(crate) row_tiles: usize,
    /// CTAs that compute dA, and dB.
    pub(crate) da_tiles: usize,
    pub(crate) db_tiles: usize,
    /// What waits for S: groups of warps, and the CTAs of dA.
    pub(crate) waiters: usize,
}

impl Launch {
    /// For H (T×m) over k, with S (T×r) unless r is 0.
    fn new(instance: Instance, m: usize, r: usize) -> Self {
        let Instance { rows, splits, .. } = instance;
        let row_tiles = m.div_ceil(rows);
        let waiting = r.div_ceil(STEP).min(instance.groups() * splits);
        Launch {
            instance,
            rank_tiles: r.div_ceil(rows),
            row_tiles,
            da_tiles: 0,
            db_tiles: 0,
            waiters: row_tiles * waiting,
        }
    }

    /// The same with dA (r×m) and dB (k×r).
    fn with_gradients(self, [m, k]: [usize; 2]) -> Self {
        let [da_tiles, db_tiles] = [m, k].map(|cols| cols.div_ceil(GRAD_COLS));
        Launch { da_tiles, db_tiles, waiters: self.waiters + da_tiles, ..self }
    }

    /// The same without H or dX.
    pub(crate) fn without_out(self) -> Self {
        Launch { row_tiles: 0, waiters: self.da_tiles, ..self }
    }

    /// CTAs of the grid.
    pub(crate) fn blocks(&self) -> usize {
        let Launch { instance, rank_tiles, row_tiles, da_tiles, db_tiles, .. } = self;
        let tiles = rank_tiles * instance.proj_splits() + row_tiles * instance.splits;
        tiles + da_tiles + db_tiles
    }

    /// f32 elements of the partial tiles of S.
    pub(crate) fn proj_partials(&self) -> usize {
        self.tiles(self.rank_tiles, self.instance.proj_splits())
    }

    /// f32 elements of all partial tiles.
    pub(crate) fn partials(&self) -> usize {
        self.proj_partials() + self.tiles(self.row_tiles, self.instance.splits)
    }

    fn tiles(&self, tiles: usize, splits: usize) -> usize {
        match splits {
            1 => 0,
            _ => tiles * splits * self.instance.t * self.instance.rows,
        }
    }

    /// Waiters that have seen S, tiles of it that are there, and a counter of every tile.
    pub(crate) fn flags(&self) -> usize {
        let counters = 2 + self.rank_tiles + self.row_tiles;
        if self.partials() == 0 && self.rank_tiles == 0 {
            0
        } else {
            counters
        }
    }
}

/// The launches that serve a layer: where all rows start at multiples of 16 bytes, and elsewhere.
/// Both compute the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) aligned: Launch,
    pub(crate) unaligned: Launch,
}

impl Schedule {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on a GPU of so many SMs; `None` for large T.
    pub(crate) fn forward([t, d, k, r]: [usize; 4], sms: usize) -> Option<Self> {
        let of = |instance| Launch::new(instance, d, r);
        let tile_t = [8, 16, 32, 64].into_iter().find(|&tile| t <= tile)?;
        let whole = k % 8 == 0 && r % 8 == 0;
        let splits = splits(d, r, sms);
        let aligned = match tile_t {
            8 if whole => Instance { t: 8, rows: LANE_ROWS, splits: 1, aligned: true },
            16 if whole && splits > 1 => {
                Instance { t: 16, rows: LANE_ROWS, splits: 1, aligned: true }
            }
            8 | 16 => Instance { t: 16, rows: 64, splits: 1, aligned: true },
            _ => Instance { t: tile_t, rows: 64, splits, aligned: true },
        };
        let unaligned = match tile_t {
            8 | 16 => Instance { t: 16, rows: 64, splits: 1, aligned: false },
            _ => Instance { t: 64, rows: 64, splits: 2, aligned: false },
        };
        Some(Schedule { aligned: of(aligned), unaligned: of(unaligned) })
    }

    /// For dX (T×k) over d, with dS (T×r), dA and dB; `None` for large T.
    pub(crate) fn input_grad([t, k, d, r]: [usize; 4], _sms: usize) -> Option<Self> {
        let of = |instance| Launch::new(instance, k, r).with_gradients([k, d]);
        let tile_t = [16, 32, 64].into_iter().find(|&tile| t <= tile)?;
        let aligned = Instance { t: tile_t, rows: 64, splits: 2, aligned: true };
        let unaligned = Instance { t: 64, rows: 64, splits: 2, aligned: false };
        Some(Schedule { aligned: of(aligned), unaligned: of(unaligned) })
    }

    /// The launch for operands that are aligned, or not.
    pub(crate) fn of(&self, aligned: bool) -> &Launch {
        match aligned {
            true => &self.aligned,
            false => &self.unaligned,
        }
    }

    /// f32 elements of partial tiles.
    pub(crate) fn partials(&self) -> usize {
        self.aligned.partials().max(self.unaligned.partials())
    }

    pub(crate) fn flags(&self) -> usize {
        self.aligned.flags().max(self.unaligned.flags())
    }
}

/// CTAs for a tile of 64 rows: two if tiles alone leave SMs idle, and there is room for their
/// partial tiles, which there is with an adapter.
fn splits(m: usize, r: usize, sms: usize) -> usize {
    if r > 0 && m.div_ceil(64) < sms {
        2
    } else {
        1
    }
}

/// As a user reads it.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { instance: Instance { t, rows, splits, .. }, row_tiles, .. } = self.aligned;
        write!(f, "{t}×{rows} tiles, {} CTAs", row_tiles * splits)?;
        match self.aligned.rank_tiles * self.aligned.instance.proj_splits() {
            0 => Ok(()),
            n => write!(f, " + {n} for the projection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sm80::decode::{RING_BYTES, SHARED_BYTES};
    use crate::plan::testing::shapes;

    fn schedules() -> impl Iterator<Item = ([usize; 4], Schedule)> {
        shapes().flat_map(|[t, n, k, r]| {
            let (t, both) = (1 + t % MAX_TOKENS, [2, 84, 108, 132]);
            both.into_iter().flat_map(move |sms| {
                let forward = Schedule::forward([t, n, k, r], sms);
                let base = Schedule::forward([t, n, k, 0], sms);
                let back = Schedule::input_grad([t, n, k, r], sms);
                [([t, n, k, r], forward), ([t, n, k, 0], base), ([t, n, k, r], back)]
                    .map(|(shape, schedule)| (shape, schedule.expect("few tokens")))
            })
        })
    }

    #[test]
    fn tiles_cover_the_output_and_s_once() {
        for ([t, n, k, r], schedule) in schedules() {
            for launch in [schedule.aligned, schedule.unaligned] {
                let Launch { instance, rank_tiles, row_tiles, .. } = launch;
                let context = format!("T={t} n={n} k={k} r={r}: {launch:?}");
                let covers = |tiles: usize, all: usize| tiles == all.div_ceil(instance.rows);
                assert!(covers(row_tiles, n) && covers(rank_tiles, r), "{context}");
                assert!(t <= instance.t, "{context}");
                assert!(i32::try_from(launch.blocks()).is_ok(), "{context}");
                assert!(i32::try_from(launch.proj_partials()).is_ok(), "{context}");
                let classes = instance.groups() * instance.splits;
                assert!(classes <= CLASSES && CLASSES % classes == 0, "{context}");
            }
        }
    }

    #[test]
    fn what_waits_is_counted() {
        for ([t, n, k, r], schedule) in schedules() {
            for launch in [schedule.aligned, schedule.unaligned] {
                let Launch { instance, row_tiles, da_tiles, waiters, .. } = launch;
                // Classes in the kernel's order, and the step behind each.
                let rank_step = |class: usize| {
                    let v = CLASSES - 1 - class;
                    (v & 1) << 2 | (v & 2) | v >> 2
                };
                let groups = instance.groups() * instance.splits;
                let each = CLASSES / groups;
                let waits = |group: &usize| {
                    (group * each..(group + 1) * each).any(|class| rank_step(class) * STEP < r)
                };
                let waiting = (0..groups).filter(waits).count();
                let context = format!("T={t} n={n} k={k} r={r}: {launch:?}");
                assert_eq!(waiters, row_tiles * waiting + da_tiles, "{context}");
                assert_eq!(launch.without_out().waiters, da_tiles, "{context}");
            }
        }
    }

    /// A base operation has no workspace.
    #[test]
    fn a_frozen_layer_needs_no_workspace() {
        for ([t, n, k, r], schedule) in schedules().filter(|([.., r], _)| *r == 0) {
            let launch = schedule.aligned;
            let context = format!("T={t} n={n} k={k} r={r}: {launch:?}");
            assert_eq!([launch.partials(), launch.flags()], [0, 0], "{context}");
        }
    }

    /// Compute capabilities 8.6, 8.9 and 12.x have 100 KiB for an SM, 1 KiB of them the system's.
    #[test]
    fn a_cta_fits_on_every_card() {
        const { assert!(RING_BYTES <= SHARED_BYTES && SHARED_BYTES + (1 << 10) <= 100 << 10) };
    }

    #[test]
    fn many_tokens_have_no_schedule() {
        assert_eq!(Schedule::forward([MAX_TOKENS + 1, 64, 64, 16], 132), None);
        assert_eq!(Schedule::input_grad([MAX_TOKENS + 1, 64, 64, 16], 132), None);
    }
}
