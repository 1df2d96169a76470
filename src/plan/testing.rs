//! Problems for tests of plans.

use crate::dtype::DType;
use crate::problem::{MAX_PROJECTIONS, MAX_RANK, Problem};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

pub(crate) fn rng(seed: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed)
}

/// 1 to `most`, uniform in the number of bits.
pub(crate) fn size(rng: &mut Pcg64, most: usize) -> usize {
    let low = 1 << rng.random_range(0..=most.ilog2());
    rng.random_range(low..2 * low).min(most)
}

pub(crate) fn pick<T: Copy>(rng: &mut Pcg64, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

const MOST_T: usize = 262_144 * 8;

/// T, k, d and r: the ends of their ranges, the borders of tiles and splits, then at random.
pub(crate) fn shapes() -> impl Iterator<Item = [usize; 4]> {
    let edges_t = [1, 63, 64, 65, 511, 512, 513, 1024, 262_144, MOST_T];
    let edges_n = [1, 127, 128, 129, 30_000];
    let edges_r = [1, 16, 17, 64, 65, 256];
    let edges = edges_t.into_iter().flat_map(move |t| {
        let both = move |n| edges_r.map(|r| [t, n, 30_001 - n, r]);
        edges_n.into_iter().flat_map(both)
    });
    let mut rng = rng(1);
    let mut random = move || [MOST_T, 30_000, 30_000, MAX_RANK].map(|most| size(&mut rng, most));
    edges.chain((0..5000).map(move |_| random()))
}

/// Single layers of these shapes.
pub(crate) fn single_problems() -> impl Iterator<Item = Problem> {
    shapes().map(|[t, k, d, r]| Problem::single(t, k, d, r, DType::Bf16).unwrap())
}

/// One to four projections, with the sizes of neighbouring shapes.
pub(crate) fn problems() -> impl Iterator<Item = Problem> {
    let all: Vec<_> = shapes().collect();
    (0..all.len() - MAX_PROJECTIONS).map(move |i| {
        let sizes = &all[i..i + 1 + i % MAX_PROJECTIONS];
        let layers: Vec<_> = sizes.iter().map(|&[_, _, d, r]| (d, r)).collect();
        Problem::new(all[i][0], all[i][1], &layers, DType::Bf16).unwrap()
    })
}

/// The problems of the benchmark sets in benches/overhead/shapes.rs.
pub(crate) fn bench_problems() -> Vec<Problem> {
    let llama = [
        (4096, 4096),
        (4096, 1024),
        (4096, 14336),
        (14336, 4096),
        (8192, 8192),
        (8192, 1024),
        (8192, 28672),
        (28672, 8192),
    ];
    let few = [(4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192)];
    let awkward = [(3584, 512), (3584, 18944), (18944, 3584), (7168, 2112)];
    let single = |t, k, d, r| Problem::single(t, k, d, r, DType::Bf16).unwrap();
    let mut all = vec![single(8191, 3584, 512, 24), single(2048, 4096, 1024, 16)];
    let mut product = |tokens: &[usize], weights: &[(usize, usize)], ranks: &[usize]| {
        for &t in tokens {
            for &(k, d) in weights {
                all.extend(ranks.iter().map(|&r| single(t, k, d, r)));
            }
        }
    };
    product(&[2048, 8192, 16384], &llama, &[16, 64]);
    product(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], &few, &[16, 64]);
    product(&[8191], &awkward, &[8, 24, 128]);
    for r in [16, 64] {
        for d in [&[4096, 1024, 1024][..], &[14336, 14336]] {
            let layers: Vec<_> = d.iter().map(|&d| (d, r)).collect();
            all.push(Problem::new(8192, 4096, &layers, DType::Bf16).unwrap());
        }
    }
    all
}
