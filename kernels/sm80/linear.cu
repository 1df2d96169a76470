// The base product with the adapter's as a longer inner dimension, a sum over a list of segments:
//
//   forward      H  = X W0ᵀ + S Bᵀ         X (T×k), W0 (d×k)        S (T×r), B (d×r)
//   input grad   dX = Σᵢ dHᵢ W0ᵢ + dS A    dHᵢ (T×dᵢ), W0ᵢ (dᵢ×k)    dS (T×R), A (R×k)
//
// with i over the projections that share X, at most four, and R the sum of their ranks.
// out[m, n] = Σ lhs[m, k] rhs[n, k] over the segments, one after the other, and the k of each,
// accumulated in f32 and rounded once. In the forward every rhs lies K-major in memory, in the
// input gradient MN-major; that is the whole difference. X and W0 alone are the frozen layer.
//
// Grid: a CTA for each tile of 128×256, 1-D. CTA: 8 warps, 2 along m × 4 along n, 64×64 each.
// Shared memory: 4 stages of (128 + 256)×32 elements, 96 KiB, so one CTA fits on every GPU from
// 8.0 on. Reads the segments; writes out, every element once. Needs nothing initialised.
//
//   k steps   |------------- X, W0: ⌈k/32⌉ -------------|- S, B: ⌈r/32⌉ -|
//
// Tiles are taken in groups of 16 rows, column by column, so that the CTAs that run at the same
// time share about as many rows of lhs as of rhs in the L2.
#include "tile.cuh"

#include "manifest/sm80/linear.cuh"

constexpr int kGroup = 16;

template <typename E, Major kRhs>
__device__ __forceinline__ void linear(const LinearParams& p) {
    using Product = TileProduct<E, kTileM, kTileN, kTileK, 2, 4, 1, Major::K, kRhs, kStages>;
    extern __shared__ __align__(128) unsigned char shared[];

    const int tiles_m = (p.m + kTileM - 1) / kTileM, tiles_n = (p.n + kTileN - 1) / kTileN;
    const int group = blockIdx.x / (kGroup * tiles_n), in_group = blockIdx.x % (kGroup * tiles_n);
    const int group_rows = min(kGroup, tiles_m - group * kGroup);
    const int m0 = (group * kGroup + in_group % group_rows) * kTileM;
    const int n0 = in_group / group_rows * kTileN;

    Product product;
    product.run(shared, p.segments, p.count, p.m, p.n, m0, n0);
    product.for_each_chunk(shared, [&](int row, int col, const float(&v)[8]) {
        store_chunk<E>(p.out, m0 + row, n0 + col, p.m, p.n, v);
    });
}

#include "instances/sm80/linear.cuh"
