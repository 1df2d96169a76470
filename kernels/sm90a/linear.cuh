// The base GEMM with the adapter as a longer inner dimension, and its projection S or dS beside it:
//
//   forward      S = s·X Aᵀ,  H = X W0ᵀ + S Bᵀ     X → lhs, A → proj_weight, B → up_weight
//   input grad   dS = s·dH B, dX = dH W0 + dS A    dH → lhs, B → proj_weight, A → up_weight
//
//   proj[m, r]    = scale · Σk lhs[m, k] proj_weight[r, k]            rounded once, saturated in f16
//   out[m, n]     = Σk lhs[m, k] rhs[n, k] + Σr proj[m, r] up_weight[n, r]   rounded once
//
// With dropout, elements of X are dropped in dA, and elements of dS A in dX, where it is added in
// f32 behind the steps along k (common/dropout.cuh). The forward then gets S from a launch before,
// and has no instances of its own.
//
// rhs, proj_weight and up_weight are K-major in the forward, MN-major in the input gradient. r = 0
// is the frozen layer. linear.cu serves one projection, linear_group.cu up to four that
// share X (parts.cuh).
//
// Needs: rows at multiples of 16 bytes (TMA); 225 KiB of shared memory (linear_layout.cuh); flags
// that are zero, and are zero again after the launch; partials with any content. A cooperative
// launch where tiles wait for slices of others. Writes proj (if computed here) and out, every
// element once.
//
// S or dS comes from
//   - fused projection: some tiles compute a slice of kSlice columns beside their own. With several
//     slices, the first tiles of every row block compute one each, publish it, and wait for the
//     others'. With one, several tiles of a row block compute it, each for itself in registers; the
//     first publishes it.
//   - dedicated projection (forward): the first clusters compute all of S (projection.cuh), the
//     others wait for it at the end of their tiles.
//   - the launch directly before this one. In the forward it began after all before it had ended,
//     and only the producer waits for it, where it loads S (PDL). Ahead of that, tiles read X and
//     W0 and write partial tiles and their flags; out is written behind it.
// In the backward the last clusters may compute dA and dB (gradients.cuh).
//
// Grid: persistent, a cluster of two CTAs for every two SMs. A cluster computes two tiles of
// 128×kN, one above the other (order: linear_tiles.cuh), and multicasts rhs, of which each CTA
// loads one half.
// CTA: three warpgroups. A producer thread, a flag warp and a partial warp in the first; the other
// two consume, 64×kN each.
//
//   producer    |fill 0|fill 1|fill 2|fill 3|wait for empty 0, fill 0| ...          over all tiles
//   flag warp   |wait for S of tile 0|of tile 1| ...
//   consumers   |4 k16 of stage 0|4 k16 of stage 1| ... |S·Bᵀ| |4 k16 of the next tile| ...
//                                                            round       store, store, ...
//
// The epilogue rounds a tile into registers and stores it in parts while the next tile's wgmmas
// run. The two consumer warpgroups are half a step apart, as the tensor cores serve one after the
// other, so one rounds while the other multiplies.
//
// Deadlock freedom. Within a cluster, CTAs wait for earlier steps of the same cluster. Between
// clusters, if all run at the same time (a cooperative launch guarantees it, or fails):
//   - A tile with a slice waits for the other slices of its row block, and publishes its own
//     before. Number these tiles row by row. A row block's are consecutive and at most as many as
//     the clusters that compute slices; a cluster computes every so many-th, before all its other
//     tiles. Suppose some wait forever, and take the first: all tiles before it finish, so every
//     cluster reaches its tile of this row block and publishes. A contradiction.
//   - Any other tile waits for slices of its row block, which are all published.
//   - The last tile of a span waits for the partial tile of the cluster before, the first of its
//     span, which waits for nothing and follows only full tiles.
//   - Grad CTAs wait for all slices.
// CTAs start in the order of the grid, so a launch need not be cooperative where CTAs wait only for
// those before them: for partial tiles, for S of dedicated projection, or, where tiles compute all
// of S for themselves, in grad CTAs.
#pragma once

#include "linear_consumer.cuh"

// Whether S of the forward comes from the launch before, and is all there is to wait for.
template <Major kRhs, int kSlice, bool kShared>
__device__ __forceinline__ bool has_s_of_before(const HopperLinearParams<kRhs, kShared>& p) {
    return kRhs == Major::K && kSlice == 0 && p.proj_clusters == 0 && p.r > 0;
}

// ---- The producer thread of a CTA that computes output tiles ----------------------------------

template <int kN, Major kRhs, int kSlice, bool kShared>
__device__ __forceinline__ void produce(const HopperLinearParams<kRhs, kShared>& p, uint32_t base) {
    using Layout = LinearLayout<kN, kRhs, kSlice>;
    using Lhs = typename Layout::Lhs;
    using Rhs = typename Layout::Rhs;
    using ProjWeight = typename Layout::ProjWeight;
    constexpr bool kIsMN = kRhs == Major::MN;
    const int rank = cluster_rank();
    const LinearBarriers barriers(base);
    Producer<typename Layout::Stages> producer(base);
    uint32_t tile_phase = 0;
    // Fills a stage for a step along k, or along r.
    auto fill = [&](auto along_r, const Tile<kN>& tile, int k0) {
        constexpr bool kAlongR = decltype(along_r)::value;
        // The projection whose columns of the output these are, or whose stretch of k; and where
        // that is in its own matrices.
        const int part = kIsMN ? (kAlongR ? 0 : p.part(k0)) : p.part(tile.n0);
        const int start = kIsMN && kAlongR ? 0 : p.start(part);
        const int n0 = tile.n0 - (kIsMN ? 0 : start), part_k0 = k0 - (kIsMN ? start : 0);
        const int rank_start = kIsMN && kAlongR ? 0 : p.rank_start(part);
        const TensorMap& rhs = kAlongR ? p.up_weight(part) : p.rhs(part);
        // A tile with all of S has it in registers.
        const bool has_lhs = !(kAlongR && kSlice > 0 && tile.has_all_of_s(p));
        const bool has_proj_weight = !kAlongR && kSlice > 0 && tile.projects;
        const Slot slot = producer.acquire((has_lhs ? Lhs::kBytes : 0) + Rhs::kBytes +
                                           (has_proj_weight ? Layout::kProjWeightBytes : 0));
        const uint32_t rhs_at = slot.to + Lhs::kBytes;
        if (has_lhs) {
            if constexpr (kAlongR) {
                Lhs::load(slot.to, p.proj, tile.m0, rank_start + k0, slot.full);
            } else {
                Lhs::load(slot.to, p.lhs(part), tile.m0, part_k0, slot.full);
            }
        }
        // Against all of S, B has zeros in the columns of other projections.
        const int col = kAlongR && !has_lhs && !kIsMN ? -rank_start : part_k0;
        Rhs::load_half_multicast(rhs_at, rhs, n0, col, rank, slot.full);
        if (has_proj_weight) {
            const uint32_t to = Layout::proj_weight(base, producer.ring.stage, rhs_at);
            const int slice0 = tile.slice(p) * kSlice;
            // NOTES: MN-major rows may be as short as 16 bytes, and all CTAs read the same at the
            // same time: more than the few lines that hold them can serve, if each CTA reads all of
            // them.
            if constexpr (kIsMN) {
                ProjWeight::load_half_multicast(to, p.proj_weight(part), slice0 - rank_start,
                                                part_k0, rank, slot.full);
            } else {
                ProjWeight::load(to, p.proj_weight(part), slice0, k0, slot.full);
            }
        }
        producer.commit();
    };
    TileScheduler<kN, (kSlice > 0)> tiles(p);
    for (Tile<kN> tile = tiles.tile(), next; !tiles.done(); tile = next) {
        const bool writes_partial = tiles.writes_partial(tile);
        if (Layout::kProjWeightApart && tile.projects && tiles.wave > 0)
            mbarrier_wait(barriers.output_stored, (tiles.wave - 1) % 2);
        for (int i = 0, k0 = tile.first * kTileK; i < tile.steps; i++, k0 += kTileK) {
            if (k0 >= p.k) k0 = 0;
            fill(std::false_type{}, tile, k0);
            // The next tile, while there is time.
            if (i == 0) {
                tiles.advance(tile);
                next = tiles.tile();
                pin_register(next.m0), pin_register(next.n0);
            }
        }
        if (writes_partial) continue;
        if (kSlice > 0 ? !tile.has_all_of_s(p) : p.proj_clusters > 0) {
            mbarrier_wait(barriers.flag_seen, tile_phase);
            mbarrier_arrive(barriers.flag_taken);
            tile_phase ^= 1;
        }
        // The trigger is behind the wait, as everywhere: the next launch relies on it.
        if (has_s_of_before<kRhs, kSlice>(p)) {
            pdl_wait();
            pdl_trigger();
        }
        const int r = tile.ranks(p, kIsMN);
#pragma unroll 1
        for (int r0 = 0; r0 < r; r0 += kTileK) fill(std::true_type{}, tile, r0);
    }
}

// ---- Its flag warp and its partial warp -------------------------------------------------------

// Publishes the CTA's slices of S and waits for the slices that its tiles need, one tile ahead of
// the producer at most. So the producer, with loads in flight, need not fence.
template <int kN, bool kSlices>
__device__ __forceinline__ void flag_warp(const HopperProduct& p, uint32_t base) {
    const int lane = threadIdx.x % 32;
    const LinearBarriers barriers(base);
    const GridFlags flags{p.flags};
    bool is_last = false;
    if (lane == 0) {
        uint32_t tile_phase = 0;
        TileScheduler<kN, kSlices> tiles(p);
        for (auto tile = tiles.tile(); !tiles.done(); tiles.advance(tile), tile = tiles.tile()) {
            const int row_block = tile.m0 / kTileM;
            if (tile.projects) {
                mbarrier_wait(barriers.slice_stored, tiles.wave % 2);
                mbarrier_arrive(barriers.slice_stored_seen);
                if (tile.publishes(p) && tile.m0 < p.m) flags.publish(row_block);
            }
            if (tile.has_all_of_s(p) || tiles.writes_partial(tile)) continue;
            if (tile.m0 < p.m)
                while (GridFlags::load_acquire(&p.flags[1 + row_block]) < p.slices) {
                }
            fence_proxy_async_global();
            mbarrier_wait(barriers.flag_taken, tile_phase ^ 1);
            mbarrier_arrive(barriers.flag_seen);
            tile_phase ^= 1;
        }
        is_last = flags.is_last(gridDim.x);
    }
    if (__any_sync(~0u, is_last))
        for (int i = lane; i * kTileM < p.m; i += 32) p.flags[1 + i] = 0;
}

// Publishes the partial tile that the consumers write for the next cluster: the first of a span
// whose first steps are in the span before. The consumers need not wait for their writes then.
template <int kN, bool kSlices>
__device__ __forceinline__ void partial_warp(const HopperProduct& p, uint32_t base) {
    const TileScheduler<kN, kSlices> tiles(p);
    int before;
    divide(tiles.begin, tiles.steps(), before);
    if (tiles.begin == tiles.end || before == 0) return;
    mbarrier_wait(LinearBarriers(base).partial_written, 0);
    const int warp = threadIdx.x % 32;
    if (warp < kConsumerWarps) GridFlags::publish(partial_flag(p, blockIdx.x, warp));
}

// ---- CTAs that compute no output tiles --------------------------------------------------------

// dA and dB.
template <typename E, int kRank, typename D>
__device__ __forceinline__ void grad_cta(const HopperGradsParams& p, uint32_t base, int worker,
                                         int workers, const D& dropout) {
    // As wide as fits: S is read again for every item.
    using T = GradTile<kRank, kRank == 128 ? 128 : 256, kDrops<D>>;
    if (threadIdx.x == 0) {
        T::Stages::init(base, kConsumerWarps);
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warp = warp_index();
    if (warp < 4) {
        setmaxnreg_dec<40>();
        if (warp == 0 && elect_one()) {
            grads_produce<T>(p, base, worker, workers);
            grads_done(p);
        }
    } else {
        setmaxnreg_inc<232>();
        grads_consume<E, T>(p, base, worker, workers, dropout);
    }
}

// Rows of S.
template <typename E, int kRank, bool kShared>
__device__ __forceinline__ void projection_cta(const HopperLinearParams<Major::K, kShared>& p,
                                               uint32_t base) {
    using Tile = ProjectionTile<kRank, Major::K, kTileM>;
    const Projection s = {&p.of_lhs,       &p.of_proj_weight,  p.parts, p.s, p.flags, p.m, p.k, p.r,
                          (int)blockIdx.x, 2 * p.proj_clusters};
    if (threadIdx.x == 0) {
        Tile::Stages::init(base, kConsumerWarps);
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warp = warp_index();
    if (warp < 4) {
        setmaxnreg_dec<40>();
        if (warp == 0 && elect_one()) Tile::produce(s, base);
    } else {
        setmaxnreg_inc<232>();
        Tile::template consume<E>(s, base);
    }
    __syncthreads();
    // Counts as a waiter, as the flag warps do.
    if (threadIdx.x == 0) GridFlags{p.flags}.done(gridDim.x, p.m, kTileM);
}

template <Major kRhs, int kSlice, bool kShared>
__device__ __forceinline__ bool computes_tiles(const HopperLinearParams<kRhs, kShared>& p) {
    if (kRhs == Major::MN) return blockIdx.x < gridDim.x - 2 * p.grad_clusters;
    return kSlice > 0 || (int)blockIdx.x >= 2 * p.proj_clusters;
}

// The work of a CTA that computes none.
template <typename E, Major kRhs, int kSlice, bool kShared, typename D>
__device__ __forceinline__ void dedicated_cta(const HopperLinearParams<kRhs, kShared>& p,
                                              uint32_t base, const D& dropout) {
    if constexpr (kRhs == Major::MN) {
        const int workers = 2 * p.grad_clusters, worker = blockIdx.x - (gridDim.x - workers);
        if (kSlice == 0) {
            grad_cta<E, 128>(p.grads, base, worker, workers, dropout);
        } else if (kSlice == 16 && p.r <= 16) {
            grad_cta<E, 16>(p.grads, base, worker, workers, dropout);
        } else {
            grad_cta<E, 64>(p.grads, base, worker, workers, dropout);
        }
    } else if constexpr (kSlice == 0) {
        if (p.r <= 16) {
            projection_cta<E, 16>(p, base);
        } else if (p.r <= 64) {
            projection_cta<E, 64>(p, base);
        } else {
            projection_cta<E, 128>(p, base);
        }
    }
}

// ---- The kernel -------------------------------------------------------------------------------

template <typename E, int kN, Major kRhs, int kSlice, bool kShared, typename D = NoDropout>
__device__ __forceinline__ void hopper_linear(const HopperLinearParams<kRhs, kShared>& p,
                                              const D& dropout = {}) {
    const uint32_t base = shared_base();
    if (threadIdx.x == 0) {
        // Stages are released by the consumer warps of both CTAs.
        Stages<kMaxStages, 1024, kBarriersAt>::init(base, 2 * kConsumerWarps);
        LinearBarriers(base).init();
        fence_mbarrier_init();
        prefetch_tensormap(p.lhs(0));
        prefetch_tensormap(p.rhs(0));
    }
    cluster_sync();
    // Up to here, CTAs may run beside the end of the kernel before.
    if (!has_s_of_before<kRhs, kSlice>(p)) {
        pdl_wait();
        pdl_trigger();
    }
    const int warp = warp_index();
    if (!computes_tiles<kRhs, kSlice>(p)) {
        dedicated_cta<E, kRhs, kSlice>(p, base, dropout);
    } else if (warp < 4) {
        setmaxnreg_dec<40>();
        if (warp == 0) {
            if (elect_one()) produce<kN, kRhs, kSlice>(p, base);
        } else if (warp == 1 && (kSlice > 0 || (kRhs == Major::K && p.proj_clusters > 0))) {
            flag_warp<kN, (kSlice > 0)>(p, base);
        } else if (warp == 2) {
            partial_warp<kN, (kSlice > 0)>(p, base);
        }
    } else {
        setmaxnreg_inc<232>();
        consume<E, kN, kRhs, kSlice>(p, base, dropout);
    }
    // A CTA stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}
