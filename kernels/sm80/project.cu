// The projection onto the rank-r space, out = scale · lhs · rhsᵀ:
//
//   forward    S  = s · X Aᵀ     lhs X (T×k),   rhs A (r×k), K-major
//   backward   dS = s · dH B     lhs dH (T×d),  rhs B (d×r), MN-major
//
// Where projections share X, S is that of all in one launch: A is theirs one below the other, r the
// sum of their ranks, and the columns of each have a scale of their own. Their dS take a launch
// each, into columns of one matrix.
//
// Bound by reading lhs, so every byte of it is read once from memory: a CTA takes 32 whole rows,
// and its four warps along k split each step of 128 columns. Accumulated in f32, the partial sums
// of the warps added in a fixed order, scaled, and rounded once; an f16 saturates (element.cuh).
// With dropout, bound by random numbers: at kRank = 16 a CTA computes 16 rows, by eight warps along
// k in steps of 256 columns. NOTES: eight warps serve short batches, four are as fast in long ones
// (428 and 426 µs for a forward of 8192×4096² on an H200).
//
// Grid: ⌈r/kRank⌉ · ⌈T/kTileM⌉, the CTAs that share rows of lhs next to each other, so that all but
// the first find them in the L2. Block: kWarpsK warps along k, for every 16 rows.
// Shared memory: stages of (kTileM + kRank)×32 kWarpsK elements, 96 KiB at most.
// Reads lhs and rhs; writes out, every element once. Needs nothing initialised.
#include "../common/dropout.cuh"
#include "../common/pdl.cuh"
#include "tile.cuh"

#include "manifest/common/limits.cuh"
#include "manifest/sm80/project.cuh"

__device__ __forceinline__ float scale_of(const ProjectParams& p, int col) {
    float scale = p.scales[0];
#pragma unroll
    for (int i = 1; i < kMaxProjections; i++) scale = col < p.ends[i - 1] ? scale : p.scales[i];
    return scale;
}

// With dropout, lhs is X, of which elements are dropped; the scale has the factor 1 / (1 - p).
template <typename E, int kRank, Major kRhs, typename D = NoDropout>
__device__ __forceinline__ void project(const ProjectParams& p, const D& dropout = {}) {
    constexpr bool kByRandom = kDrops<D> && kRank == 16;
    constexpr int kTileM = kByRandom ? kDropoutTileM : ::kTileM;
    constexpr int kWarpsK = kByRandom ? kDropoutWarps : kWarps, kTileK = 32 * kWarpsK;
    constexpr int kStages = kByRandom ? kDropoutStages : ::kStages;
    using Product =
        TileProduct<E, kTileM, kRank, kTileK, kTileM / 16, 1, kWarpsK, Major::K, kRhs, kStages>;
    extern __shared__ __align__(128) unsigned char shared[];
    // The next launch may start on SMs that this one leaves, and wait for it where it loads out. It
    // relies on this launch beginning after all before it: without PDL.
    // NOTES: with PDL, a forward with dropout of 2048×4096² took 126 µs on an H200, not 107.
    // Presumably CTAs that start early fill the few SMs that are free, two or three on one.
    pdl_trigger();
    const int rank_tiles = (p.r + kRank - 1) / kRank;
    const int m0 = blockIdx.x / rank_tiles * kTileM, n0 = blockIdx.x % rank_tiles * kRank;

    Product product;
    const Segment whole[] = {{p.lhs, p.rhs, p.k}};
    if constexpr (kDrops<D>) {
        const auto mask = mask_of(dropout);
        const int lane = threadIdx.x % 32, row = m0 + Product::warp_m() * 16 + lane / 4;
        const int col = Product::warp_k() * 32;
        const DropoutRow rows[2] = {mask.row(row), mask.row(row + 8)};
        // Of rows 8 on too; a warp has 32 columns of a step.
        DropoutWords words[2];
        product.run(shared, whole, 1, p.m, p.r, m0, n0, BeforeNone(),
                    [&](uint32_t(&x)[1][4], int step, int k16) {
                        if (k16 == 0) {
                            const DropoutCols cols = mask.cols(col + step * kTileK, lane % 4);
                            mask.words(words, rows, {cols, cols});
                        }
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            x[0][i] = mask.apply(x[0][i], words[i % 2].of[k16 * 2 + i / 2]);
                    });
    } else {
        product.run(shared, whole, 1, p.m, p.r, m0, n0);
    }
    product.reduce_warps_k(shared);
    if (Product::warp_k() > 0) return;
    product.for_each_chunk(shared, [&](int row, int col, float(&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= scale_of(p, n0 + col + i);
        store_chunk<E, true>(p.out, m0 + row, n0 + col, p.m, p.r, v);
    });
}

#include "instances/sm80/project.cuh"
