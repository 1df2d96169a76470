// A role: CTAs that compute rows of S or dS and nothing else.
//
//   out (m×r) = scale · lhs (m×k) proj_weightᵀ     rounded once, saturated in f16
//
// Sums go along k from 0 on, 16 at a time, as in the tiles of linear.cuh: the bits do not depend on
// who computes them. A projection's columns have its own scale; where proj_weight is MN-major (dS),
// also its own lhs and proj_weight.
// Used by grads.cu (dS without dX) and by linear.cuh (S, dedicated CTAs).
#pragma once

#include "epilogue.cuh"
#include "grid_flags.cuh"
#include "manifest/sm90a/projection.cuh"
#include "parts.cuh"
#include "pipeline.cuh"

struct Projection {
    const TensorMap *lhs,
        *proj_weight;  // one, or where proj_weight is MN-major one of every projection
    const Parts& parts;
    void* out;
    uint32_t* flags;  // GridFlags of kFlagRows rows each; null if no CTA waits
    int m, k, r;
    int worker, workers;  // tiles go to workers in turns
};

// A tile of kFlagRows × kRank of out; each of two warpgroups computes 64 rows. A stage is 64
// columns of lhs and of proj_weight.
template <int kRank, Major kProjMajor, int kLhsBoxRows>
struct ProjectionTile {
    using Lhs = SmemTile<Major::K, kFlagRows>;
    using ProjWeight = SmemTile<kProjMajor, kRank>;
    static constexpr int kStageBytes = Lhs::kBytes + ProjWeight::kBytes;
    static constexpr int kCount = kPipelineBytes / (kStageBytes + 16);
    using Stages = ::Stages<kCount, kStageBytes, kCount * kStageBytes>;

    int row0, rank0;

    __device__ __forceinline__ ProjectionTile(const Projection& p, int index) {
        const int rank_tiles = (p.r + kRank - 1) / kRank;
        row0 = index / rank_tiles * kFlagRows;
        rank0 = index % rank_tiles * kRank;
    }
    static __device__ __forceinline__ int count(const Projection& p) {
        const int rank_tiles = (p.r + kRank - 1) / kRank;
        return (p.m + kFlagRows - 1) / kFlagRows * rank_tiles;
    }

    // By one thread, elect_one(). Boxes of lhs have kLhsBoxRows rows.
    static __device__ __forceinline__ void produce(const Projection& p, uint32_t base) {
        Producer<Stages> producer(base);
        for (int index = p.worker; index < count(p); index += p.workers) {
            const ProjectionTile tile(p, index);
            for (int k0 = 0; k0 < p.k; k0 += 64) {
                const int part = kProjMajor == Major::MN ? p.parts.of(k0) : 0;
                const int part_k0 = kProjMajor == Major::MN ? k0 - p.parts.start[part] : k0;
                const int part_rank0 =
                    kProjMajor == Major::MN ? tile.rank0 - p.parts.rank_start[part] : tile.rank0;
                const Slot slot = producer.acquire(kStageBytes);
#pragma unroll
                for (int row = 0; row < kFlagRows; row += kLhsBoxRows)
                    tma_load(slot.to + row * 64 * 2, p.lhs[part], tile.row0 + row, part_k0,
                             slot.full);
                ProjWeight::load(slot.to + Lhs::kBytes, p.proj_weight[part], part_rank0, part_k0,
                                 slot.full);
                producer.commit();
            }
        }
    }

    // By the two warpgroups behind the first.
    template <typename E>
    static __device__ __forceinline__ void consume(const Projection& p, uint32_t base) {
        const int half = warpgroup_index() - 1;
        const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        Consumer<Stages, ReleaseToCta> consumer(base);
        for (int index = p.worker; index < count(p); index += p.workers) {
            const ProjectionTile tile(p, index);
            float acc[kRank / 2];
            int accumulate = 0;
            for (int k0 = 0; k0 < p.k; k0 += 64)
                consumer.step([&](uint32_t stage) {
                    wgmma_group<E, kRank, Lhs, ProjWeight>(
                        acc, Lhs::descriptor(stage + half * (Lhs::kBytes / 2)),
                        ProjWeight::descriptor(stage + Lhs::kBytes), accumulate);
                });
            consumer.drain();
            const int row0 = tile.row0 + half * 64 + warp * 16 + lane / 4;
            const int rank0 = tile.rank0 + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < kRank / 4; i++) {
                const int row = row0 + i % 2 * 8, rank = rank0 + i / 2 * 8;
                if (row >= p.m || rank >= p.r) continue;
                const float scale = p.parts.scale_of(tile.rank0 + i / 2 * 8);
                store_pair(p.out, row, rank, p.r,
                           pack_saturated<E>(acc[2 * i] * scale, acc[2 * i + 1] * scale));
            }
            bar_sync<256>(1);  // both warpgroups' rows are stored
            if (p.flags != nullptr && threadIdx.x == 128)
                GridFlags{p.flags}.publish(tile.row0 / kFlagRows);
        }
    }
};
