//! How `kernels/hopper_decode.cu` is launched: which rows of W0 and A its blocks read.

use super::Footprint;

/// The most tokens that it serves.
pub(crate) const MOST_TOKENS: usize = 128;

/// The tiles of tokens that the kernel is there for.
pub(crate) const TILES_T: [usize; 5] = [8, 16, 32, 64, MOST_TOKENS];

/// What a block takes: 222 KiB, its barriers, and what aligning to 1024 bytes may take.
pub(crate) const FOOTPRINT: Footprint =
    Footprint { threads: [384, 1], shared_bytes: (222 << 10) + 1024 + 1024 };

/// Words by which blocks tell each other of S.
pub(crate) const FLAGS: usize = 2;

/// Rows of a share.
const MOST_ROWS: usize = 128;

/// Rows up to which the warpgroups of a block take steps in turns.
const TURNS_ROWS: usize = 64;

/// Columns of S that a pair makes: few, for S to be there before it is needed.
const DOWN_ROWS: usize = 32;

/// Stages that a block may have.
const MOST_STAGES: usize = 40;

/// Bytes that there are for them: what hands sums over and the output on its way take the rest, as
/// `Chunks` in the kernel says.
fn ring_bytes(tile_t: usize) -> usize {
    let first_half = (tile_t / 8).div_ceil(2);
    (222 << 10) - first_half * (3 * 128 * 16 + 8 * (64 * 2 + 16))
}

/// Elements of W0 that a pair reads, up to which they are few.
const FEW_ELEMENTS: usize = 1 << 19;

/// Elements of a row in a step, as bytes.
const STEP_BYTES: usize = 64 * 2;

/// A launch. W0 is dealt out by rows in shares, which are a block's, or a pair's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// The tile of tokens, one of [`TILES_T`].
    pub(crate) tile_t: usize,
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
    /// Steps of W0 or A that the L2 is asked for, before the launch before is done.
    pub(crate) ahead: usize,
    /// Pairs of blocks that make S, `down_rows` columns each.
    pub(crate) down_pairs: usize,
    pub(crate) down_rows: usize,
    pub(crate) down_stages: usize,
}

impl Schedule {
    /// For H (T×d) over k, with S (T×r) unless r is 0, on so many pairs of multiprocessors.
    pub(crate) fn new([t, d, k, r]: [usize; 4], pairs: usize) -> Self {
        let tile_t = *TILES_T.iter().find(|&&tile| t <= tile).expect("plans look at T first");
        let down_pairs = r.div_ceil(DOWN_ROWS);
        let down_rows = r.div_ceil(down_pairs.max(1)).next_multiple_of(8).max(8);
        // Where there are no others, those that make S are followed by those that make H.
        let pairs = pairs.saturating_sub(down_pairs).max(1);
        // A pair that shares rows reads half as much of X, but has to add up its sums.
        let split = d.div_ceil(pairs) <= MOST_ROWS;
        let per_pair = if split { 1 } else { 2 };
        let shares = pairs * per_pair;
        let rounds = d.div_ceil(shares).div_ceil(MOST_ROWS);
        let rows = d.div_ceil(shares * rounds).next_multiple_of(8);
        let pairs = d.div_ceil(rows * rounds * per_pair);
        // Enough to keep the memory busy. More would only wait in its queues, and have S wait there; and what
        // the L2 is asked for early competes with the launch before. Where blocks read much, that is worth
        // more.
        let (in_flight, ahead) = match rows * rounds * per_pair * k {
            ..=FEW_ELEMENTS => (64 << 10, 48 << 10),
            _ => (96 << 10, 128 << 10),
        };
        let stages = |rows: usize, in_flight: usize| {
            let fit = ring_bytes(tile_t) / ((rows + tile_t) * STEP_BYTES);
            let stages = (in_flight / (rows * STEP_BYTES)).max(4).min(fit).min(MOST_STAGES);
            // Warpgroups that take turns have stages of their own.
            stages - if rows <= TURNS_ROWS { stages % 2 } else { 0 }
        };
        Schedule {
            tile_t,
            split,
            rows,
            rounds,
            pairs,
            stages: stages(rows, in_flight),
            ahead: ahead / (rows * STEP_BYTES),
            down_pairs,
            down_rows,
            down_stages: stages(down_rows, usize::MAX),
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
        2 * (self.pairs + self.down_pairs)
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

    #[test]
    fn every_column_of_s_is_made_once() {
        for ([t, d, k, r], pairs, schedule) in schedules() {
            let context = format!("T={t} d={d} k={k} r={r} on {pairs}: {schedule:?}");
            let Schedule { down_pairs, down_rows, .. } = schedule;
            assert!(down_pairs * down_rows >= r, "{context}");
            assert!(down_pairs == 0 || (down_pairs - 1) * down_rows < r, "{context}");
            assert!(down_rows % 8 == 0 && (8..=DOWN_ROWS).contains(&down_rows), "{context}");
        }
    }

    #[test]
    fn stages_fit_and_all_pairs_run_at_once_where_there_are_enough() {
        for ([t, d, k, r], pairs, schedule) in schedules() {
            let context = format!("T={t} d={d} k={k} r={r} on {pairs}: {schedule:?}");
            assert!(t <= schedule.tile_t && TILES_T.contains(&schedule.tile_t), "{context}");
            for (rows, stages) in
                [(schedule.rows, schedule.stages), (schedule.down_rows, schedule.down_stages)]
            {
                assert!((3..=MOST_STAGES).contains(&stages), "{context}");
                assert!(rows > TURNS_ROWS || stages % 2 == 0, "{context}");
                // What wgmma reads beyond a stage, 64 rows at a time, is in shared memory too.
                let beyond = rows.next_multiple_of(64) - rows;
                let end = stages * (rows + schedule.tile_t) * STEP_BYTES + beyond * STEP_BYTES;
                assert!(end <= FOOTPRINT.shared_bytes as usize - 2048, "{context}");
                let ring = ring_bytes(schedule.tile_t);
                assert!(stages * (rows + schedule.tile_t) * STEP_BYTES <= ring, "{context}");
            }
            // Both halves of X, if it is loaded in halves, and no more than there is room for.
            let x_rows = schedule.x_rows(t);
            let boxes = t.div_ceil(x_rows);
            assert!(boxes == 1 || !schedule.split && boxes == 2 && x_rows % 8 == 0, "{context}");
            assert!(boxes * x_rows <= schedule.tile_t, "{context}");
            if pairs > schedule.down_pairs {
                assert!(schedule.blocks() <= 2 * pairs, "{context}");
            }
        }
    }

    /// The shapes that compute-sanitizer runs on come to every kernel and every way of its blocks. More than
    /// 64 tokens come here only where they are several rounds.
    #[test]
    fn everything_is_sanitized() {
        let shapes: [([usize; 4], usize); 14] =
            include!("../../tests/common/hopper_decode_shapes.in");
        let (mut ways, mut kinds) = (HashSet::new(), HashSet::new());
        for ([t, d, k, r], sms) in shapes {
            let Some(Alone::Decode(schedule)) = Alone::new([t, d, k, r], sms / 2) else {
                panic!("T={t} d={d} k={k} r={r} on {sms} goes another way");
            };
            let Schedule { tile_t, split, rows, rounds, pairs, down_pairs, .. } = schedule;
            ways.insert((tile_t, split, rows > TURNS_ROWS));
            let shares = d.div_ceil(rows);
            kinds.extend([
                ("several rounds", rounds > 1),
                ("several pairs for S", down_pairs > 1),
                ("steps along r for both blocks", split && r > 64),
                ("a block without rows", !split && rounds == 1 && shares < 2 * pairs),
            ]);
        }
        assert_eq!(ways.len(), (TILES_T.len() - 1) * 3 + 1, "{ways:?}");
        assert_eq!(kinds.iter().filter(|(_, is)| *is).count(), 4, "{kinds:?}");
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
        assert_eq!(of(1024), (true, 16, 1, 64));
    }
}
