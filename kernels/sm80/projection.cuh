// The CTAs of linear.cuh and decode.cu that compute S, or dS: out (m×r) = scale · lhs · rhsᵀ over
// k.
//
// 32 rows of out, of 16 or 64 of its columns, are one tile. Its sum over k is cut into splits of
// 512, one for each CTA, whatever T is: all that a CTA reads is under way at once. The last CTA to
// arrive adds the partial sums in order, scales, rounds once and stores. An f16 saturates.
//
// Or a CTA computes a whole tile of 16 columns, split by split, with the same bits: in linear.cuh,
// on SMs that its tiles leave idle.
#pragma once

#include "grid_flags.cuh"
#include "tile.cuh"

#include "manifest/sm80/projection.cuh"

// An operand from an element of its inner dimension on.
template <typename E, Major kMajor>
__device__ __forceinline__ Operand from_k(Operand op, int k0) {
    op.data = kMajor == Major::K ? element<E>(op, 0, k0) : element<E>(op, k0, 0);
    return op;
}

// Adds `count` partial tiles of kM×kN in order, by all threads: store(row, col, sums) gets eight
// neighbouring columns.
template <int kM, int kN, int kThreads, typename F>
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

// With kShared bytes of shared memory. Returns whether this CTA stored the tile.
template <typename E, int kRank, Major kRhs, int kShared>
__device__ __forceinline__ bool project_tile(const ProjectionParams& p, int m, int cta,
                                             unsigned char* shared) {
    constexpr int kStageBytes = (kProjRows + kRank) * kProjStep * 2;
    constexpr int kMostStages = kProjSplit / kProjStep, kFitting = kShared / kStageBytes;
    constexpr int kStages = kFitting < kMostStages ? kFitting : kMostStages;
    using Product = TileProduct<E, kProjRows, kRank, kProjStep, 2, 1, 4, Major::K, kRhs, kStages>;
    static_assert(Product::kThreads == kProjThreads);
    constexpr int kPartial = kProjRows * kRank;
    const int splits = (p.k + kProjSplit - 1) / kProjSplit, split = cta % splits;
    const int tile = cta / splits, rank_tiles = (p.r + kRank - 1) / kRank;
    const int m0 = tile / rank_tiles * kProjRows, n0 = tile % rank_tiles * kRank;
    const int k0 = split * kProjSplit;

    const Segment part[] = {{from_k<E, Major::K>(p.lhs, k0), from_k<E, kRhs>(p.rhs, k0),
                             min(kProjSplit, p.k - k0)}};
    Product product;
    product.run(shared, part, 1, m, p.r, m0, n0);
    product.reduce_warps_k(shared);
    float* partials = p.partials + (int64_t)tile * splits * kPartial;
    if (Product::warp_k() == 0)
        store_partial<kRank>(product, shared, partials + (int64_t)split * kPartial);
    if (!is_last_to_arrive(p.arrivals + tile, splits)) return false;
    add_partials<kProjRows, kRank, kProjThreads>(
        partials, splits, [&](int row, int col, float(&v)[8]) {
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] *= p.scale;
            store_chunk<E, true>(p.out, m0 + row, n0 + col, m, p.r, v);
        });
    return true;
}

// The same as a function of its own. NOTES: for kernels of two CTAs on an SM, whose main loops
// spill if its registers are among theirs.
template <typename E, int kRank, Major kRhs, int kShared>
__device__ __noinline__ bool project_tile_apart(const ProjectionParams p, int m, int cta,
                                                unsigned char* shared) {
    return project_tile<E, kRank, kRhs, kShared>(p, m, cta, shared);
}

// Either, and publishes the tile to `flag(m0)`, the flag of the rows from m0 on.
template <typename E, int kRank, Major kRhs, int kShared, bool kApart, typename F>
__device__ __forceinline__ void project_and_publish(const ProjectionParams& p, int m, int cta,
                                                    unsigned char* shared, F&& flag) {
    bool stored;
    if constexpr (kApart) {
        stored = project_tile_apart<E, kRank, kRhs, kShared>(p, m, cta, shared);
    } else {
        stored = project_tile<E, kRank, kRhs, kShared>(p, m, cta, shared);
    }
    if (!stored) return;
    const int splits = (p.k + kProjSplit - 1) / kProjSplit;
    const int rank_tiles = (p.r + kRank - 1) / kRank;
    __syncthreads();
    if (threadIdx.x == 0) publish(flag(cta / splits / rank_tiles * kProjRows));
}

// The same in tiles for its rank.
template <typename E, Major kRhs, int kShared, bool kApart, typename F>
__device__ __forceinline__ void project(const ProjectionParams& p, int m, int cta,
                                        unsigned char* shared, F&& flag) {
    if (p.r <= 16) {
        project_and_publish<E, 16, kRhs, kShared, kApart>(p, m, cta, shared, flag);
    } else {
        project_and_publish<E, 64, kRhs, kShared, kApart>(p, m, cta, shared, flag);
    }
}

// A whole tile of 16 columns: all splits in one pipeline, which stays full where a split ends. A
// function of its own, as `project_tile_apart`.
template <typename E, Major kRhs, int kShared>
__device__ __noinline__ void project_whole_tile(const ProjectionParams p, int m, int m0,
                                                unsigned char* shared) {
    constexpr int kRank = 16, kStageBytes = (kProjRows + kRank) * kProjStep * 2;
    // Behind the stages: the sums that three of the four warps along k give the first.
    constexpr int kStages = (kShared - 3 * kProjRows * kRank * 4) / kStageBytes;
    using Product = TileProduct<E, kProjRows, kRank, kProjStep, 2, 1, 4, Major::K, kRhs, kStages>;
    static_assert(Product::kThreads == kProjThreads && kProjSplit % kProjStep == 0);

    Product product;
    float sums[2][4] = {};  // of all splits before, as product.acc
    auto end_split = [&] {
        product.reduce_warps_k(shared + Product::kSharedBytes);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float& acc = product.acc[0][i / 4][i % 4];
            sums[i / 4][i % 4] += acc, acc = 0.f;
        }
    };
    const Segment whole[] = {{p.lhs, p.rhs, p.k}};
    product.run(shared, whole, 1, m, p.r, m0, 0, BeforeNone(),
                [&](uint32_t(&)[1][4], int step, int k16) {
                    if (k16 == 0 && step > 0 && step % (kProjSplit / kProjStep) == 0) end_split();
                });
    end_split();
    if (Product::warp_k() > 0) return;
#pragma unroll
    for (int i = 0; i < 8; i++) product.acc[0][i / 4][i % 4] = sums[i / 4][i % 4];
    product.for_each_chunk(shared, [&](int row, int col, float(&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= p.scale;
        store_chunk<E, true>(p.out, m0 + row, col, m, p.r, v);
    });
}
