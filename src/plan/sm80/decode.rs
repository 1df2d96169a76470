//! How `kernels/sm80/decode.cu` is launched.

use super::split::ProjSplit;
use crate::manifest::sm80::decode::{
    BY_LANES, BY_SHIFTING_LANES, BY_STAGES, LANES_SHARED_BYTES, SHARED_BYTES,
};
use crate::plan::profile::DeviceProfile;
use std::fmt;

/// Steps along r.
const STEP: usize = 32;
/// Columns of dA or dB in a CTA.
const GRAD_COLS: usize = 64;
/// Sizes of a layer up to which the kernel's counters along k fit `int`.
const MAX_SIZE: usize = 1 << 30;

/// An instance of the kernel: its tokens, its rows of weights and its CTAs that share a tile, each
/// with some of the classes of k, and how it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    pub(crate) t: usize,
    pub(crate) rows: usize,
    pub(crate) splits: usize,
    pub(crate) loads: usize,
}

impl Instance {
    const fn new([t, rows, splits]: [usize; 3], loads: usize) -> Self {
        Instance { t, rows, splits, loads }
    }

    /// CTAs that fit on an SM.
    fn ctas_per_sm(&self, profile: &DeviceProfile) -> usize {
        let shared_bytes = match self.loads {
            BY_STAGES => SHARED_BYTES,
            _ => LANES_SHARED_BYTES,
        };
        let by_registers = if self.rows == 32 && self.shifts() { 1 } else { 2 };
        profile.ctas_per_sm(shared_bytes).min(by_registers)
    }

    /// Whether rows of W0 may start at any element, and in the forward rows of X.
    pub(crate) fn shifts(&self) -> bool {
        self.loads == BY_SHIFTING_LANES
    }

    /// Groups of warps that each have their classes.
    fn groups(&self) -> usize {
        match (self.loads, self.rows) {
            (BY_STAGES, 32) => 4,
            (BY_STAGES, _) => 2,
            _ => 8,
        }
    }
}

/// A launch: of one layer, in the forward or with dX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) instance: Instance,
    /// S or dS; without tiles where r is 0.
    pub(crate) proj: ProjSplit,
    /// Tiles of H or dX.
    pub(crate) row_tiles: usize,
    /// CTAs that compute dA, and dB.
    pub(crate) da_tiles: usize,
    pub(crate) db_tiles: usize,
    /// What waits for S: groups of warps, and the CTAs of dA.
    pub(crate) waiters: usize,
    /// CTAs that run at once, at most.
    whole_gpu: usize,
}

impl Launch {
    /// For H (T×m) over k, with S (T×r) unless r is 0.
    fn new(instance: Instance, [t, m, k, r]: [usize; 4], profile: &DeviceProfile) -> Self {
        let Instance { rows, splits, .. } = instance;
        let row_tiles = m.div_ceil(rows);
        let waiting = r.div_ceil(STEP).min(instance.groups() * splits);
        Launch {
            instance,
            proj: ProjSplit::new([t, k, r]),
            row_tiles,
            da_tiles: 0,
            db_tiles: 0,
            waiters: row_tiles * waiting,
            whole_gpu: profile.sms() * instance.ctas_per_sm(profile),
        }
    }

    /// For H (T×d) over k, with S (T×r) unless r is 0. `None` for large T, and for sizes of which
    /// rows of B or S do not start at multiples of 16 bytes.
    ///
    /// Measured on an H200. Where tiles of 32 rows are no more than SMs, small tiles or splits keep
    /// all SMs busy; elsewhere large tiles read X less often.
    pub(crate) fn forward([t, d, k, r]: [usize; 4], profile: &DeviceProfile) -> Option<Self> {
        let narrow = d.div_ceil(32) <= profile.sms();
        let shifts = !are_aligned([k]);
        let lanes = if shifts { BY_SHIFTING_LANES } else { BY_LANES };
        let instance = match tile_t(t)? {
            8 if narrow => Instance::new([8, 16, 1], lanes),
            8 => Instance::new([8, 32, 1], lanes),
            16 if narrow && !shifts => Instance::new([16, 32, 1], BY_STAGES),
            16 => Instance::new([16, 32, 1], lanes),
            tile if shifts => Instance::new([tile, 32, 1], lanes),
            _ if narrow && r > 0 && k >= 2 * d => Instance::new([32, 64, 2], BY_STAGES),
            _ if narrow => Instance::new([32, 32, 1], BY_STAGES),
            _ => Instance::new([32, 64, 1], BY_STAGES),
        };
        let is_served = d.max(k) <= MAX_SIZE && are_aligned([r]);
        is_served.then(|| Launch::new(instance, [t, d, k, r], profile))
    }

    /// For dX (T×k) over d, with dS (T×r), dA and dB unless r is 0; `None` as for the forward, of
    /// dH, B and dS.
    ///
    /// Measured on an H200, where two CTAs of stages fit on an SM. Splits keep SMs busy if two CTAs
    /// for each tile are one wave.
    pub(crate) fn input_grad([t, k, d, r]: [usize; 4], profile: &DeviceProfile) -> Option<Self> {
        let (tile_t, tiles) = (tile_t(t)?.max(16), k.div_ceil(64));
        let wave = profile.sms() * profile.ctas_per_sm(SHARED_BYTES).min(2);
        let splits = if r > 0 && 2 * tiles <= wave { 2 } else { 1 };
        let instance = match are_aligned([k]) {
            true => Instance::new([tile_t, 64, splits], BY_STAGES),
            false => Instance::new([tile_t, 32, 1], BY_SHIFTING_LANES),
        };
        let is_served = d.max(k) <= MAX_SIZE && are_aligned([d, r]);
        is_served.then(|| {
            let launch = Launch::new(instance, [t, k, d, r], profile);
            if r > 0 { launch.with_gradients([k, d]) } else { launch }
        })
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

    /// CTAs that compute anything.
    pub(crate) fn blocks(&self) -> usize {
        let Launch { instance, proj, row_tiles, da_tiles, db_tiles, .. } = self;
        proj.ctas() + row_tiles * instance.splits + da_tiles + db_tiles
    }

    /// CTAs of the grid. A launch with projections fills the GPU: see [`LinearTile::whole_gpu`].
    ///
    /// [`LinearTile::whole_gpu`]: super::linear::LinearTile::whole_gpu
    pub(crate) fn grid(&self) -> usize {
        match self.proj.tiles {
            0 => self.blocks(),
            _ => self.blocks().max(self.whole_gpu),
        }
    }

    /// f32 elements of all partial tiles: of S, then of H or dX.
    pub(crate) fn partials(&self) -> usize {
        let Instance { t, rows, splits, .. } = self.instance;
        let of_tiles = if splits > 1 { self.row_tiles * splits * t * rows } else { 0 };
        self.proj.needs().partials + of_tiles
    }

    /// Waiters that have seen S, tiles of it that are there, and a counter of every tile.
    pub(crate) fn flags(&self) -> usize {
        match self.partials() {
            0 => 0,
            _ => 2 + self.proj.tiles + self.row_tiles,
        }
    }
}

/// Whether rows of so many elements of 16 bits start at multiples of 16 bytes.
fn are_aligned<const N: usize>(sizes: [usize; N]) -> bool {
    sizes.iter().all(|size| size.is_multiple_of(8))
}

/// The fewest tokens of an instance that are no fewer than T; `None` for large T.
fn tile_t(t: usize) -> Option<usize> {
    [8, 16, 32].into_iter().find(|&tile| t <= tile)
}

/// As a user reads it.
impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { instance, proj, row_tiles, .. } = self;
        let &Instance { t, rows, splits, .. } = instance;
        write!(f, "{t}×{rows} tiles, {} CTAs", row_tiles * splits)?;
        match proj.ctas() {
            0 => Ok(()),
            n => write!(f, " + {n} for the projection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sm80::decode::{FORWARD, INPUT_GRAD, MAX_TOKENS};
    use crate::plan::testing::shapes;
    use std::collections::HashSet;

    /// The kernel's classes of chunks along k.
    const CLASSES: usize = 8;
    /// An SM of compute capability 8.6, 8.9 or 12.x has 100 KiB: 1 KiB less for a CTA.
    const LEAST_SHARED: usize = 99 << 10;

    struct Case {
        is_forward: bool,
        /// T, m, k and r.
        sizes: [usize; 4],
        launch: Launch,
    }

    /// An RTX 3090 and an A100, and an H200 with two SMs and all.
    fn cards() -> [DeviceProfile; 4] {
        let h200 = DeviceProfile::h200();
        let few = h200.clone().with_sm_limit(2);
        [DeviceProfile::rtx_3090(), DeviceProfile::a100_sxm(), few, h200]
    }

    fn cases() -> impl Iterator<Item = Case> {
        shapes().flat_map(|[t, m, k, r]| {
            let t = 1 + t % MAX_TOKENS;
            let [any_m, any_k] = [m, k];
            let [m, k, r] = [m, k, r].map(|size| size.next_multiple_of(8));
            cards().into_iter().flat_map(move |card| {
                // Rows of W0, and of X in the forward, start anywhere where k does, or m of dX.
                let forward = [[m, k, r], [m, k, 0], [m, any_k, r], [m, any_k, 0]];
                let input_grad = [[m, k, r], [m, k, 0], [any_m, k, r], [any_m, k, 0]];
                let all = forward.map(|sizes| (true, sizes)).into_iter();
                let all = all.chain(input_grad.map(|sizes| (false, sizes)));
                all.map(move |(is_forward, [m, k, r])| {
                    let sizes = [t, m, k, r];
                    let of = if is_forward { Launch::forward } else { Launch::input_grad };
                    let launch = of(sizes, &card).expect("few tokens");
                    let row = if is_forward { k } else { m };
                    assert_eq!(launch.instance.shifts(), !row.is_multiple_of(8));
                    Case { is_forward, sizes, launch }
                })
            })
        })
    }

    #[test]
    fn tiles_cover_the_output_and_s_once() {
        for Case { sizes: [t, m, k, r], launch, .. } in cases() {
            let Launch { instance, proj, row_tiles, .. } = launch;
            let context = format!("T={t} m={m} k={k} r={r}: {launch:?}");
            assert_eq!(row_tiles, m.div_ceil(instance.rows), "{context}");
            assert_eq!(proj, ProjSplit::new([t, k, r]), "{context}");
            assert_eq!(proj.tiles, proj.rank_tiles, "S has one row of tiles: {context}");
            assert!(t <= instance.t, "{context}");
            assert!(i32::try_from(launch.grid()).is_ok(), "{context}");
            assert!(launch.grid() >= launch.blocks(), "{context}");
            assert!(r > 0 || launch.grid() == launch.blocks(), "{context}");
            assert!(i32::try_from(launch.waiters).is_ok(), "{context}");
            assert!(i32::try_from(proj.needs().partials).is_ok(), "{context}");
            let classes = instance.groups() * instance.splits;
            assert!(classes <= CLASSES && CLASSES.is_multiple_of(classes), "{context}");
        }
    }

    /// Every instance serves a layer, and fits every card.
    #[test]
    fn the_kernel_is_there_and_fits() {
        const { assert!(SHARED_BYTES <= LEAST_SHARED - (1 << 10)) };
        let mut used = HashSet::new();
        for Case { is_forward, launch, .. } in cases() {
            used.insert((is_forward, launch.instance));
        }
        let there = |is_forward, instances: &[[usize; 4]]| {
            let instances = instances.iter();
            let all = instances.map(move |&[t, rows, splits, loads]| {
                (is_forward, Instance { t, rows, splits, loads })
            });
            all.collect::<HashSet<_>>()
        };
        let there = &there(true, &FORWARD) | &there(false, &INPUT_GRAD);
        assert_eq!(used, there);
    }

    #[test]
    fn what_waits_is_counted() {
        for Case { sizes: [t, m, k, r], launch, .. } in cases() {
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
            let context = format!("T={t} m={m} k={k} r={r}: {launch:?}");
            assert_eq!(waiters, row_tiles * waiting + da_tiles, "{context}");
            // The last waiter resets the flags.
            assert_eq!(waiters > 0, r > 0, "{context}");
            assert_eq!(launch.without_out().waiters, da_tiles, "{context}");
        }
    }

    /// A base operation has a workspace for copies alone.
    #[test]
    fn a_frozen_layer_needs_no_workspace() {
        for case in cases().filter(|case| case.sizes[3] == 0) {
            let Case { sizes: [t, m, k, _], launch, .. } = case;
            let needs = [launch.partials(), launch.flags()];
            assert_eq!(needs, [0, 0], "T={t} m={m} k={k}: {launch:?}");
        }
    }

    #[test]
    fn many_tokens_huge_layers_and_unaligned_rows_have_no_launch() {
        let card = DeviceProfile::h200();
        for sizes in [[MAX_TOKENS + 1, 64, 64, 16], [1, 8, MAX_SIZE + 8, 8]] {
            assert_eq!(Launch::forward(sizes, &card), None);
            assert_eq!(Launch::input_grad(sizes, &card), None);
        }
        assert_eq!(Launch::forward([1, 64, 64, 4], &card), None);
        assert_eq!(Launch::input_grad([1, 64, 64, 4], &card), None);
        // H, X and W0 may lie anywhere, but not dH.
        for [d, k] in [[63, 64], [64, 63]] {
            assert!(Launch::forward([MAX_TOKENS, d, k, 8], &card).is_some());
            let served = Launch::input_grad([MAX_TOKENS, k, d, 8], &card).is_some();
            assert_eq!(served, d == 64);
        }
    }
}
