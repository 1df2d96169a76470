//! How `kernels/hopper_decode.cu` is launched: which rows of W0 and A its blocks read.

use super::Footprint;

/// The most tokens that it serves.
pub(crate) const MOST_TOKENS: usize = 128;

/// The tiles of tokens that the kernel is there for.
pub(crate) const TILES_T: [usize; 5] = [8, 16, 32, 64, MOST_TOKENS];

/// What a block takes at most.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [288, 1], shared_bytes: MOST_SHARED_BYTES as u32 };

const MOST_SHARED_BYTES: usize = 224 << 10;

/// What it takes for two to be on a multiprocessor at once.
const HALF_SHARED_BYTES: usize = 113 << 10;

/// Of that, for its barriers, and for what aligning to 1024 bytes may take.
const BARRIER_BYTES: usize = 1024 + 1024;

/// Words by which blocks tell each other of S.
pub(crate) const FLAGS: usize = 2;

/// Rows of a share.
const MOST_ROWS: usize = 128;

/// Those of a pair where two blocks are on a multiprocessor, at least: with fewer, X is read too often.
const LEAST_ROWS: usize = 32;

/// Rows up to which the warpgroups of a block take steps in turns, or half of the tokens each.
const TURNS_ROWS: usize = 64;

/// Columns of S that a pair makes at most, where it has a multiprocessor for each of its blocks.
const DOWN_ROWS: usize = 32;

/// The same, and its tokens, where two blocks are on a multiprocessor.
const HALF_DOWN_ROWS: usize = 64;
const HALF_DOWN_TOKENS: usize = 32;

/// Pairs that are left there for S at least, by those that make H.
const HALF_DOWN_PAIRS: usize = 2;

/// Stages that a block may have.
const MOST_STAGES: usize = 40;

/// Elements of W0 that a pair reads, up to which they are few.
const FEW_ELEMENTS: usize = 1 << 19;

/// Elements of a row in a step, as bytes.
const STEP_BYTES: usize = 64 * 2;

/// What a block's stages are for.
#[derive(Debug, Clone, Copy)]
struct Ring {
    /// Tokens and rows of a weight that a stage has room for.
    tile_t: usize,
    rows: usize,
    /// The blocks of a pair add up their sums.
    split: bool,
    /// They make S.
    makes_s: bool,
}

impl Ring {
    fn stage_bytes(&self) -> usize {
        (self.tile_t + self.rows) * STEP_BYTES
    }

    /// Behind the stages: what hands sums over, and the output on its way, as `multiply` in the kernel has
    /// it. wgmma reads up to 56 rows beyond a stage.
    fn handover_bytes(&self) -> usize {
        let half = (self.tile_t / 8).div_ceil(2) * 8;
        let out = |tokens: usize, rows: usize| tokens * (rows * 2 + 16);
        let bytes = match (self.rows <= TURNS_ROWS, self.split) {
            (true, _) => {
                let places = if self.tile_t == 64 && !self.makes_s { 1 } else { 3 };
                places * half * 64 * 4 + out(half, 64)
            }
            (false, true) => 2 * half * 64 * 4 + out(half, 128),
            (false, false) => out(self.tile_t, 128),
        };
        bytes.max(56 * STEP_BYTES)
    }

    /// As many as there is room for, to have so many bytes of the weight in flight.
    fn stages(&self, shared_bytes: usize, in_flight: usize) -> usize {
        let fit = (shared_bytes - BARRIER_BYTES - self.handover_bytes()) / self.stage_bytes();
        let stages = (in_flight / (self.rows * STEP_BYTES)).max(4).min(fit).min(MOST_STAGES);
        // Warpgroups that take turns have stages of their own.
        stages - if self.rows <= TURNS_ROWS { stages % 2 } else { 0 }
    }
}

/// A launch. W0 is dealt out by rows in shares, which are a block's, or a pair's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The tile of tokens, one of [`TILES_T`].
    pub(crate) tile_t: usize,
    /// What a block takes.
    pub(crate) shared_bytes: usize,
    /// The blocks of a pair work on the same share, half of k each.
    pub(crate) split: bool,
    /// Rows of a share.
    pub(crate) rows: usize,
    /// Shares of each, one after the other.
    pub(crate) rounds: usize,
    /// Pairs of blocks that make H.
    pub(crate) pairs: usize,
    /// Stages of theirs.
    pub(crate) stages: usize,
    /// Steps of W0 that the L2 is asked for, before the launch before is done.
    pub(crate) ahead: usize,
    /// The step of theirs at which the next launch may start.
    pub(crate) next_at: usize,
    /// What makes S.
    pub(crate) down: Down,
}

/// The pairs of blocks that make S, which is dealt out by columns and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Down {
    pub(crate) pairs: usize,
    /// Pairs for the same tokens.
    pub(crate) ranks: usize,
    /// Columns of each, which are rows of A.
    pub(crate) rows: usize,
    /// Tokens of each, and those that a stage has room for.
    pub(crate) tokens: usize,
    pub(crate) tile_t: usize,
    pub(crate) stages: usize,
    /// Steps of A and X that the L2 is asked for, before the launch before is done.
    pub(crate) ahead: usize,
}

impl Down {
    fn new([t, r]: [usize; 2], ranks: usize, tile_t: usize, shared_bytes: usize) -> Self {
        let rows = r.div_ceil(ranks.max(1)).next_multiple_of(8).max(8);
        let (ranks, slices) = (r.div_ceil(rows), t.div_ceil(tile_t));
        let ring = Ring { tile_t, rows, split: true, makes_s: true };
        let stages = ring.stages(shared_bytes, usize::MAX);
        let (pairs, tokens) = (ranks * slices, t.div_ceil(slices));
        Down { pairs, ranks, rows, tokens, tile_t, stages, ahead: 0 }
    }
}

impl Schedule {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on so many pairs of multiprocessors.
    pub(crate) fn new(sizes: [usize; 4], pairs: usize) -> Self {
        Self::halves(sizes, pairs).unwrap_or_else(|| Self::wholes(sizes, pairs))
    }

    /// Where blocks have little to read, the memory idles as a launch ends and the next one begins. So there
    /// is room for two on a multiprocessor: those of the next launch come in time to ask for W0 just then.
    fn halves([t, d, k, r]: [usize; 4], pairs: usize) -> Option<Self> {
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile && tile <= 64)?;
        let down_tile = tile_t.min(HALF_DOWN_TOKENS);
        let slices = t.div_ceil(down_tile);
        // Not more pairs than have multiprocessors of their own: two blocks that read W0 through the same one
        // take longer than any others, and the next launch finds no room. T has no part in this, since in
        // which order sums go along k depends on it.
        let left_to_s = if r > 0 { HALF_DOWN_PAIRS } else { 0 };
        let of_h = pairs.checked_sub(left_to_s).filter(|&pairs| pairs > 0)?;
        let least_rows = LEAST_ROWS.min(d.next_multiple_of(8));
        let rows = d.div_ceil(of_h).next_multiple_of(8).max(least_rows);
        if rows > TURNS_ROWS || rows * k > FEW_ELEMENTS {
            return None;
        }
        let of_h = d.div_ceil(rows);
        let shared_bytes = HALF_SHARED_BYTES;
        // S is to be there before it is needed, so all pairs that are left make it, or more if they must.
        let ranks = (pairs - of_h) / slices;
        let ranks = ranks.clamp(r.div_ceil(HALF_DOWN_ROWS), r.div_ceil(16));
        // When so many bytes of W0 are left to a block, the next launch is let start. Earlier, what that one
        // asks for competes with this one; later, it does not come in time.
        let left = match tile_t {
            ..=16 => 128 << 10,
            32 => 96 << 10,
            _ => 64 << 10,
        };
        let ring = Ring { tile_t, rows, split: true, makes_s: false };
        let steps = k.div_ceil(64).div_ceil(2);
        Some(Schedule {
            tile_t,
            shared_bytes,
            split: true,
            rows,
            rounds: 1,
            pairs: of_h,
            stages: ring.stages(shared_bytes, 80 << 10),
            ahead: (48 << 10) / (rows * STEP_BYTES),
            next_at: steps.saturating_sub(left / (rows * STEP_BYTES)),
            down: Down { ahead: steps, ..Down::new([t, r], ranks, down_tile, shared_bytes) },
        })
    }

    fn wholes([t, d, k, r]: [usize; 4], pairs: usize) -> Self {
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile).expect("plans look at T first");
        let shared_bytes = MOST_SHARED_BYTES;
        let down = Down::new([t, r], r.div_ceil(DOWN_ROWS), tile_t, shared_bytes);
        // Where there are no others, those that make S are followed by those that make H.
        let pairs = pairs.saturating_sub(down.pairs).max(1);
        // A pair that shares rows reads half as much of X, but has to add up its sums.
        let split = d.div_ceil(pairs) <= MOST_ROWS;
        let per_pair = if split { 1 } else { 2 };
        let shares = pairs * per_pair;
        let rounds = d.div_ceil(shares).div_ceil(MOST_ROWS);
        let rows = d.div_ceil(shares * rounds).next_multiple_of(8);
        // Enough to keep the memory busy. More would only wait in its queues, and have S wait there; and what
        // the L2 is asked for early competes with the launch before. Where blocks read much, that is worth
        // more.
        let (in_flight, ahead) = match rows * rounds * per_pair * k {
            ..=FEW_ELEMENTS => (64 << 10, 48 << 10),
            _ => (96 << 10, 128 << 10),
        };
        let ring = Ring { tile_t, rows, split, makes_s: false };
        Schedule {
            tile_t,
            shared_bytes,
            split,
            rows,
            rounds,
            pairs: d.div_ceil(rows * rounds * per_pair),
            stages: ring.stages(shared_bytes, in_flight),
            ahead: ahead / (rows * STEP_BYTES),
            next_at: 0,
            down,
        }
    }

    /// Rows of X that a block loads at a time: all T, or half of them where the blocks of a pair load X for
    /// both, so that what swizzles rows in eights has the same rows of each.
    pub(crate) fn x_rows(&self, t: usize) -> usize {
        match !self.split && self.tile_t >= 32 {
            true => t.div_ceil(2).next_multiple_of(8),
            false => t,
        }
    }

    /// The grid.
    pub(crate) fn blocks(&self) -> usize {
        2 * (self.pairs + self.down.pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::shapes;
    use crate::plan::Alone;
    use std::collections::HashSet;

    fn schedules() -> impl Iterator<Item = ([usize; 4], usize, Schedule)> {
        shapes()
            .flat_map(|[t, k, d, r]| {
                let t = (t - 1) % MOST_TOKENS + 1;
                let with = move |r| [1, 2, 8, 66].map(|pairs| ([t, d, k, r], pairs));
                with(r).into_iter().chain(with(0))
            })
            .map(|(sizes, pairs)| (sizes, pairs, Schedule::new(sizes, pairs)))
    }

    /// The rows of the kernel's `Work`, of every block that makes H.
    #[test]
    fn every_row_of_w0_is_in_one_share() {
        for ([t, d, k, r], pairs, schedule) in schedules() {
            let context = format!("T={t} d={d} k={k} r={r} on {pairs}: {schedule:?}");
            let Schedule { split, rows, rounds, pairs: of_h, .. } = schedule;
            let shares = if split { of_h } else { 2 * of_h };
            let all = (0..rounds).flat_map(|round| (0..shares).map(move |i| round * shares + i));
            let mut starts: Vec<usize> = all.map(|share| share * rows).collect();
            starts.dedup();
            assert_eq!(starts.len(), shares * rounds, "{context}");
            assert!(starts.iter().enumerate().all(|(i, &start)| start == i * rows), "{context}");
            assert!(starts.len() * rows >= d, "rows left over: {context}");
            // No pair without a row.
            assert!((of_h - 1) * rows * (shares / of_h) < d, "{context}");
            assert!(rows % 8 == 0 && rows <= MOST_ROWS, "{context}");
            // What a pair hands over has a place for one round, and a block alone has 64 rows for the first
            // warpgroup.
            assert!(if split { rounds == 1 } else { rows > TURNS_ROWS }, "{context}");
        }
    }

    /// As the kernel's `Work` has it, of every pair that makes S.
    #[test]
    fn every_element_of_s_is_made_once() {
        for ([t, d, k, r], pairs, schedule) in schedules() {
            let context = format!("T={t} d={d} k={k} r={r} on {pairs}: {schedule:?}");
            let Schedule { tile_t, down, .. } = schedule;
            let starts: HashSet<[usize; 2]> = (0..down.pairs)
                .map(|pair| [pair / down.ranks * down.tokens, pair % down.ranks * down.rows])
                .collect();
            assert_eq!(starts.len(), down.pairs, "{context}");
            assert!(starts.iter().all(|&[token, col]| token < t && col < r), "{context}");
            let shares = t.div_ceil(down.tokens) * r.div_ceil(down.rows);
            assert_eq!(down.pairs, shares, "{context}");
            assert!(down.tokens <= down.tile_t && down.rows <= TURNS_ROWS, "{context}");
            assert!(down.rows > 0 && down.rows % 8 == 0, "{context}");
            // Those that the kernel is there for.
            let sliced = down.tile_t == HALF_DOWN_TOKENS && tile_t == 64;
            assert!(down.tile_t == tile_t || sliced, "{context}");
        }
    }

    #[test]
    fn stages_fit_and_all_pairs_run_at_once_where_there_are_enough() {
        for ([t, d, k, r], pairs, schedule) in schedules() {
            let context = format!("T={t} d={d} k={k} r={r} on {pairs}: {schedule:?}");
            let Schedule { tile_t, shared_bytes, split, rows, down, .. } = schedule;
            assert!(t <= tile_t && TILES_T.contains(&tile_t), "{context}");
            let of_h = Ring { tile_t, rows, split, makes_s: false };
            let of_s = Ring { tile_t: down.tile_t, rows: down.rows, split: true, makes_s: true };
            for (ring, stages) in [(of_h, schedule.stages), (of_s, down.stages)] {
                assert!((3..=MOST_STAGES).contains(&stages), "{context}");
                assert!(ring.rows > TURNS_ROWS || stages % 2 == 0, "{context}");
                let taken = BARRIER_BYTES + stages * ring.stage_bytes() + ring.handover_bytes();
                assert!(taken <= shared_bytes, "{context}");
            }
            assert!(shared_bytes <= FOOTPRINT.shared_bytes as usize, "{context}");
            // There is a step at which the next launch may start.
            let steps = schedule.rounds * k.div_ceil(64).div_ceil(if split { 2 } else { 1 });
            assert!(schedule.next_at < steps, "{context}");
            // Both halves of X, if it is loaded in halves, and no more than there is room for.
            let x_rows = schedule.x_rows(t);
            let boxes = t.div_ceil(x_rows);
            assert!(boxes == 1 || !schedule.split && boxes == 2 && x_rows % 8 == 0, "{context}");
            assert!(boxes * x_rows <= schedule.tile_t, "{context}");
            let beside = match shared_bytes {
                HALF_SHARED_BYTES => down.pairs.min(HALF_DOWN_PAIRS),
                _ => down.pairs,
            };
            if pairs > beside {
                assert!(schedule.pairs + beside <= pairs, "{context}");
            }
        }
    }

    /// In which order the kernel adds up: pairs have halves of k, and up to some rows, even and odd steps.
    #[test]
    fn t_has_no_part_in_the_order_of_sums() {
        for ([_, d, k, r], pairs, _) in schedules() {
            let orders = (1..=64).map(|t| {
                let Schedule { split, rows, .. } = Schedule::new([t, d, k, r], pairs);
                (split, rows <= TURNS_ROWS)
            });
            let orders: HashSet<_> = orders.collect();
            assert_eq!(orders.len(), 1, "d={d} k={k} r={r} on {pairs}: {orders:?}");
        }
    }

    /// The shapes that compute-sanitizer runs on come to every kernel and every way of its blocks. More than
    /// 64 tokens come here only where they are several rounds.
    #[test]
    fn everything_is_sanitized() {
        let shapes: [([usize; 4], usize); 18] =
            include!("../../tests/common/hopper_decode_shapes.in");
        let (mut ways, mut kinds) = (HashSet::new(), HashSet::new());
        for ([t, d, k, r], sms) in shapes {
            let Some(Alone::Decode(schedule)) = Alone::new([t, d, k, r], sms / 2) else {
                panic!("T={t} d={d} k={k} r={r} on {sms} goes another way");
            };
            let Schedule { tile_t, shared_bytes, split, rows, rounds, pairs, down, .. } = schedule;
            ways.insert((tile_t, split, rows > TURNS_ROWS, shared_bytes));
            let shares = d.div_ceil(rows);
            kinds.extend([
                ("several rounds", rounds > 1),
                ("several pairs for columns of S", down.ranks > 1),
                ("several pairs for tokens of S", down.pairs > down.ranks),
                ("steps along r for both blocks", split && r > 64),
                ("a block without rows", !split && rounds == 1 && shares < 2 * pairs),
            ]);
        }
        assert_eq!(ways.len(), (TILES_T.len() - 1) * 4 + 1, "{ways:?}");
        assert_eq!(kinds.iter().filter(|(_, is)| *is).count(), 5, "{kinds:?}");
    }

    /// What was measured to be best on an H100.
    #[test]
    fn layers_of_known_models_have_few_rows_a_block() {
        let of = |d| {
            let Schedule { split, rows, rounds, pairs, .. } = Schedule::new([16, d, 4096, 16], 66);
            (split, rows, rounds, pairs)
        };
        assert_eq!(of(4096), (true, 64, 1, 64));
        assert_eq!(of(8192), (true, 128, 1, 64));
        assert_eq!(of(14336), (false, 112, 1, 64));
        assert_eq!(of(28672), (false, 112, 2, 64));
        assert_eq!(of(1024), (true, 32, 1, 32));
    }
}
