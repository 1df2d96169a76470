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
// Tiles m×n×k, for all of which the stages take 96 KiB: a CTA fits on every GPU from 8.0 on.
//
//   tile         warps m×n×k   stages
//   128×256×32   2×4×1         4        the fewest bytes from shared memory for each mma
//   128×128×64   2×2×2         3        } where the widest tiles are too few for the SMs, or the
//   128×64×64    2×2×2         4        } last wave of them is nearly empty
//   64×64×64     2×2×2         6        }
//
// Two warps along k each sum half of every step, and the halves are added at the end: rounding
// differs from that of the widest tile.
//
// Grid: a CTA for each tile, 1-D. CTA: 8 warps. Reads the segments; writes out, every element once.
// Needs nothing initialised.
//
//   k steps   |------------- X, W0: ⌈k/kK⌉ -------------|- S, B: ⌈r/kK⌉ -|
//
// Tiles are taken in groups of 2048 rows, column by column, so that the CTAs that run at the same
// time share about as many rows of lhs as of rhs in the L2.
#include "tile.cuh"

#include "manifest/sm80/linear.cuh"

constexpr int kGroupRows = 2048;

template <typename E, int kM, int kN, Major kRhs>
__device__ __forceinline__ void linear(const LinearParams& p) {
    constexpr int kWarpsK = kN == kWideTileN ? 1 : 2, kWarpsN = 4 / kWarpsK;
    constexpr int kK = kWarpsK * kWarpK, kStages = kStagesBytes / ((kM + kN) * kK * 2);
    using Product = TileProduct<E, kM, kN, kK, 2, kWarpsN, kWarpsK, Major::K, kRhs, kStages>;
    static_assert(Product::kThreads == kThreads && Product::kSharedBytes == kStagesBytes);
    extern __shared__ __align__(128) unsigned char shared[];

    constexpr int kGroup = kGroupRows / kM;
    const int tiles_m = (p.m + kM - 1) / kM, tiles_n = (p.n + kN - 1) / kN;
    const int group = blockIdx.x / (kGroup * tiles_n), in_group = blockIdx.x % (kGroup * tiles_n);
    const int group_rows = min(kGroup, tiles_m - group * kGroup);
    const int m0 = (group * kGroup + in_group % group_rows) * kM;
    const int n0 = in_group / group_rows * kN;

    Product product;
    product.run(shared, p.segments, p.count, p.m, p.n, m0, n0);
    if constexpr (kWarpsK > 1) product.reduce_warps_k(shared);
    if (Product::warp_k() > 0) return;
    product.for_each_chunk(shared, [&](int row, int col, const float(&v)[8]) {
        store_chunk<E>(p.out, m0 + row, n0 + col, p.m, p.n, v);
    });
}

#include "instances/sm80/linear.cuh"
