// linear.cu's products on Hopper's own instructions, with project.cu's beside them:
//
//   forward      S = s·X Aᵀ,  H = X W0ᵀ + S Bᵀ     lhs X,  rhs W0, down A, extension S, B
//   input grad   dS = s·dH B, dX = dH W0 + dS A    lhs dH, rhs W0, down B, extension dS, A
//
//   lhs_ext[m, r] = scale · Σk lhs[m, k] down[r, k]    if made here: rounded once, saturated in f16
//   out[m, n]     = Σk lhs[m, k] rhs[n, k] + Σr lhs_ext[m, r] rhs_ext[n, r]     rounded once
//
// all accumulated in f32. rhs, down and rhs_ext lie K-major in the forward, MN-major in the input
// gradient. With r = 0 it is the frozen layer. lhs_ext is an input or made here: some tiles make a slice
// of it, kSlice columns, beside their own. If it is more than one slice, the first tiles of every row of
// tiles make one each, and wait for the others'. If it is only one, more tiles of a row make it, each for
// itself, and have it in registers when they need it; only the first writes it. Slices of 16 columns may
// be several, one of 64 is the only one. Or, in the forward, the first pairs of blocks make all of
// lhs_ext and nothing else, ahead of the others, who wait for it at the end of their tiles.
//
// The kernels called shared do all this for up to four layers that share X, with tiles or steps of one
// layer each: parts.cuh.
//
// In the backward, the last pairs of blocks may make dA and dB meanwhile, as those of grads.cu do.
//
// All rows must start at multiples of 16 bytes, which is what TMA takes; what a box has beyond the edge
// of its matrix is read as zeros and not written.
//
// Grid: persistent, a pair of blocks (cluster) for every two multiprocessors. A pair works on two tiles
// of 128×kN, one above the other, and shares rhs, of which each block loads one half into both, as of
// down where that is MN-major.
// tiles.cuh tells which, and all about blocks below is of those that work on tiles.
// Block: three warpgroups. Of the first, one thread loads, a warp scouts and one tells of what the block
// leaves of a shared tile; the other two multiply, 64×kN each.
// Shared memory: 4 or 5 stages of (128 + kN)×64 elements, with 16×64 more for slices of 16 in the forward;
// the rest is for the output on its way to the TMA, or where slices are made otherwise, until then for
// 64×64 elements of down for every stage.
// Reads lhs, rhs, down and rhs_ext; writes lhs_ext (if it is made) and out, every element once. `flags`
// must be zeros, and are again when the launch is done; `partials` are of no meaning before and after.
//
//   loader        |fill 0|fill 1|fill 2|fill 3|wait for empty 0, fill 0| ...         over all tiles
//   scout         |wait for S of tile 0|of tile 1| ...
//   multipliers   |4 k16 of stage 0|4 k16 of stage 1| ... |S·Bᵀ| |4 k16 of the next tile| ...
//                                                              round       store, store, ...
//
// A tile is rounded into registers when its last products are done, and stored in parts while those of
// the next tile run. The two warpgroups are apart by half a step or so, since the tensor cores serve one
// after the other, and one rounds while the other's products run.
//
// full[stage] of a block completes when all its bytes have come, from its own loads and its peer's.
// empty[stage] completes when the eight multiplying warps of both blocks are done with the stage,
// since a load writes to both. A stage is released when the products that read it are waited for,
// one stage behind those being issued. The scout waits for the flag of the rows of S that a tile will
// need, so that the loader, with loads in flight, need not fence: it only waits for scouted. Where the
// tile makes a slice, the multipliers write it, if others need it, and arrive at sliced; the scout arrives
// at noticed and raises the flag. Where down has the place of the output, the multipliers wait for one
// another before they put the tile there, and the loader, with the down of another, for stored.
//
// Who waits for whom: within a pair, for earlier steps of the same pair. Between pairs, provided that
// all run at the same time, which a cooperative launch guarantees or fails:
//   - a tile that makes a slice, for the others of its row. It tells its own before it waits. Number the
//     tiles that make slices: those of a row follow one another, no more than there are pairs that make
//     them, and a pair makes every so many-th, before all other tiles. Suppose some wait forever, and
//     take the first of them. All before it get done. So whoever makes a slice of its row comes to that
//     tile, and tells. So it does not wait forever.
//   - any other tile, for the slices of its row, which as said are all told.
//   - the last tile of a span, for what the next pair leaves of its first. That one waits for nobody,
//     and before it are only whole tiles, which as said get done.
//   - those that make dA, for all slices.
//   - where the first pairs make lhs_ext, all others for those, and for nobody else: they are the first
//     blocks of the grid, which are started first, so that such a launch need not be cooperative.
// The flags of slices are cleared by whoever, of scouts and of those that make dA, is the last to have
// seen what it waits for.
#pragma once

#include "multiply.cuh"

// ---------------------------------------------------------------------------------------------
// The roles of a block

template <int kN, bool kMnMajor, int kSlice, bool kShared>
__device__ __forceinline__ void load(const HopperLinearParams<kMnMajor, kShared>& p, uint32_t base) {
    using T = Tiling<kN, kMnMajor, kSlice>;
    const int rank = cluster_rank();
    Ring<T::kStages> ring;
    uint32_t tile_phase = 0;
    auto fill = [&](auto of_ext, const Tile<kN>& tile, int k0) {
        constexpr bool kExt = decltype(of_ext)::value;
        // Whose columns of the output, or whose stretch of k; and where it is in that layer's matrices.
        const int part = kMnMajor ? (kExt ? 0 : p.part(k0)) : p.part(tile.n0);
        const int start = kMnMajor && kExt ? 0 : p.start(part);
        const int n0 = tile.n0 - (kMnMajor ? 0 : start), k_of_part = k0 - (kMnMajor ? start : 0);
        const int rank_start = kMnMajor && kExt ? 0 : p.rank_start(part);
        const TensorMap& rhs = kExt ? p.rhs_ext(part) : p.rhs(part);
        // A tile that makes all of lhs_ext has it in registers.
        const bool has_lhs = !(kExt && kSlice > 0 && tile.is_alone(p));
        const bool has_down = !kExt && kSlice > 0 && tile.makes_slice;
        const uint32_t to_lhs = base + ring.stage * T::kStageBytes, to_rhs = to_lhs + kLhsBytes;
        const uint32_t barrier = full(base, ring.stage);
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        mbarrier_arrive_expect(
            barrier, (has_lhs ? kLhsBytes : 0) + T::kRhsBytes + (has_down ? T::kDownBytes : 0));
        if (has_lhs) {
            if constexpr (kExt) {
                tma_load(to_lhs, p.lhs_ext, tile.m0, rank_start + k0, barrier);
            } else {
                tma_load(to_lhs, p.lhs(part), tile.m0, k_of_part, barrier);
            }
        }
        // Each block of the pair loads one half of rhs into both, of the rows as they lie.
        if constexpr (kMnMajor) {
            for (int i = 0; i < T::kRhsCols / 64; i++)
                tma_load_pair(to_rhs + i * 8192 + rank * 4096, rhs,
                              k_of_part + rank * (kTileK / 2), n0 + i * 64, barrier);
        } else {
            // What meets all of lhs_ext has zeros for that of other layers.
            const int col = kExt && !has_lhs ? -rank_start : k_of_part;
            tma_load_pair(to_rhs + rank * (T::kRhsBytes / 2), rhs, n0 + rank * (kN / 2), col, barrier);
        }
        if (has_down) {
            const uint32_t to = T::down(base, ring.stage, to_rhs);
            const int slice0 = tile.slice(p) * kSlice;
            // NOTES: MN-major rows may be as short as 16 bytes, and all blocks read the same at the same
            // time: more than the few lines that they are in can serve, if each block reads all of them.
            if constexpr (kMnMajor) {
                tma_load_pair(to + rank * (T::kDownBytes / 2), p.down(part),
                              k_of_part + rank * (kTileK / 2), slice0 - rank_start, barrier);
            } else {
                tma_load(to, p.down(part), slice0, k0, barrier);
            }
        }
        ring.advance();
    };
    Tiles<kN, (kSlice > 0)> tiles(p);
    for (Tile<kN> tile = tiles.tile(), next; !tiles.done(); tile = next) {
        const bool leaves = tiles.leaves(tile);
        if (T::kDownApart && tile.makes_slice && tiles.wave > 0)
            mbarrier_wait(stored(base), (tiles.wave - 1) % 2);
        for (int i = 0, k0 = tile.first * kTileK; i < tile.steps; i++, k0 += kTileK) {
            if (k0 >= p.k) k0 = 0;
            fill(std::false_type{}, tile, k0);
            // While there is time, since it takes some.
            if (i == 0) {
                tiles.advance(tile);
                next = tiles.tile();
                pin_register(next.m0), pin_register(next.n0);
            }
        }
        if (leaves) continue;
        if (kSlice > 0 ? !tile.is_alone(p) : p.projectors > 0) {
            mbarrier_wait(scouted(base), tile_phase);
            mbarrier_arrive(taken(base));
            tile_phase ^= 1;
        }
        const int r = tile.ranks(p, kMnMajor);
#pragma unroll 1
        for (int r0 = 0; r0 < r; r0 += kTileK) fill(std::true_type{}, tile, r0);
    }
}

// Counts this block among those that have seen all the flags that they need; whether it is the last.
__device__ __forceinline__ bool counts_last(const HopperProduct& p) {
    const uint32_t last = gridDim.x - 1;
    return count_round(p.flags, last) == last;
}

// Tells other blocks of the slices that this one makes, and waits for all those that its tiles need,
// one tile ahead of the loader at most. The last of all to have seen its flags clears them.
template <int kN, bool kSlices>
__device__ __forceinline__ void scout(const HopperProduct& p, uint32_t base) {
    const int lane = threadIdx.x % 32;
    bool is_last = false;
    if (lane == 0) {
        uint32_t tile_phase = 0;
        Tiles<kN, kSlices> tiles(p);
        for (auto tile = tiles.tile(); !tiles.done(); tiles.advance(tile), tile = tiles.tile()) {
            uint32_t* flag = &p.flags[1 + tile.m0 / kTileM];
            if (tile.makes_slice) {
                mbarrier_wait(sliced(base), tiles.wave % 2);
                mbarrier_arrive(noticed(base));
                if (tile.tells(p) && tile.m0 < p.m) flag_add_release(flag);
            }
            if (tile.is_alone(p) || tiles.leaves(tile)) continue;
            if (tile.m0 < p.m)
                while (flag_load_acquire(flag) < p.slices) {
                }
            fence_global_before_tma();
            mbarrier_wait(taken(base), tile_phase ^ 1);
            mbarrier_arrive(scouted(base));
            tile_phase ^= 1;
        }
        is_last = counts_last(p);
    }
    if (__any_sync(~0u, is_last))
        for (int i = lane; i * kTileM < p.m; i += 32) p.flags[1 + i] = 0;
}

// Tells the pair of blocks before of what the multipliers leave it, if they do: the first tile of a span
// whose first steps are in the span before. It does so for them, since it waits for all that they have
// written to get there.
template <int kN, bool kSlices>
__device__ __forceinline__ void tell_left(const HopperProduct& p, uint32_t base) {
    const Tiles<kN, kSlices> tiles(p);
    int before;
    divide(tiles.begin, tiles.steps(), before);
    if (tiles.begin == tiles.end || before == 0) return;
    mbarrier_wait(left(base), 0);
    const int warp = threadIdx.x % 32;
    if (warp < kMultiplyingWarps) flag_add_release(flag_of_warp(p, blockIdx.x, warp));
}

// ---------------------------------------------------------------------------------------------

// The work of a block that makes dA and dB.
template <typename E, int kRank>
__device__ __forceinline__ void stream(const HopperGradsParams& p, uint32_t base, int worker,
                                       int workers) {
    // As wide as fits, since S is read again for every item.
    using T = GradsTiling<kRank, kRank == 128 ? 128 : 256>;
    if (threadIdx.x == 0) {
        grads_init<T>(base);
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < 4) {
        give_registers<40>();
        if (warp == 0 && is_elected()) {
            grads_load<T>(p, base, worker, workers);
            grads_done(p);
        }
    } else {
        take_registers<232>();
        grads_multiply<E, T>(p, base, worker, workers);
    }
}

// The work of a block that makes rows of lhs_ext and nothing else.
template <typename E, int kRank, bool kShared>
__device__ __forceinline__ void project(const HopperLinearParams<false, kShared>& p, uint32_t base) {
    const Projection s = {&p.of_lhs, &p.of_down, p.parts, p.s,  p.flags + 1, p.m, p.k, p.r,
                          (int)blockIdx.x, 2 * p.projectors};
    if (threadIdx.x == 0) {
        project_init<ProjectTile<kRank, false>>(base);
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < 4) {
        give_registers<40>();
        if (warp == 0 && is_elected()) project_load<kRank, false, kTileM>(s, base);
    } else {
        take_registers<232>();
        project_multiply<E, kRank, false>(s, base);
    }
    __syncthreads();
    // As the scouts of the others do, when they have seen all that they need.
    if (threadIdx.x == 0 && counts_last(p))
        for (int i = 0; i * kTileM < p.m; i++) p.flags[1 + i] = 0;
}

// Whether this block works on tiles.
template <bool kMnMajor, int kSlice, bool kShared>
__device__ __forceinline__ bool works_on_tiles(const HopperLinearParams<kMnMajor, kShared>& p) {
    if (kMnMajor) return blockIdx.x < gridDim.x - 2 * p.streamers;
    return kSlice > 0 || (int)blockIdx.x >= 2 * p.projectors;
}

// The work of one that does not.
template <typename E, bool kMnMajor, int kSlice, bool kShared>
__device__ __forceinline__ void work_beside(const HopperLinearParams<kMnMajor, kShared>& p,
                                            uint32_t base) {
    if constexpr (kMnMajor) {
        const int streamers = 2 * p.streamers, streamer = blockIdx.x - (gridDim.x - streamers);
        if (kSlice == 0) {
            stream<E, 128>(p.grads, base, streamer, streamers);
        } else if (kSlice == 16 && p.r <= 16) {
            stream<E, 16>(p.grads, base, streamer, streamers);
        } else {
            stream<E, 64>(p.grads, base, streamer, streamers);
        }
    } else if constexpr (kSlice == 0) {
        if (p.r <= 16) {
            project<E, 16>(p, base);
        } else if (p.r <= 64) {
            project<E, 64>(p, base);
        } else {
            project<E, 128>(p, base);
        }
    }
}

template <typename E, int kN, bool kMnMajor, int kSlice, bool kShared>
__device__ __forceinline__ void hopper_linear(const HopperLinearParams<kMnMajor, kShared>& p) {
    const uint32_t base = shared_base();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kMaxStages; stage++) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), 2 * kMultiplyingWarps);
        }
        mbarrier_init(scouted(base), 1);
        mbarrier_init(taken(base), 1);
        mbarrier_init(sliced(base), kMultiplyingWarps);
        mbarrier_init(left(base), kMultiplyingWarps);
        mbarrier_init(stored(base), 4);
        mbarrier_init(noticed(base), 1);
        fence_mbarrier_init();
        prefetch_map(p.lhs(0));
        prefetch_map(p.rhs(0));
    }
    cluster_sync();
    // Until here, this may run beside the end of the kernel before.
    wait_for_kernel_before();
    let_next_kernel_start();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (!works_on_tiles<kMnMajor, kSlice>(p)) {
        work_beside<E, kMnMajor, kSlice>(p, base);
    } else if (warp < 4) {
        give_registers<40>();
        if (warp == 0) {
            if (is_elected()) load<kN, kMnMajor, kSlice>(p, base);
        } else if (warp == 1 && (kSlice > 0 || (!kMnMajor && p.projectors > 0))) {
            scout<kN, (kSlice > 0)>(p, base);
        } else if (warp == 2) {
            tell_left<kN, (kSlice > 0)>(p, base);
        }
    } else {
        take_registers<232>();
        multiply<E, kN, kMnMajor, kSlice>(p, base);
    }
    // A block stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

// linear.cu has them for a layer alone, kernels/sm90a/linear_shared.cu for several that share X.
#define HOPPER_LINEAR_KERNEL(name, E, n, mn_major, slice, shared)                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)      \
        name(const __grid_constant__ HopperLinearParams<mn_major, shared> params) {     \
        hopper_linear<E, n, mn_major, slice>(params);                                   \
    }
#define HOPPER_LINEAR_KERNELS_OF(layers, shared, n, type, E)                                    \
    HOPPER_LINEAR_KERNEL(layers##_forward_n##n##_##type, E, n, false, 0, shared)                \
    HOPPER_LINEAR_KERNEL(layers##_forward_slice16_n##n##_##type, E, n, false, 16, shared)       \
    HOPPER_LINEAR_KERNEL(layers##_forward_slice64_n##n##_##type, E, n, false, 64, shared)       \
    HOPPER_LINEAR_KERNEL(layers##_input_grad_n##n##_##type, E, n, true, 0, shared)              \
    HOPPER_LINEAR_KERNEL(layers##_input_grad_slice16_n##n##_##type, E, n, true, 16, shared)     \
    HOPPER_LINEAR_KERNEL(layers##_input_grad_slice64_n##n##_##type, E, n, true, 64, shared)
#define HOPPER_LINEAR_KERNELS_OF_TYPE(layers, shared, type, E)                                  \
    HOPPER_LINEAR_KERNELS_OF(layers, shared, 128, type, E)                                      \
    HOPPER_LINEAR_KERNELS_OF(layers, shared, 176, type, E)                                      \
    HOPPER_LINEAR_KERNELS_OF(layers, shared, 256, type, E)                                      \
    HOPPER_LINEAR_KERNEL(layers##_forward_n224_##type, E, 224, false, 0, shared)
#define HOPPER_LINEAR_KERNELS(layers, shared)                                                   \
    HOPPER_LINEAR_KERNELS_OF_TYPE(layers, shared, bf16, __nv_bfloat16)                          \
    HOPPER_LINEAR_KERNELS_OF_TYPE(layers, shared, f16, __half)
