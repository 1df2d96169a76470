// Partial sums of the adapter's gradients, partials[split] = Lᵀ Y over the rows of one split:
//
//   dA  (r×k) = dSᵀ X     L dS (T×r), Y X  (T×k)
//   dBᵀ (r×d) = Sᵀ dH     L S  (T×r), Y dH (T×d)
//
// Where projections share X, dA is that of all at once, with the sum of their ranks as r, and each
// has its dB, of its own columns of S.
//
// Bound by reading Y, which every column tile reads once. A sum over all T rows would leave too few
// blocks, so T is cut into splits whose partial sums reduce.cu adds in order: no float
// atomics, and the same bits on every run.
//
// Grid: (⌈r/kRank⌉ · ⌈n/128⌉, splits), the rank tiles that share columns of Y next to each other,
// so that all but the first find them in the L2. Block: 4 warps along n, kRank×32 each.
// Shared memory: 4 stages of (kRank + 128)×64 elements: 72 KiB for kRank = 16, 96 KiB for 64.
// Reads lhs and rhs; writes partials (splits×r×n, f32), every element once. Needs nothing
// initialised.
#include "tile.cuh"

#include "manifest/sm80/grad.cuh"

template <typename E, int kRank>
__device__ __forceinline__ void grad(const GradParams& p) {
    using Product =
        TileProduct<E, kRank, kTileN, kTileK, 1, 4, 1, Major::MN, Major::MN, kStages>;
    extern __shared__ __align__(128) unsigned char shared[];
    const int rank_tiles = (p.r + kRank - 1) / kRank;
    const int m0 = blockIdx.x % rank_tiles * kRank, n0 = blockIdx.x / rank_tiles * kTileN;
    const int split = blockIdx.y, t0 = split * p.rows_per_split;

    Segment rows[] = {{p.lhs, p.rhs, min(p.rows_per_split, p.t - t0)}};
    rows[0].lhs.data = element<E>(p.lhs, t0, 0);
    rows[0].rhs.data = element<E>(p.rhs, t0, 0);
    Product product;
    product.run(shared, rows, 1, p.r, p.n, m0, n0);

    Operand out = p.partials;
    out.data = element<float>(out, split * p.r, 0);
    product.for_each_chunk(shared, [&](int row, int col, const float(&v)[8]) {
        store_chunk<float>(out, m0 + row, n0 + col, p.r, p.n, v);
    });
}

#include "instances/sm80/grad.cuh"
