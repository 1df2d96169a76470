// Both passes for 65 to 1024 tokens, where there is at most one output tile for each SM:
//
//   forward      S = s·X Aᵀ,  H = X W0ᵀ + S Bᵀ     X → lhs, A → proj_weight, B → up_weight
//   input grad   dS = s·dH B, dX = dH W0 + dS A    dH → lhs, B → proj_weight, A → up_weight
//                dA, dB (grads.cu)                 with tiles of 64 rows; or a launch of their own
//
//   proj[m, r]   = scale · Σk lhs[m, k] proj_weight[r, k]            rounded once, saturated in f16
//   out[m, n]    = Σk lhs[m, k] rhs[n, k] + Σr proj[m, r] up_weight[n, r]   rounded once
//
// rhs, proj_weight and up_weight are K-major in the forward, MN-major in the input gradient. r = 0
// is the frozen layer; without output clusters it is proj alone. Sums go along k from 0 on, then
// along r, whatever m is: a token has the same bits in every batch that this kernel serves. S is
// summed in two halves of k.
//
// Needs: rows at multiples of 16 bytes (TMA); 226 KiB of shared memory; flags that are zero, and
// are zero again after the launch. Writes every element once.
//
// Bound by the bytes in flight to an SM: stages take nearly all of shared memory, and the output is
// staged in their place at the end.
//
// Grid: clusters of two CTAs. The first compute S or dS, the CTAs of a cluster half of k each. The
// others compute two tiles of kM×kN, one below the other, and multicast rhs, of which each CTA
// loads one half.
// CTA: three warpgroups. A producer thread in the first; kM / 64 consume, 64 rows each. In the
// input gradient with kM = 64 the last computes items of dA and dB meanwhile.
//
//   producer    |pdl_wait|fill 0|fill 1| ... |wait for S|fill S, B|
//   consumers            |4 k16 of stage 0|4 k16 of 1| ... |S·Bᵀ|round, store|
//
// Deadlock freedom: within a cluster CTAs wait for each other. Output CTAs and gradient warpgroups
// wait for projection clusters, which wait for nothing else and come first in the grid: they start
// first, however many CTAs run at once.
#include "gradients.cuh"
#include "manifest/sm90a/short.cuh"

constexpr int kGradsAt = kBarriersAt - kGradsBesideBytes;
static_assert(8 * (2 * kMaxStages + 3) <= kBarrierBytes);

// Barriers behind the barriers of the stages, which the first CTA of a projection cluster and a
// gradient warpgroup use.
struct Barriers {
    uint32_t partials_full, partials_empty;  // the peer's partial sums have arrived; may be sent
    uint32_t grads_full;                     // a step of dA or dB has arrived

    __device__ __forceinline__ explicit Barriers(uint32_t base)
        : partials_full(base + kBarriersAt + 8 * 2 * kMaxStages),
          partials_empty(partials_full + 8),
          grads_full(partials_full + 16) {}
};

// At most kMost stages of kBytes, in what kReserved bytes leave of shared memory.
template <int kBytes, int kReserved, int kMost>
using StagesThatFit =
    Stages<((kBarriersAt - kReserved) / kBytes < kMost ? (kBarriersAt - kReserved) / kBytes
                                                       : kMost),
           kBytes, kBarriersAt, kMaxStages>;

// ---- S or dS: projection clusters -------------------------------------------------------------

// Tiles of kM×kRank. The CTAs of a cluster split k; the first adds the partial sums of both
// (cluster reduce). Tiles go to clusters in turns, row block by row block.
// NOTES: with tiles of 128 rows and more than 8 stages, projection clusters run ahead and slow the
// others down: 256 tokens of 14336→4096 at rank 16 took 62 µs with 12, 56 with 8. With tiles of 64
// rows, fewer stages only delay S.
template <int kM, int kRank, Major kRhs>
struct ProjectionClusters {
    using Lhs = SmemTile<Major::K, kM>;
    using ProjWeight = SmemTile<kRhs, kRank>;
    static constexpr int kThreads = kM / 64 * 128;
    static constexpr int kChunks = kRank / 8, kChunkBytes = kThreads * 16;  // of partial sums
    static constexpr int kPartialsAt = kBarriersAt - kChunks * kChunkBytes;
    using Stages = StagesThatFit<Lhs::kBytes + ProjWeight::kBytes, kChunks * kChunkBytes,
                                 (kM == 128 ? 8 : kMaxStages)>;

    const HopperShortParams& p;
    int index, rank_tiles, count;
    int first, steps;  // along k, of this CTA

    __device__ __forceinline__ explicit ProjectionClusters(const HopperShortParams& p) : p(p) {
        index = blockIdx.x / 2;
        rank_tiles = (p.r + kRank - 1) / kRank;
        count = (p.m + p.rows - 1) / p.rows * rank_tiles;
        const int all = (p.k + kStep - 1) / kStep, half = (all + 1) / 2;
        first = cluster_rank() == 0 ? 0 : half;
        steps = cluster_rank() == 0 ? half : all - half;
    }
    __device__ __forceinline__ bool done() const { return index >= count; }
    __device__ __forceinline__ void advance() { index += p.proj_clusters; }
    __device__ __forceinline__ int row_block() const { return index / rank_tiles; }
    __device__ __forceinline__ int rank0() const { return index % rank_tiles * kRank; }

    // By one thread, elect_one().
    static __device__ __forceinline__ void produce(const HopperShortParams& p, uint32_t base) {
        Producer<Stages> producer(base);
        const int bytes = Stages::kBytes - (kM - p.rows) * kStepBytes;
        for (ProjectionClusters tile(p); !tile.done(); tile.advance()) {
            for (int i = 0; i < tile.steps; i++) {
                const int k0 = (tile.first + i) * kStep;
                const Slot slot = producer.acquire(bytes);
                Lhs::load(slot.to, p.lhs, tile.row_block() * p.rows, k0, slot.full);
                ProjWeight::load(slot.to + Lhs::kBytes, p.proj_weight, tile.rank0(), k0, slot.full);
                producer.commit();
            }
        }
    }

    // By the consumer warpgroups.
    template <typename E>
    static __device__ __forceinline__ void consume(const HopperShortParams& p, uint32_t base) {
        const int group = warpgroup_index() - 1;
        const int thread = threadIdx.x - 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const int rank = (int)cluster_rank();
        const Barriers barriers(base);
        auto chunk_at = [&](uint32_t partials, int chunk) {
            return partials + chunk * kChunkBytes + thread * 16;
        };
        Consumer<Stages, ReleaseToCta> consumer(base);
        uint32_t tile_phase = 0;
        for (ProjectionClusters tile(p); !tile.done(); tile.advance()) {
            float acc[kRank / 2] = {};
            int accumulate = 1;
            for (int i = 0; i < tile.steps; i++)
                consumer.step([&](uint32_t stage) {
                    wgmma_group<E, kRank, Lhs, ProjWeight>(
                        acc, Lhs::descriptor(stage + group * 64 * kStepBytes),
                        ProjWeight::descriptor(stage + Lhs::kBytes), accumulate);
                });
            consumer.drain();
            if (rank == 1) {
                mbarrier_wait(barriers.partials_empty, tile_phase ^ 1);
                const uint32_t to = map_to_cta(base + kPartialsAt, 0);
                const uint32_t full = map_to_cta(barriers.partials_full, 0);
#pragma unroll
                for (int i = 0; i < kChunks; i++) st_async(chunk_at(to, i), &acc[4 * i], full);
            } else {
                if (thread == 0)
                    mbarrier_arrive_expect_tx(barriers.partials_full, kChunks * kChunkBytes);
                mbarrier_wait(barriers.partials_full, tile_phase);
                const int row0 = group * 64 + warp * 16 + lane / 4, m0 = tile.row_block() * p.rows;
                const int rank0 = tile.rank0() + lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < kChunks; i++) {
                    float v[4] = {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
                    add_from_shared(v, chunk_at(base + kPartialsAt, i));
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const int row = row0 + half * 8, col = rank0 + i * 8;
                        if (row >= p.rows || m0 + row >= p.m || col >= p.r) continue;
                        store_pair(
                            p.s, m0 + row, col, p.s_cols,
                            pack_saturated<E>(v[2 * half] * p.scale, v[2 * half + 1] * p.scale));
                    }
                }
                __syncwarp();
                if (lane == 0) mbarrier_arrive_remote(barriers.partials_empty, 1);
                bar_sync<kThreads>(1);  // all rows of the tile are stored
                if (p.publishes && thread == 0) GridFlags{p.flags}.publish(tile.row_block());
            }
            tile_phase ^= 1;
        }
    }
};

// By one thread, until the row block of S or dS can be loaded: a flag counts its tiles along r, of
// 64 columns. With tiles of 16 columns there is one.
__device__ __forceinline__ void wait_for_projection(const HopperShortParams& p, int row_block) {
    GridFlags{p.flags}.wait(row_block, (p.r + 63) / 64);
}

// By each of the `of_cta` threads of a CTA that wait for flags, after its last wait.
__device__ __forceinline__ void projection_seen(const HopperShortParams& p, int of_cta) {
    GridFlags{p.flags}.done((gridDim.x - 2 * p.proj_clusters) * of_cta, p.m, p.rows);
}

// ---- H or dX: a tile for each CTA -------------------------------------------------------------

template <int kM, int kN, Major kRhs>
struct OutputTile {
    using Lhs = SmemTile<Major::K, kM>;
    using Rhs = SmemTile<kRhs, kN>;
    static constexpr bool kGradsFit = kRhs == Major::MN && kM == 64;
    using Stages =
        StagesThatFit<Lhs::kBytes + Rhs::kBytes, kGradsFit ? kGradsBesideBytes : 0, kMaxStages>;
    static constexpr int kPitch = kN * 2 + 16;  // of the output: no two rows start in one bank
    static_assert(kM * kPitch <= Stages::kCount * Stages::kBytes);

    // By one thread, elect_one(). `waiters`: threads of the CTA that wait for flags.
    static __device__ __forceinline__ void produce(const HopperShortParams& p, uint32_t base,
                                                   int row_block, int n0, int waiters) {
        const int rank = (int)cluster_rank(), m0 = row_block * p.rows;
        // The second CTA of a cluster may have no rows. Rows past the tile's are not loaded:
        // filling a row with zeros takes the TMA longer than loading one, and no stored row reads
        // them.
        const bool has_rows = m0 < p.m;
        const int bytes = Stages::kBytes - (kM - (has_rows ? p.rows : 0)) * kStepBytes;
        Producer<Stages> producer(base);
        for (int k0 = 0; k0 < p.k; k0 += kStep) {
            const Slot slot = producer.acquire(bytes);
            Rhs::load_half_multicast(slot.to + Lhs::kBytes, p.rhs, n0, k0, rank, slot.full);
            if (has_rows) Lhs::load(slot.to, p.lhs, m0, k0, slot.full);
            producer.commit();
        }
        if (p.r == 0) return;
        for (int r0 = 0; r0 < p.r; r0 += kStep) {
            const Slot slot = producer.acquire(bytes);
            Rhs::load_half_multicast(slot.to + Lhs::kBytes, p.up_weight, n0, r0, rank, slot.full);
            if (has_rows) {
                if (r0 == 0) wait_for_projection(p, row_block);
                Lhs::load(slot.to, p.proj, m0, r0, slot.full);
            }
            producer.commit();
        }
        projection_seen(p, waiters);
    }

    // By the consumer warpgroups, 64 rows each.
    template <typename E>
    static __device__ __forceinline__ void consume(const HopperShortParams& p, uint32_t base,
                                                   int row_block, int n0) {
        const int group = warpgroup_index() - 1;
        const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        Consumer<Stages, ReleaseToCluster> consumer(base);
        int accumulate = 0;
        float acc[kN / 2];
        auto lhs = [&](uint32_t stage) { return Lhs::descriptor(stage + group * 64 * kStepBytes); };
        auto rhs = [&](uint32_t stage) { return Rhs::descriptor(stage + Lhs::kBytes); };
        for (int k0 = 0; k0 < p.k; k0 += kStep)
            consumer.step([&](uint32_t stage) {
                wgmma_group<E, kN, Lhs, Rhs>(acc, lhs(stage), rhs(stage), accumulate);
            });
        for (int r0 = 0; r0 < p.r; r0 += kStep)
            consumer.step([&](uint32_t stage) {
                wgmma_groups<E, kN, Lhs, Rhs>(acc, lhs(stage), rhs(stage), p.r - r0);
            });
        consumer.drain();

        // The output takes the place of the stages, once all warps have read them: no more loads
        // come.
        bar_sync<kM / 64 * 128>(1);
        const int warp_row = group * 64 + warp * 16;
        const uint32_t staged = base + warp_row * kPitch;
        const uint32_t to = staged + lane % 16 * kPitch + lane / 16 * 16;
#pragma unroll
        for (int i = 0; i < kN; i += 16) {
            const float* v = &acc[i / 2];
            stmatrix_x4(to + i * 2, pack<E>(v[0], v[1]), pack<E>(v[2], v[3]), pack<E>(v[4], v[5]),
                        pack<E>(v[6], v[7]));
        }
        __syncwarp();
        const int row0 = row_block * p.rows + warp_row;
        const int rows = min(16, min(p.rows - warp_row, p.m - row0));
        auto* out = static_cast<uint16_t*>(p.out) + (int64_t)row0 * p.out_cols + n0;
        store_rows(out, p.out_cols, staged, kPitch, rows, min(kN, p.n - n0) / 8, lane, 32);
    }
};

// ---- The kernel -------------------------------------------------------------------------------

// With `grads`, dA and dB too.
template <typename E, int kM, int kN, Major kRhs>
__device__ __forceinline__ void hopper_short(const HopperShortParams& p,
                                             const HopperGradsParams* grads) {
    using Output = OutputTile<kM, kN, kRhs>;
    const uint32_t base = shared_base();
    const int tile = (int)blockIdx.x / 2 - p.proj_clusters;
    const bool projects = tile < 0;
    if (threadIdx.x == 0) {
        prefetch_tensormap(p.lhs);
        prefetch_tensormap(projects ? p.proj_weight : p.rhs);
        // Output: released by the consumer warps of both CTAs.
        Stages<kMaxStages, 1024, kBarriersAt>::init(base, (projects ? 1 : 2) * kM / 16);
        const Barriers barriers(base);
        mbarrier_init(barriers.partials_full, 1);
        mbarrier_init(barriers.partials_empty, kM / 16);
        mbarrier_init(barriers.grads_full, 1);
        fence_mbarrier_init();
    }
    cluster_sync();
    // Up to here, CTAs may run beside the end of the kernel before.
    pdl_wait();
    pdl_trigger();
    // Clusters that load the same columns of rhs follow one another.
    const int row_clusters = (p.m + 2 * p.rows - 1) / (2 * p.rows);
    const int row_block = 2 * (tile % row_clusters) + (int)cluster_rank();
    const int n0 = tile / row_clusters * kN;
    const int warp = warp_index();
    if (warp < 4) {
        setmaxnreg_dec<40>();
        if (warp == 0 && elect_one()) {
            if (!projects) {
                Output::produce(p, base, row_block, n0, grads == nullptr ? 1 : 2);
            } else if (p.r <= 16) {
                ProjectionClusters<kM, 16, kRhs>::produce(p, base);
            } else {
                ProjectionClusters<kM, 64, kRhs>::produce(p, base);
            }
        }
    } else {
        setmaxnreg_inc<232>();
        if (warp < 4 + kM / 16) {
            if (!projects) {
                Output::template consume<E>(p, base, row_block, n0);
            } else if (p.r <= 16) {
                ProjectionClusters<kM, 16, kRhs>::template consume<E>(p, base);
            } else {
                ProjectionClusters<kM, 64, kRhs>::template consume<E>(p, base);
            }
        } else if (kM == 64 && grads != nullptr && !projects) {
            auto wait_for_ds = [&] {
                for (int i = 0; i * p.rows < p.m; i++) wait_for_projection(p, i);
            };
            grads_beside<E>(*grads, p.r, base + kGradsAt, Barriers(base).grads_full,
                            2 * p.proj_clusters, wait_for_ds);
            if (threadIdx.x % 128 == 0) projection_seen(p, 2);
        }
    }
    // A CTA stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#include "instances/sm90a/short.cuh"
