// archs: 90a
//
// The adapter's gradients on Hopper's own instructions, and before them dS, if it is not there yet:
//
//   dS (T×r)   =    scale · dH B              rounded once
//   dB (d×r) (=|+=) dHᵀ S      Y dH (T×d), L S  (T×r)
//   dA (r×k) (=|+=) dSᵀ X      Y X  (T×k), L dS (T×r)
//
// all accumulated in f32. With `accumulate` the finished sum is added to what the output holds: the same
// bits as an overwrite followed by an addition. dA and dB may be null, and are then left out.
//
// Bound by reading Y, which every tile of kRank columns of L reads once. dH is read for dS too, at the same
// time, so that some of it is found in the L2.
//
// An item is one such tile and 128 columns of Y over all of T, and belongs to one block, so there are no
// float atomics, no partial sums in memory, and the same bits whatever the grid, and in hopper_linear.cu.
// dB's items come first, then dA's. The first blocks, as many as are called projectors, make 128 rows of
// dS each at a time, and the others make items, in turns.
//
// All rows must start at multiples of 16 bytes, which is what TMA takes. What a box has beyond the edge of
// its matrix is read as zeros: rows of Y and L that add nothing, and columns whose products nobody
// stores.
//
// Grid: any, but no more than there are tiles and items: with idle ones, those that are not crowd.
// Block: three warpgroups. Of the first, one thread loads; the other two multiply.
// Shared memory: 224 KiB from a multiple of 1024 bytes on, in stages of 64 columns of dH and rows of B, or
// of 64 rows of Y and L, and their barriers.
// Reads dH, X, S, B and dS; writes dS (if it is made), dB and dA (if they are wanted), every element once.
// If dS is made and used, `flags` must be zeros, and are again when the launch is done.
//
//   projector     |128 rows of dS|128 rows| ...          tells of them, waits for nobody
//   loader        |fill 0|fill 1| ... |wait for empty 0, fill 0| ...                over all items
//   multipliers   |4 k16 of stage 0|4 k16 of stage 1| ... |add|4 k16| ... |add|store| |next item
//
// Both operands of dB and dA are as wgmma takes them from rows of k: 64 columns of Y are m, the columns of
// L are n, and rows of T are k. Every 2048 rows the tensor cores' sums are added to others, in plain f32,
// and start again: a chain of tensor core additions, which truncate, would be further off the longer it
// gets.
//
// full[stage] completes when all its bytes have come. empty[stage] completes when the eight multiplying
// warps are done with the stage, which is one stage behind those whose products are being issued.
//
// Who waits for whom: the loader and the multipliers of a block for each other; items of dA for the flags
// of the rows of dS, as they come to them, provided that all blocks run at the same time, which a
// cooperative launch guarantees or fails.
#include "hopper_grads.cuh"

// kFlagRows rows and kRank columns of dS, summed up along d from 0 on, 16 at a time, as hopper_linear.cu
// does it: dS has the same bits whoever makes it.
template <int kRank>
struct ProjectTile {
    static constexpr int kBoxes = (kRank + 63) / 64, kBoxBytes = 64 * 64 * 2;  // of B
    static constexpr int kStageBytes = (2 + kBoxes) * kBoxBytes;
    static constexpr int kStages = (224 << 10) / (kStageBytes + 16);

    int t0, rank0;

    __device__ __forceinline__ ProjectTile(const HopperGradsParams& p, int index) {
        const int ranks = (p.r + kRank - 1) / kRank;
        t0 = index / ranks * kFlagRows;
        rank0 = index % ranks * kRank;
    }

    static __device__ __forceinline__ int count(const HopperGradsParams& p) {
        const int ranks = (p.r + kRank - 1) / kRank;
        return (p.t + kFlagRows - 1) / kFlagRows * ranks;
    }

    static __device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
        return base + kStages * kStageBytes + 8 * stage;
    }
    static __device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
        return full(base, kStages + stage);
    }
};

// By one thread, which is_elected().
template <int kRank>
__device__ __forceinline__ void project_load(const HopperGradsParams& p, uint32_t base) {
    using Tile = ProjectTile<kRank>;
    Ring<Tile::kStages> ring;
    for (int index = blockIdx.x; index < Tile::count(p); index += p.projectors) {
        const Tile tile(p, index);
        for (int d0 = 0; d0 < p.d; d0 += 64) {
            const uint32_t barrier = Tile::full(base, ring.stage);
            const uint32_t to = base + ring.stage * Tile::kStageBytes;
            mbarrier_wait(Tile::empty(base, ring.stage), ring.phase ^ 1);
            mbarrier_arrive_expect(barrier, Tile::kStageBytes);
#pragma unroll
            for (int i = 0; i < 2; i++)
                tma_load(to + i * Tile::kBoxBytes, p.dh, tile.t0 + i * 64, d0, barrier);
#pragma unroll
            for (int i = 0; i < Tile::kBoxes; i++)
                tma_load(to + (2 + i) * Tile::kBoxBytes, p.b, d0, tile.rank0 + i * 64, barrier);
            ring.advance();
        }
    }
}

// By the two warpgroups behind the first, 64 rows each.
template <typename E, int kRank>
__device__ __forceinline__ void project_multiply(const HopperGradsParams& p, uint32_t base) {
    using Tile = ProjectTile<kRank>;
    const int half = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    Ring<Tile::kStages> ring;
    auto release = [&](int stage) {
        if (lane == 0) mbarrier_arrive(Tile::empty(base, stage));
    };
    for (int index = blockIdx.x; index < Tile::count(p); index += p.projectors) {
        const Tile tile(p, index);
        float acc[kRank / 2];
        int accumulate = 0, previous = -1;
        for (int d0 = 0; d0 < p.d; d0 += 64) {
            mbarrier_wait(Tile::full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * Tile::kStageBytes;
            const uint64_t dh = wgmma_descriptor(stage + half * Tile::kBoxBytes, false);
            const uint64_t b =
                wgmma_descriptor_of_boxes(stage + 2 * Tile::kBoxBytes, 64, Tile::kBoxBytes);
            wgmma_fence();
#pragma unroll
            for (int k16 = 0; k16 < 4; k16++) {
                wgmma<E, kRank, 0, false, true>(acc, dh + k16 * 32 / 16, b + k16 * 2048 / 16,
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
        const int row0 = tile.t0 + half * 64 + warp * 16 + lane / 4;
        const int rank0 = tile.rank0 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kRank / 4; i++) {
            const int row = row0 + i % 2 * 8, rank = rank0 + i / 2 * 8;
            if (row >= p.t || rank >= p.r) continue;
            // Elements have 16 bits.
            auto* to = static_cast<uint16_t*>(p.ds_out) + (int64_t)row * p.r + rank;
            *reinterpret_cast<uint32_t*>(to) = pack<E>(acc[2 * i] * p.scale, acc[2 * i + 1] * p.scale);
        }
        // Both warpgroups' rows.
        named_barrier<256>(1);
        if (p.ds_parts > 0 && threadIdx.x == 128) flag_add_release(&p.flags[1 + tile.t0 / kFlagRows]);
    }
}

template <typename E, int kRank>
__device__ __forceinline__ void hopper_grads(const HopperGradsParams& p) {
    using Tile = ProjectTile<kRank>;
    using T = GradsTiling<kRank, 128>;
    const uint32_t base = shared_base();
    const int workers = gridDim.x - p.projectors, worker = (int)blockIdx.x - p.projectors;
    const bool projects = worker < 0;
    if (threadIdx.x == 0) {
        if (projects) {
            for (int stage = 0; stage < Tile::kStages; stage++) {
                mbarrier_init(Tile::full(base, stage), 1);
                mbarrier_init(Tile::empty(base, stage), 8);  // the multiplying warps
            }
        } else {
            grads_init<T>(base);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < 4) {
        give_registers<40>();
        if (warp == 0 && is_elected()) {
            if (projects) {
                project_load<kRank>(p, base);
            } else {
                grads_load<T>(p, base, worker, workers);
            }
            grads_done(p);
        }
    } else {
        take_registers<232>();
        if (projects) {
            project_multiply<E, kRank>(p, base);
        } else {
            grads_multiply<E, T>(p, base, worker, workers);
        }
    }
}

#define HOPPER_GRADS_KERNEL(rank, type, E)                         \
    extern "C" __global__ void __launch_bounds__(384, 1)           \
        hopper_grads_r##rank##_##type(                             \
            const __grid_constant__ HopperGradsParams params) {    \
        hopper_grads<E, rank>(params);                             \
    }

HOPPER_GRADS_KERNEL(16, bf16, __nv_bfloat16)
HOPPER_GRADS_KERNEL(64, bf16, __nv_bfloat16)
HOPPER_GRADS_KERNEL(128, bf16, __nv_bfloat16)
HOPPER_GRADS_KERNEL(16, f16, __half)
HOPPER_GRADS_KERNEL(64, f16, __half)
HOPPER_GRADS_KERNEL(128, f16, __half)
