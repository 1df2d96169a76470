// What a block does to make rows of S or dS and nothing else, as roles of its warpgroups:
//
//   out (m×r) = scale · lhs (m×k) downᵀ          rounded once, saturated in f16
//
// where a layer's columns have its own scale; and where down is MN-major, its own lhs and down too.
// summed up along k from 0 on, 16 at a time, as the tiles of linear.cuh do it, so that it has the
// same bits whoever makes it. Blocks of grads.cu make dS so, where nobody asks for dX, and some of
// linear.cuh make S beside those that make H.
#pragma once

#include "parts.cuh"

constexpr int kFlagRows = 128;

struct Projection {
    const TensorMap *lhs, *down;  // one, or where down is MN-major one of every layer
    const Parts& parts;
    void* out;
    uint32_t* flags;  // one for every kFlagRows rows, of how many tiles are there; null if nobody waits
    int m, k, r;
    int worker, workers;  // tiles go to workers in turns
};

// kFlagRows rows and kRank columns of out. Stages of 64 columns of lhs, then as much of down: K-major in a
// box of kRank rows, MN-major in boxes of 64 columns.
template <int kRank, bool kMnMajor>
struct ProjectTile {
    static constexpr int kLhsBytes = kFlagRows * 64 * 2, kBoxBytes = 64 * 64 * 2;
    static constexpr int kBoxes = (kRank + 63) / 64;  // of down, MN-major
    static constexpr int kStageBytes = kLhsBytes + (kMnMajor ? kBoxes * kBoxBytes : kRank * 64 * 2);
    static constexpr int kStages = (224 << 10) / (kStageBytes + 16);

    int row0, rank0;

    __device__ __forceinline__ ProjectTile(const Projection& p, int index) {
        const int ranks = (p.r + kRank - 1) / kRank;
        row0 = index / ranks * kFlagRows;
        rank0 = index % ranks * kRank;
    }

    static __device__ __forceinline__ int count(const Projection& p) {
        const int ranks = (p.r + kRank - 1) / kRank;
        return (p.m + kFlagRows - 1) / kFlagRows * ranks;
    }

    static __device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
        return base + kStages * kStageBytes + 8 * stage;
    }
    static __device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
        return full(base, kStages + stage);
    }
};

// By one thread; fence_mbarrier_init and a barrier of the block must follow.
template <typename Tile>
__device__ __forceinline__ void project_init(uint32_t base) {
    for (int stage = 0; stage < Tile::kStages; stage++) {
        mbarrier_init(Tile::full(base, stage), 1);
        mbarrier_init(Tile::empty(base, stage), 8);  // the multiplying warps
    }
}

// By one thread, which is_elected(). The boxes of lhs have kLhsRows rows.
template <int kRank, bool kMnMajor, int kLhsRows>
__device__ __forceinline__ void project_load(const Projection& p, uint32_t base) {
    using Tile = ProjectTile<kRank, kMnMajor>;
    Ring<Tile::kStages> ring;
    for (int index = p.worker; index < Tile::count(p); index += p.workers) {
        const Tile tile(p, index);
        for (int k0 = 0; k0 < p.k; k0 += 64) {
            const uint32_t barrier = Tile::full(base, ring.stage);
            const uint32_t to_lhs = base + ring.stage * Tile::kStageBytes;
            const uint32_t to_down = to_lhs + Tile::kLhsBytes;
            const int part = kMnMajor ? p.parts.of(k0) : 0;
            const int k_of_part = kMnMajor ? k0 - p.parts.start[part] : k0;
            mbarrier_wait(Tile::empty(base, ring.stage), ring.phase ^ 1);
            mbarrier_arrive_expect(barrier, Tile::kStageBytes);
#pragma unroll
            for (int row = 0; row < kFlagRows; row += kLhsRows)
                tma_load(to_lhs + row * 64 * 2, p.lhs[part], tile.row0 + row, k_of_part, barrier);
            if constexpr (kMnMajor) {
                const int rank_of_part = tile.rank0 - p.parts.rank_start[part];
#pragma unroll
                for (int i = 0; i < Tile::kBoxes; i++)
                    tma_load(to_down + i * Tile::kBoxBytes, p.down[part], k_of_part,
                             rank_of_part + i * 64, barrier);
            } else {
                tma_load(to_down, p.down[part], tile.rank0, k0, barrier);
            }
            ring.advance();
        }
    }
}

// By the two warpgroups behind the first, 64 rows each.
template <typename E, int kRank, bool kMnMajor>
__device__ __forceinline__ void project_multiply(const Projection& p, uint32_t base) {
    using Tile = ProjectTile<kRank, kMnMajor>;
    constexpr int kLhsStep = 32 / 16, kDownStep = (kMnMajor ? 2048 : 32) / 16;
    const int half = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    Ring<Tile::kStages> ring;
    auto release = [&](int stage) {
        if (lane == 0) mbarrier_arrive(Tile::empty(base, stage));
    };
    for (int index = p.worker; index < Tile::count(p); index += p.workers) {
        const Tile tile(p, index);
        float acc[kRank / 2];
        int accumulate = 0, previous = -1;
        for (int k0 = 0; k0 < p.k; k0 += 64) {
            mbarrier_wait(Tile::full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * Tile::kStageBytes;
            const uint64_t lhs = wgmma_descriptor(stage + half * (Tile::kLhsBytes / 2), false);
            const uint64_t down = wgmma_descriptor(stage + Tile::kLhsBytes, kMnMajor);
            wgmma_fence();
#pragma unroll
            for (int k16 = 0; k16 < 4; k16++) {
                wgmma<E, kRank, 0, false, kMnMajor>(acc, lhs + k16 * kLhsStep, down + k16 * kDownStep,
                                                    accumulate);
                accumulate = 1;
            }
            wgmma_commit();
            wgmma_wait<1>();
            if (previous >= 0) release(previous);
            previous = ring.stage;
            ring.advance();
        }
        wgmma_wait<0>();
        release(previous);
        const int row0 = tile.row0 + half * 64 + warp * 16 + lane / 4;
        const int rank0 = tile.rank0 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kRank / 4; i++) {
            const int row = row0 + i % 2 * 8, rank = rank0 + i / 2 * 8;
            if (row >= p.m || rank >= p.r) continue;
            // Elements have 16 bits.
            auto* to = static_cast<uint16_t*>(p.out) + (int64_t)row * p.r + rank;
            const float scale = p.parts.scale_of(tile.rank0 + i / 2 * 8);
            *reinterpret_cast<uint32_t*>(to) =
                pack_saturated<E>(acc[2 * i] * scale, acc[2 * i + 1] * scale);
        }
        // Both warpgroups' rows.
        named_barrier<256>(1);
        if (p.flags != nullptr && threadIdx.x == 128) flag_add_release(&p.flags[tile.row0 / kFlagRows]);
    }
}
