//! How `kernels/hopper_decode.cu` is launched: which rows of W0 and A its blocks read.

use super::{hopper_grads, Footprint};

/// The most tokens that it serves.
pub(crate) const MOST_TOKENS: usize = 128;

/// The tiles of tokens that the kernel is there for.
pub(crate) const TILES_T: [usize; 5] = [8, 16, 32, 64, MOST_TOKENS];

/// Those of dX.
pub(crate) const INPUT_GRAD_TILES_T: [usize; 4] = [8, 16, 32, 64];

/// What a block takes at most.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [288, 1], shared_bytes: MOST_SHARED_BYTES as u32 };

/// The same of one that makes dX, and dA and dB beside it.
pub(crate) const INPUT_GRAD_FOOTPRINT: Footprint = Footprint { threads: [416, 1], ..FOOTPRINT };

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

/// The tokens up to which dX is made by two blocks on a multiprocessor. With more, registers would not do.
const HALF_INPUT_GRAD_TOKENS: usize = 32;

/// How a product reads its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reads {
    /// The forward.
    Rows,
    /// The input gradient: columns, in whole boxes, as the rows of the transposed. Those of the last box
    /// that are another block's are in the L2.
    Columns,
}

impl Reads {
    /// So many rows at a time.
    fn unit(self) -> usize {
        match self {
            Reads::Rows => 8,
            Reads::Columns => 64,
        }
    }
}

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
    fn new(
        [t, r]: [usize; 2],
        reads: Reads,
        ranks: usize,
        tile_t: usize,
        shared_bytes: usize,
    ) -> Self {
        let rows = r.div_ceil(ranks.max(1)).next_multiple_of(8).max(8);
        let (ranks, slices) = (r.div_ceil(rows), t.div_ceil(tile_t));
        let loaded = rows.next_multiple_of(reads.unit());
        let ring = Ring { tile_t, rows: loaded, split: true, makes_s: true };
        let stages = ring.stages(shared_bytes, usize::MAX);
        let (pairs, tokens) = (ranks * slices, t.div_ceil(slices));
        Down { pairs, ranks, rows, tokens, tile_t, stages, ahead: 0 }
    }
}

/// What a step of dA or dB takes, where they are made, and what aligning it to 1024 bytes may take.
fn grads_bytes(reads: Reads, t: usize, r: usize) -> usize {
    match reads {
        Reads::Rows => 0,
        Reads::Columns => hopper_grads::bytes_beside(t, r) + 1024,
    }
}

impl Schedule {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on so many pairs of multiprocessors.
    pub(crate) fn forward(sizes: [usize; 4], pairs: usize) -> Self {
        Self::new(sizes, Reads::Rows, pairs)
    }

    /// For dX (T×k) over d, with dS (T×r), and dA and dB beside it; `None` for many tokens.
    pub(crate) fn input_grad(sizes: [usize; 4], pairs: usize) -> Option<Self> {
        let few = INPUT_GRAD_TILES_T.iter().any(|&tile| sizes[0] <= tile);
        few.then(|| Self::new(sizes, Reads::Columns, pairs))
    }

    /// In the letters of the forward.
    fn new(sizes: [usize; 4], reads: Reads, pairs: usize) -> Self {
        let halves = Self::halves(sizes, reads, pairs);
        halves.unwrap_or_else(|| Self::wholes(sizes, reads, pairs))
    }

    /// Where blocks have little to read, the memory idles as a launch ends and the next one begins. So there
    /// is room for two on a multiprocessor: those of the next launch come in time to ask for W0 just then.
    fn halves([t, d, k, r]: [usize; 4], reads: Reads, pairs: usize) -> Option<Self> {
        let most_tokens = if reads == Reads::Rows { 64 } else { HALF_INPUT_GRAD_TOKENS };
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile && tile <= most_tokens)?;
        let down_tile = tile_t.min(HALF_DOWN_TOKENS);
        let slices = t.div_ceil(down_tile);
        // Not more pairs than have multiprocessors of their own: two blocks that read W0 through the same one
        // take longer than any others, and the next launch finds no room. T has no part in this, since in
        // which order sums go along k depends on it.
        let left_to_s = if r > 0 { HALF_DOWN_PAIRS } else { 0 };
        let of_h = pairs.checked_sub(left_to_s).filter(|&pairs| pairs > 0)?;
        let least_rows = LEAST_ROWS.min(d.next_multiple_of(8));
        let rows = d.div_ceil(of_h).max(least_rows).next_multiple_of(reads.unit());
        if rows > TURNS_ROWS || rows * k > FEW_ELEMENTS {
            return None;
        }
        let of_h = d.div_ceil(rows);
        // S is to be there before it is needed, so all pairs that are left make it, or more if they must.
        let ranks = (pairs - of_h) / slices;
        let most_ranks = r.div_ceil(reads.unit().max(16));
        let ranks = ranks.clamp(r.div_ceil(HALF_DOWN_ROWS), most_ranks);
        let for_stages = HALF_SHARED_BYTES - grads_bytes(reads, t, r);
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
            shared_bytes: HALF_SHARED_BYTES,
            split: true,
            rows,
            rounds: 1,
            pairs: of_h,
            stages: ring.stages(for_stages, 80 << 10),
            ahead: (48 << 10) / (rows * STEP_BYTES),
            next_at: steps.saturating_sub(left / (rows * STEP_BYTES)),
            down: Down { ahead: steps, ..Down::new([t, r], reads, ranks, down_tile, for_stages) },
        })
    }

    fn wholes([t, d, k, r]: [usize; 4], reads: Reads, pairs: usize) -> Self {
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile).expect("plans look at T first");
        let for_stages = MOST_SHARED_BYTES - grads_bytes(reads, t, r);
        let makes_s = |rows, tile_t| Down::new([t, r], reads, r.div_ceil(rows), tile_t, for_stages);
        // The fewest that there may be, and as many as dS wants if there is room for them. With a pair of
        // multiprocessors that nobody is on, the next launch is all there when the slowest pair ends.
        let (down, more_down, left_over) = match reads {
            Reads::Rows => (makes_s(DOWN_ROWS, tile_t), None, 0),
            Reads::Columns => {
                let more = makes_s(HALF_DOWN_ROWS, tile_t.min(HALF_DOWN_TOKENS));
                (makes_s(HALF_DOWN_ROWS, tile_t), Some(more), 1)
            }
        };
        // Where there are no others, those that make S are followed by those that make H.
        let of_h = pairs.saturating_sub(down.pairs + left_over).max(1);
        // A pair that shares rows reads half as much of X, but has to add up its sums.
        let split = d.div_ceil(of_h) <= MOST_ROWS;
        let per_pair = if split { 1 } else { 2 };
        let shares = of_h * per_pair;
        let rounds = d.div_ceil(shares).div_ceil(MOST_ROWS);
        let rows = d.div_ceil(shares * rounds).next_multiple_of(reads.unit());
        let of_h = d.div_ceil(rows * rounds * per_pair);
        // Enough to keep the memory busy. More would only wait in its queues, and have S wait there; and what
        // the L2 is asked for early competes with the launch before. Where blocks read much, that is worth
        // more.
        let (in_flight, ahead) = match (rows * rounds * per_pair * k, reads) {
            (..=FEW_ELEMENTS, _) => (64 << 10, 48 << 10),
            (_, Reads::Rows) => (96 << 10, 128 << 10),
            (_, Reads::Columns) => (64 << 10, 128 << 10),
        };
        let ring = Ring { tile_t, rows, split, makes_s: false };
        Schedule {
            tile_t,
            shared_bytes: MOST_SHARED_BYTES,
            split,
            rows,
            rounds,
            pairs: of_h,
            stages: ring.stages(for_stages, in_flight),
            ahead: ahead / (rows * STEP_BYTES),
            next_at: 0,
            down: more_down.filter(|more| of_h + more.pairs + left_over <= pairs).unwrap_or(down),
        }
    }

    /// For the same dS (T×r) alone, with the same bits.
    pub(crate) fn without_out(&self, [t, r]: [usize; 2]) -> Self {
        let shared_bytes = MOST_SHARED_BYTES;
        let Down { ranks, tile_t, .. } = self.down;
        let down = Down::new([t, r], Reads::Columns, ranks, tile_t, shared_bytes);
        Schedule { shared_bytes, pairs: 0, down, ..*self }
    }

    /// Where in the shared memory of a block that makes dX the steps of dA and dB are.
    pub(crate) fn grads_at(&self, [t, r]: [usize; 2]) -> usize {
        (self.shared_bytes - grads_bytes(Reads::Columns, t, r)) / 1024 * 1024
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

    /// In the letters of the forward.
    struct Case {
        reads: Reads,
        sizes: [usize; 4],
        pairs: usize,
        schedule: Schedule,
        context: String,
    }

    fn cases() -> impl Iterator<Item = Case> {
        let sizes = shapes().flat_map(|[t, k, d, r]| {
            let t = (t - 1) % MOST_TOKENS + 1;
            let with = move |r| [1, 2, 8, 66].map(|pairs| ([t, d, k, r], pairs));
            with(r).into_iter().chain(with(0))
        });
        sizes.flat_map(|(sizes, pairs)| {
            let forward = (Reads::Rows, Some(Schedule::forward(sizes, pairs)));
            let input_grad = Schedule::input_grad(sizes, pairs).filter(|_| sizes[3] > 0);
            let both = [forward, (Reads::Columns, input_grad)].into_iter();
            both.filter_map(move |(reads, schedule)| {
                let (schedule, [t, d, k, r]) = (schedule?, sizes);
                let context =
                    format!("{reads:?}, T={t} d={d} k={k} r={r} on {pairs}: {schedule:?}");
                Some(Case { reads, sizes, pairs, schedule, context })
            })
        })
    }

    /// The rows of the kernel's `Work`, of every block that makes H.
    #[test]
    fn every_row_of_w0_is_in_one_share() {
        for Case { reads, sizes: [_, d, ..], schedule, context, .. } in cases() {
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
            assert!(rows % reads.unit() == 0 && rows <= MOST_ROWS, "{context}");
            // What a pair hands over has a place for one round, and a block alone has 64 rows for the first
            // warpgroup.
            assert!(if split { rounds == 1 } else { rows > TURNS_ROWS }, "{context}");
        }
    }

    /// As the kernel's `Work` has it, of every pair that makes S.
    #[test]
    fn every_element_of_s_is_made_once() {
        for Case { reads, sizes: [t, _, _, r], schedule, context, .. } in cases() {
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
            if reads == Reads::Rows {
                continue;
            }
            // Alone, with what others have no part in: in which order an element is added up.
            let alone = schedule.without_out([t, r]);
            assert_eq!((alone.pairs, alone.down.pairs > 0), (0, true), "{context}");
            assert_eq!((alone.tile_t, alone.down.rows), (tile_t, down.rows), "{context}");
            assert_eq!(alone.down.tokens, down.tokens, "{context}");
        }
    }

    #[test]
    fn stages_fit_and_all_pairs_run_at_once_where_there_are_enough() {
        for Case { reads, sizes: [t, _, k, r], pairs, schedule, context } in cases() {
            let Schedule { tile_t, shared_bytes, split, rows, down, .. } = schedule;
            let tiles = if reads == Reads::Rows { &TILES_T[..] } else { &INPUT_GRAD_TILES_T };
            assert!(t <= tile_t && tiles.contains(&tile_t), "{context}");
            let of_h = Ring { tile_t, rows, split, makes_s: false };
            let down_rows = down.rows.next_multiple_of(reads.unit());
            let of_s = Ring { tile_t: down.tile_t, rows: down_rows, split: true, makes_s: true };
            for (ring, stages) in [(of_h, schedule.stages), (of_s, down.stages)] {
                assert!((3..=MOST_STAGES).contains(&stages), "{context}");
                assert!(ring.rows > TURNS_ROWS || stages % 2 == 0, "{context}");
                let taken = BARRIER_BYTES + stages * ring.stage_bytes() + ring.handover_bytes();
                let end = match reads {
                    Reads::Rows => shared_bytes,
                    // The kernel counts from where it has aligned the start.
                    Reads::Columns => 1024 + schedule.grads_at([t, r]),
                };
                assert!(taken <= end, "{context}");
            }
            assert!(shared_bytes <= FOOTPRINT.shared_bytes as usize, "{context}");
            if reads == Reads::Columns {
                let [at, bytes] = [schedule.grads_at([t, r]), hopper_grads::bytes_beside(t, r)];
                assert!(at % 1024 == 0 && 1023 + at + bytes <= shared_bytes, "{context}");
            }
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
            if pairs > beside && reads == Reads::Rows {
                assert!(schedule.pairs + beside <= pairs, "{context}");
            }
            if reads == Reads::Columns
                && shared_bytes == MOST_SHARED_BYTES
                && pairs > down.pairs + 1
            {
                assert!(schedule.pairs + down.pairs < pairs, "one is left over: {context}");
            }
        }
    }

    /// In which order the kernel adds up: pairs have halves of k, and up to some rows, even and odd steps.
    #[test]
    fn t_has_no_part_in_the_order_of_sums() {
        for Case { sizes: [_, d, k, r], pairs, .. } in cases().filter(|c| c.reads == Reads::Rows) {
            let orders = (1..=64).map(|t| {
                let Schedule { split, rows, .. } = Schedule::forward([t, d, k, r], pairs);
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
        let shapes: [([usize; 4], usize); 22] =
            include!("../../tests/common/hopper_decode_shapes.in");
        let (mut ways, mut kinds) = (HashSet::new(), HashSet::new());
        for ([t, d, k, r], sms) in shapes {
            let forward = (Reads::Rows, Alone::forward([t, d, k, r], sms / 2), d);
            let input_grad = (Reads::Columns, Alone::input_grad([t, k, d, r], sms / 2), k);
            for (reads, alone, n) in [forward, input_grad] {
                let Some(Alone::Decode(schedule)) = alone else {
                    assert!(
                        reads == Reads::Columns && t > 64,
                        "{:?} goes another way",
                        [t, d, k, r]
                    );
                    continue;
                };
                let Schedule { tile_t, shared_bytes, split, rows, rounds, pairs, down, .. } =
                    schedule;
                ways.insert((reads, tile_t, split, rows > TURNS_ROWS, shared_bytes));
                let of_all = [
                    ("several rounds", rounds > 1),
                    ("several pairs for columns of S", down.ranks > 1),
                    ("several pairs for tokens of S", down.pairs > down.ranks),
                    ("steps along r for both blocks", split && r > 64),
                    ("a block without rows", !split && rounds == 1 && n.div_ceil(rows) < 2 * pairs),
                ];
                let [_, ranks] = hopper_grads::box_beside(t, r);
                let items = (k.div_ceil(64) + d.div_ceil(64)) * r.div_ceil(ranks);
                let of_input_grad = [
                    ("one dA or dB of 16 ranks for a block", ranks == 16 && items <= 2 * pairs),
                    ("several of 16 ranks", ranks == 16 && items > 2 * pairs),
                    ("several of 32 ranks", ranks == 32 && items > 2 * pairs),
                    ("a part of a box", n % 64 > 0),
                ];
                let of_input_grad =
                    of_input_grad.map(|(kind, is)| (kind, is && reads == Reads::Columns));
                let is = of_all.into_iter().chain(of_input_grad).filter(|(_, is)| *is);
                kinds.extend(is.map(|(kind, _)| (reads, kind)));
            }
        }
        let of = |reads| ways.iter().filter(|way| way.0 == reads).count();
        assert_eq!(of(Reads::Rows), (TILES_T.len() - 1) * 4 + 1, "{ways:?}");
        // No halves for 64 tokens.
        assert_eq!(of(Reads::Columns), INPUT_GRAD_TILES_T.len() * 4 - 1, "{ways:?}");
        assert_eq!(kinds.len(), 2 * 5 + 4, "{kinds:?}");
    }

    /// What was measured to be best on an H100.
    #[test]
    fn layers_of_known_models_have_few_rows_a_block() {
        let of = |d| {
            let Schedule { split, rows, rounds, pairs, .. } =
                Schedule::forward([16, d, 4096, 16], 66);
            (split, rows, rounds, pairs)
        };
        assert_eq!(of(4096), (true, 64, 1, 64));
        assert_eq!(of(8192), (true, 128, 1, 64));
        assert_eq!(of(14336), (false, 112, 1, 64));
        assert_eq!(of(28672), (false, 112, 2, 64));
        assert_eq!(of(1024), (true, 32, 1, 32));
    }
}
