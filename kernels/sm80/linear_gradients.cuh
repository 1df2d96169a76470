// The CTAs of linear.cuh that compute dA and dB: out (r×n) (=|+=) lhsᵀ rhs over T, summed in f32,
// and f32 or rounded once to the 16 bits of the operands.
//
//   dA  (r×k) = dSᵀ X     lhs dS (T×r), rhs X  (T×k)
//   dBᵀ (r×d) = Sᵀ dH     lhs S  (T×r), rhs dH (T×d)     stored transposed
//
// Where projections share X, dA is that of all, with the sum of their ranks as r, and each has its
// dB, of its own columns of S.
//
// Bound by reading rhs: a CTA has 64 of its columns, and 16 or 64 of r; the tiles of r that share
// columns are neighbours in the grid, so that all but the first find them in the L2. Where tiles
// are few, T is cut into splits: the last CTA to arrive adds their partial sums in order.
#pragma once

#include "../common/drops.cuh"
#include "projection.cuh"

#include "manifest/sm80/linear.cuh"

// The flag of the rows from m0 on, and how often it is published: by every tile of S in its rows.
__device__ __forceinline__ uint32_t* s_flag(const LinearParams& p, int m0) {
    return p.flags + 1 + m0 / kFlagRows;
}
__device__ __forceinline__ uint32_t s_publications(const LinearParams& p, int m0) {
    const int rows = min(kFlagRows, p.m - m0 / kFlagRows * kFlagRows);
    return p.s_tiles * ((rows + kProjRows - 1) / kProjRows);
}

// By one thread of each CTA that waits for S, behind a barrier after its last wait.
__device__ __forceinline__ void s_seen(const LinearParams& p) {
    waited(p.flags, p.waiters, p.flags + 1, (p.m + kFlagRows - 1) / kFlagRows);
}

// With dropout, elements of X are dropped in dA.
template <typename E, int kRank, typename D>
__device__ __forceinline__ void gradient(const LinearParams& p, const LinearGradient& of, int cta,
                                         unsigned char* shared, const D& dropout) {
    // With 16 columns of lhs, a pass of all threads is 128 rows.
    constexpr int kStep = kRank == 16 ? 128 : 64;
    constexpr int kStages = kStagesBytes / ((kRank + kGradCols) * kStep * 2);
    using Product =
        TileProduct<E, kRank, kGradCols, kStep, 1, 4, 2, Major::MN, Major::MN, kStages>;
    static_assert(Product::kThreads == kThreads && Product::kSharedBytes <= kStagesBytes);
    constexpr int kPartial = kRank * kGradCols;
    const int split = cta % of.splits, tile = cta / of.splits;
    const int rank_tiles = (of.r + kRank - 1) / kRank;
    const int m0 = tile % rank_tiles * kRank, n0 = tile / rank_tiles * kGradCols;
    const int t0 = split * of.rows_per_split, rows = min(of.rows_per_split, p.m - t0);

    auto store_as = [&](auto type, int row, int col, float(&v)[8]) {
        using G = decltype(type);
        const int rank = m0 + row, n = n0 + col;
        if (rank >= of.r) return;
        if (of.transpose) {
            G* to = static_cast<G*>(of.out.data) + (int64_t)n * of.r + rank;
#pragma unroll
            for (int i = 0; i < 8; i++, to += of.r)
                if (n + i < of.n) round_to(*to, p.accumulate ? widen(*to) + v[i] : v[i]);
        } else {
            float old[8] = {};
            if (p.accumulate) load_chunk<G>(old, of.out, rank, n, of.n);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = p.accumulate ? old[i] + v[i] : v[i];
            store_chunk<G>(of.out, rank, n, of.r, of.n, v);
        }
    };
    auto store = [&](int row, int col, float(&v)[8]) {
        if (p.rounds) {
            store_as(E(), row, col, v);
        } else {
            store_as(float(), row, col, v);
        }
    };
    auto before = [&](int) {
        if (of.waits)
            for (int t = t0; t < t0 + rows; t += kFlagRows)
                wait_for(s_flag(p, t), s_publications(p, t));
    };
    const Segment part[] = {
        {from_k<E, Major::MN>(of.lhs, t0), from_k<E, Major::MN>(of.rhs, t0), rows}};
    Product product;
    if constexpr (kDrops<D>) {
        const auto mask = mask_of(dropout);
        product.run(shared, part, 1, of.r, of.n, m0, n0, before, [&](uint32_t stage, int step) {
            if (of.transpose) return;
            Product::Rhs::template drop<kThreads>(mask, stage + Product::Lhs::kBytes,
                                                  t0 + step * kStep, n0);
        });
        if (!of.transpose) product.scale(mask.inv_keep);
    } else {
        product.run(shared, part, 1, of.r, of.n, m0, n0, before);
    }
    if (of.waits && threadIdx.x == 0) s_seen(p);
    product.reduce_warps_k(shared);
    if (of.splits == 1) {
        if (Product::warp_k() == 0) product.for_each_chunk(shared, store);
        return;
    }
    float* partials = of.partials + (int64_t)tile * of.splits * kPartial;
    if (Product::warp_k() == 0)
        store_partial<kGradCols>(product, shared, partials + (int64_t)split * kPartial);
    if (!is_last_to_arrive(of.arrivals + tile, of.splits)) return;
    add_partials<kRank, kGradCols, kThreads>(partials, of.splits, store);
}
