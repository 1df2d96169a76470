// The CTAs of linear.cu that compute S, or dS: a projection out (m×r) = scale · lhs · rhsᵀ over k.
//
// 32 whole rows of out, of 16 or 64 of its columns, are one tile. Its sum over k is cut into splits
// of 512, one for each CTA, whatever T is: the last CTA to arrive adds their partial sums in order,
// scales, rounds once, stores and publishes. An f16 saturates.
#pragma once

#include "grid_flags.cuh"
#include "tile.cuh"

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

// An operand from an element of its inner dimension on.
template <typename E, Major kMajor>
__device__ __forceinline__ Operand from_k(Operand op, int k0) {
    op.data = kMajor == Major::K ? element<E>(op, 0, k0) : element<E>(op, k0, 0);
    return op;
}

// Adds `count` partial tiles of kM×kN in order, by all threads: store(row, col, sums) gets eight
// neighbouring columns.
template <int kM, int kN, typename F>
__device__ __forceinline__ void add_partials(const float* partials, int count, F&& store) {
    for (int e = threadIdx.x; e < kM * kN / 8; e += kThreads) {
        float v[8] = {};
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            const auto* from = reinterpret_cast<const float4*>(partials + (int64_t)i * kM * kN);
            const float4 a = __ldcg(from + 2 * e), b = __ldcg(from + 2 * e + 1);
            v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
            v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
        }
        store(e / (kN / 8), e % (kN / 8) * 8, v);
    }
}

// A partial tile, for add_partials.
template <int kN, typename Product>
__device__ __forceinline__ void store_partial(const Product& product, unsigned char* shared,
                                              float* partial) {
    product.for_each_chunk(shared, [&](int row, int col, const float(&v)[8]) {
        auto* to = reinterpret_cast<float4*>(partial + row * kN + col);
        __stcg(to, make_float4(v[0], v[1], v[2], v[3]));
        __stcg(to + 1, make_float4(v[4], v[5], v[6], v[7]));
    });
}

template <typename E, int kRank, Major kRhs>
__device__ __forceinline__ void project(const LinearParams& p, const LinearProjection& of, int cta,
                                        unsigned char* shared) {
    using Product =
        TileProduct<E, kProjRows, kRank, kProjStep, 2, 1, 4, Major::K, kRhs, kProjStages>;
    static_assert(Product::kThreads == kThreads && Product::kSharedBytes <= kStagesBytes);
    constexpr int kPartial = kProjRows * kRank;
    const int splits = (of.k + kProjSplit - 1) / kProjSplit, split = cta % splits;
    const int tile = cta / splits, rank_tiles = (of.r + kRank - 1) / kRank;
    const int m0 = tile / rank_tiles * kProjRows, n0 = tile % rank_tiles * kRank;
    const int k0 = split * kProjSplit;

    const Segment part[] = {{from_k<E, Major::K>(of.lhs, k0), from_k<E, kRhs>(of.rhs, k0),
                             min(kProjSplit, of.k - k0)}};
    Product product;
    product.run(shared, part, 1, p.m, of.r, m0, n0);
    product.reduce_warps_k(shared);
    float* partials = of.partials + (int64_t)tile * splits * kPartial;
    if (Product::warp_k() == 0)
        store_partial<kRank>(product, shared, partials + (int64_t)split * kPartial);
    if (!is_last_to_arrive(of.arrivals + tile, splits)) return;
    add_partials<kProjRows, kRank>(partials, splits, [&](int row, int col, float(&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= of.scale;
        store_chunk<E, true>(of.out, m0 + row, n0 + col, p.m, of.r, v);
    });
    __syncthreads();
    if (threadIdx.x == 0) publish(s_flag(p, m0));
}
