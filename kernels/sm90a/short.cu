// linear.cuh's products for short batches, whose tiles are no more than there are multiprocessors,
// each of them made from end to end by one block:
//
//   forward      S = s·X Aᵀ,  H = X W0ᵀ + S Bᵀ     lhs X,  rhs W0, down A, extension S, B
//   input grad   dS = s·dH B, dX = dH W0 + dS A    lhs dH, rhs W0, down B, extension dS, A
//
//   lhs_ext[m, r] = scale · Σk lhs[m, k] down[r, k]             rounded once, saturated in f16
//   out[m, n]     = Σk lhs[m, k] rhs[n, k] + Σr lhs_ext[m, r] rhs_ext[n, r]     rounded once
//
// all accumulated in f32. rhs, down and rhs_ext lie K-major in the forward, MN-major in the input
// gradient. With r = 0 it is the frozen layer, and without blocks for tiles of out, lhs_ext alone.
//
// What limits such a launch is how many bytes are on their way to a multiprocessor, so that stages take
// nearly all of shared memory, and the output has its place there only when they are done. The sums that
// make an element of out go along k from 0 on, and then along r, whatever m is: a token's H has the same
// bits in any batch that this kernel serves. So has its S, which is summed up in two halves of k.
//
// All rows must start at multiples of 16 bytes, which is what TMA takes; what a box has beyond the edge
// of its matrix is read as zeros and not written.
//
// Grid: pairs of blocks (clusters). The first ones make lhs_ext, and each of the others two tiles of
// kM×kN of out, of the same columns and of rows one below the other. They share rhs and rhs_ext, of which
// each loads one half into both. Of a pair that makes lhs_ext, a block goes along half of k, and the first
// adds up both.
// NOTES: a tile has no more rows than it must, kM at most. Filling a row with zeros takes the TMA longer than
// loading one, and whatever is in shared memory there, only rows of out have it that nobody stores.
// Block: three warpgroups. Of the first, one thread loads; of the other two, kM / 64 multiply, 64 rows
// each. In the input gradient, where that is one, the last makes dA and dB meanwhile, as in decode.cu;
// otherwise they follow in a launch of their own.
// Shared memory: stages of kM×64 elements of lhs and kN×64 of rhs, or 16×64 or 64×64 of down; and a step of dA
// or dB.
// Reads lhs, rhs, down and rhs_ext, and for dA and dB their operands; writes lhs_ext and out, dA and dB, every
// element once. `flags` must be zeros, and are again when the launch is done, if there are tiles of out.
//
//   loader        |wait for the kernel before|fill 0|fill 1| ... |wait for lhs_ext|fill lhs_ext, rhs_ext|
//   multipliers                              |4 k16 of stage 0|4 k16 of 1| ... |S·Bᵀ|round, store
//
// full[stage] completes when all its bytes have come, from the loads of both blocks. empty[stage]
// completes when the multiplying warps that read what this block loads are done with the stage.
//
// Who waits for whom: within a pair, for each other. Those that make out, for those that make lhs_ext of
// their rows, and who makes dA, for all of it. The makers do not wait for anybody else, and are the first
// blocks of the grid, so that they are started first, however many run at once. The last to have seen all
// that it needs clears the flags.
#include "grads.cuh"

// Mirrored by cuda::hopper_short::HopperShortParams in Rust.
struct HopperShortParams {
    TensorMap lhs, lhs_ext;  // in boxes of 64 columns and as many rows as a tile has
    TensorMap rhs, rhs_ext;  // and of kN / 2 rows; MN-major, of 64 columns and 32 rows
    TensorMap down;          // and of as many rows as a tile of lhs_ext has columns; MN-major, of 64×64
    void *out, *s;           // s is where lhs_ext is written
    uint32_t* flags;  // how many have seen theirs, then for the rows of a tile, how many of lhs_ext are there
    int m, n, k, r;
    int rows;         // of a tile, kM at most
    int s_cols;       // elements from one row of lhs_ext to the next: it may be columns of a matrix
    float scale;
    int down_pairs;   // the pairs that make lhs_ext; 0 if r is
    int tells;        // whether there are others, to be told of it
    int out_cols;     // row stride of out in elements, a multiple of 8
};
static_assert(sizeof(HopperShortParams) == 704);

// Mirrored in the same place.
struct HopperShortBackwardParams {
    HopperShortParams product;
    HopperGradsParams grads;  // dA is null if they are not made here
};
static_assert(sizeof(HopperShortBackwardParams) == 2304);

constexpr int kStep = 64;  // along k
constexpr int kMaxStages = 16;
constexpr int kBarriersAt = 224 << 10;

__device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * stage;
}
__device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
    return full(base, kMaxStages + stage);
}
// The sums of the peer are there; it may send the next.
__device__ __forceinline__ uint32_t received(uint32_t base) { return full(base, 2 * kMaxStages); }
__device__ __forceinline__ uint32_t taken(uint32_t base) { return received(base) + 8; }
// What is needed of a step of dA or dB.
__device__ __forceinline__ uint32_t grads_full(uint32_t base) { return taken(base) + 8; }

constexpr int kGradsAt = kBarriersAt - kGradsBesideBytes;

// Stages of kM rows of lhs, and kCols of what it is multiplied with, in what kApart bytes leave of shared
// memory; kMost at most.
template <int kM, int kCols, int kApart, int kMost>
struct Stages {
    static constexpr int kLhsBytes = kM * kStep * 2, kBytes = kLhsBytes + kCols * kStep * 2;
    static constexpr int kFit = (kBarriersAt - kApart) / kBytes;
    static constexpr int kCount = kFit < kMost ? kFit : kMost;
};

template <int kM, int kN, bool kMnMajor>
using TileStages = Stages<kM, kN, kMnMajor && kM == 64 ? kGradsBesideBytes : 0, kMaxStages>;

// The sums that a pair's second block hands over: 16 bytes of every thread at a time. What lies
// MN-major comes in boxes of 64 columns.
// NOTES: with tiles of 128 rows and more stages than 8, those that make lhs_ext run ahead and slow the
// others down: 256 tokens of 14336→4096 at rank 16 took 62 µs with 12, and 56 with 8. With tiles of 64 rows, fewer
// stages only have lhs_ext come late.
template <int kM, int kRank, bool kMnMajor>
struct Handover {
    static constexpr int kChunks = kRank / 8, kChunkBytes = kM / 64 * 128 * 16;
    static constexpr int kMostStages = kM == 128 ? 8 : kMaxStages;
    using Stages = ::Stages<kM, kMnMajor ? 64 : kRank, kChunks * kChunkBytes, kMostStages>;
    static constexpr int kAt = kBarriersAt - kChunks * kChunkBytes;
};

// From one 16 along k to the next, in a descriptor.
constexpr int kLhsStep = 32 / 16;
template <bool kMnMajor>
constexpr int kRhsStep = (kMnMajor ? 2048 : 32) / 16;

// ---------------------------------------------------------------------------------------------
// lhs_ext

// The tiles of lhs_ext of a pair, kM×kRank: every so many-th, those of the same rows one after the other.
template <int kM, int kRank>
struct ExtTiles {
    int index, ranks, count;
    int first, steps;  // along k, of this block

    __device__ __forceinline__ explicit ExtTiles(const HopperShortParams& p) {
        index = blockIdx.x / 2;
        ranks = (p.r + kRank - 1) / kRank;
        count = (p.m + p.rows - 1) / p.rows * ranks;
        const int all = (p.k + kStep - 1) / kStep, half = (all + 1) / 2;
        first = cluster_rank() == 0 ? 0 : half;
        steps = cluster_rank() == 0 ? half : all - half;
    }
    __device__ __forceinline__ bool done() const { return index >= count; }
    __device__ __forceinline__ void advance(const HopperShortParams& p) { index += p.down_pairs; }
    __device__ __forceinline__ int row() const { return index / ranks; }  // of tiles
    __device__ __forceinline__ int rank0() const { return index % ranks * kRank; }
};

// By one thread, which is_elected().
template <int kM, int kRank, bool kMnMajor>
__device__ __forceinline__ void load_for_ext(const HopperShortParams& p, uint32_t base) {
    using Stages = typename Handover<kM, kRank, kMnMajor>::Stages;
    Ring<Stages::kCount> ring;
    for (ExtTiles<kM, kRank> tiles(p); !tiles.done(); tiles.advance(p)) {
        for (int i = 0; i < tiles.steps; i++) {
            const int k0 = (tiles.first + i) * kStep;
            const uint32_t to = base + ring.stage * Stages::kBytes, barrier = full(base, ring.stage);
            // A stage that was never filled counts as released.
            mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
            mbarrier_arrive_expect(barrier, Stages::kBytes - (kM - p.rows) * kStep * 2);
            tma_load(to, p.lhs, tiles.row() * p.rows, k0, barrier);
            if constexpr (kMnMajor) {
                tma_load(to + Stages::kLhsBytes, p.down, k0, tiles.rank0(), barrier);
            } else {
                tma_load(to + Stages::kLhsBytes, p.down, tiles.rank0(), k0, barrier);
            }
            ring.advance();
        }
    }
}

// By the multiplying warpgroups.
template <typename E, int kM, int kRank, bool kMnMajor>
__device__ __forceinline__ void make_ext(const HopperShortParams& p, uint32_t base) {
    using Over = Handover<kM, kRank, kMnMajor>;
    using Stages = typename Over::Stages;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int thread = threadIdx.x - 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int rank = (int)cluster_rank();
    auto chunk_at = [&](uint32_t place, int chunk) {
        return place + chunk * Over::kChunkBytes + thread * 16;
    };
    auto release = [&](int stage) {
        if (lane == 0) mbarrier_arrive(empty(base, stage));
    };
    Ring<Stages::kCount> ring;
    uint32_t tile_phase = 0;
    for (ExtTiles<kM, kRank> tiles(p); !tiles.done(); tiles.advance(p)) {
        float acc[kRank / 2] = {};
        int previous = -1;
        for (int i = 0; i < tiles.steps; i++) {
            mbarrier_wait(full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * Stages::kBytes;
            const uint64_t lhs = wgmma_descriptor(stage + group * 64 * kStep * 2, false);
            const uint64_t down = wgmma_descriptor(stage + Stages::kLhsBytes, kMnMajor);
            wgmma_fence();
#pragma unroll
            for (int k16 = 0; k16 < kStep / 16; k16++)
                wgmma<E, kRank, 0, false, kMnMajor>(acc, lhs + k16 * kLhsStep,
                                                    down + k16 * kRhsStep<kMnMajor>, 1);
            wgmma_commit();
            wgmma_wait<1>();
            if (previous >= 0) release(previous);
            previous = ring.stage;
            ring.advance();
        }
        wgmma_wait<0>();
        if (previous >= 0) release(previous);
        if (rank == 1) {
            mbarrier_wait(taken(base), tile_phase ^ 1);
            const uint32_t to = address_in_block(base + Over::kAt, 0);
            const uint32_t barrier = address_in_block(received(base), 0);
#pragma unroll
            for (int i = 0; i < Over::kChunks; i++) store_async(chunk_at(to, i), &acc[4 * i], barrier);
        } else {
            if (thread == 0) mbarrier_arrive_expect(received(base), Over::kChunks * Over::kChunkBytes);
            mbarrier_wait(received(base), tile_phase);
            const int row0 = group * 64 + warp * 16 + lane / 4, m0 = tiles.row() * p.rows;
            const int rank0 = tiles.rank0() + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < Over::kChunks; i++) {
                float v[4] = {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
                add_shared(v, chunk_at(base + Over::kAt, i));
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = row0 + half * 8, col = rank0 + i * 8;
                    if (row >= p.rows || m0 + row >= p.m || col >= p.r) continue;
                    // Elements have 16 bits.
                    auto* to = static_cast<uint16_t*>(p.s) + (int64_t)(m0 + row) * p.s_cols + col;
                    *reinterpret_cast<uint32_t*>(to) =
                        pack_saturated<E>(v[2 * half] * p.scale, v[2 * half + 1] * p.scale);
                }
            }
            __syncwarp();
            if (lane == 0) mbarrier_arrive_remote(taken(base), 1);
            // All rows of the tile.
            named_barrier<kM / 64 * 128>(1);
            if (p.tells && thread == 0) flag_add_release(&p.flags[1 + tiles.row()]);
        }
        tile_phase ^= 1;
    }
}

// ---------------------------------------------------------------------------------------------
// out

// By one thread, until lhs_ext of a row of tiles is there to be loaded.
__device__ __forceinline__ void wait_for_ext(const HopperShortParams& p, int row) {
    const uint32_t tiles = (p.r + 63) / 64;  // if they are of 16 columns, it is one
    while (flag_load_acquire(&p.flags[1 + row]) < tiles) {
    }
    fence_global_before_tma();
}

// By each of the threads of a block that look at flags, when it has seen all that it needs.
__device__ __forceinline__ void flags_done(const HopperShortParams& p, int of_block) {
    const uint32_t last = (gridDim.x - 2 * p.down_pairs) * of_block - 1;
    if (count_round(&p.flags[0], last) == last)
        for (int i = 0; i * p.rows < p.m; i++) p.flags[1 + i] = 0;
}

// By one thread, which is_elected(), given the row of tiles, and how many of the block look at flags.
template <int kM, int kN, bool kMnMajor>
__device__ __forceinline__ void load(const HopperShortParams& p, uint32_t base, int row, int n0,
                                     int looks) {
    using Stages = TileStages<kM, kN, kMnMajor>;
    const int rank = (int)cluster_rank(), m0 = row * p.rows;
    // The second block of a pair may have no rows.
    const bool has_rows = m0 < p.m;
    const int bytes = Stages::kBytes - (kM - (has_rows ? p.rows : 0)) * kStep * 2;
    Ring<Stages::kCount> ring;
    // The next stage's part of rhs or rhs_ext, half of it; returns where that of lhs goes.
    auto fill = [&](const TensorMap& rhs, int k0) {
        const uint32_t to = base + ring.stage * Stages::kBytes, barrier = full(base, ring.stage);
        const uint32_t to_rhs = to + Stages::kLhsBytes;
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        mbarrier_arrive_expect(barrier, bytes);
        if constexpr (kMnMajor) {
#pragma unroll
            for (int i = 0; i < kN / 64; i++)
                tma_load_pair(to_rhs + i * 8192 + rank * 4096, rhs, k0 + rank * (kStep / 2), n0 + i * 64,
                              barrier);
        } else {
            const int half = kN / 2;
            tma_load_pair(to_rhs + rank * half * kStep * 2, rhs, n0 + rank * half, k0, barrier);
        }
        return to;
    };
    for (int k0 = 0; k0 < p.k; k0 += kStep) {
        const uint32_t to = fill(p.rhs, k0);
        if (has_rows) tma_load(to, p.lhs, m0, k0, full(base, ring.stage));
        ring.advance();
    }
    if (p.r == 0) return;
    for (int r0 = 0; r0 < p.r; r0 += kStep) {
        const uint32_t to = fill(p.rhs_ext, r0);
        if (has_rows) {
            if (r0 == 0) wait_for_ext(p, row);
            tma_load(to, p.lhs_ext, m0, r0, full(base, ring.stage));
        }
        ring.advance();
    }
    flags_done(p, looks);
}

// By the multiplying warpgroups.
template <typename E, int kM, int kN, bool kMnMajor>
__device__ __forceinline__ void multiply(const HopperShortParams& p, uint32_t base, int row, int n0) {
    using Stages = TileStages<kM, kN, kMnMajor>;
    constexpr int kPitch = kN * 2 + 16;  // with which no two rows of the output are in one bank
    static_assert(kM * kPitch <= Stages::kCount * Stages::kBytes);
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    Ring<Stages::kCount> ring;
    int accumulate = 0, previous = -1;
    float acc[kN / 2];
    auto release = [&](int stage) {
        if (lane < 2) mbarrier_arrive_remote(empty(base, stage), lane);
    };
    // The products that `issue` issues of a stage, given its operands; it releases the stage before.
    auto step = [&](auto&& issue) {
        mbarrier_wait(full(base, ring.stage), ring.phase);
        const uint32_t stage = base + ring.stage * Stages::kBytes;
        issue(wgmma_descriptor(stage + group * 64 * kStep * 2, false),
              wgmma_descriptor(stage + Stages::kLhsBytes, kMnMajor));
        wgmma_wait<1>();
        if (previous >= 0) release(previous);
        previous = ring.stage;
        ring.advance();
    };
    for (int k0 = 0; k0 < p.k; k0 += kStep)
        step([&](uint64_t lhs, uint64_t rhs) {
            wgmma_fence();
#pragma unroll
            for (int k16 = 0; k16 < kStep / 16; k16++) {
                wgmma<E, kN, 0, false, kMnMajor>(acc, lhs + k16 * kLhsStep,
                                                 rhs + k16 * kRhsStep<kMnMajor>, accumulate);
                accumulate = 1;
            }
            wgmma_commit();
        });
    for (int r0 = 0; r0 < p.r; r0 += kStep)
        step([&](uint64_t lhs, uint64_t rhs) {
            // One by one, since branches between wgmmas would serialise them.
            for (int k16 = 0; k16 < min((p.r - r0 + 15) / 16, kStep / 16); k16++) {
                wgmma_fence();
                wgmma<E, kN, 0, false, kMnMajor>(acc, lhs + k16 * kLhsStep,
                                                 rhs + k16 * kRhsStep<kMnMajor>, 1);
                wgmma_commit();
            }
        });
    wgmma_wait<0>();
    release(previous);

    // Nothing more comes into this block's stages, once all have read them.
    named_barrier<kM / 64 * 128>(1);
    const int first_row = group * 64 + warp * 16;  // of the warp
    const uint32_t out_at = base + first_row * kPitch;
    const uint32_t to = out_at + lane % 16 * kPitch + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < kN; i += 16) {
        const float* v = &acc[i / 2];
        stmatrix_x4(to + i * 2, pack<E>(v[0], v[1]), pack<E>(v[2], v[3]), pack<E>(v[4], v[5]),
                    pack<E>(v[6], v[7]));
    }
    __syncwarp();
    const int row0 = row * p.rows + first_row, eights = min(kN, p.n - n0) / 8;
    const int rows = min(16, min(p.rows - first_row, p.m - row0));
    // Elements have 16 bits.
    auto* out = static_cast<uint16_t*>(p.out) + (int64_t)row0 * p.out_cols + n0;
    for (int i = lane; i < rows * eights; i += 32) {
        const int of_warp = i / eights, col = i % eights * 8;
        const uint4 v = load_shared(out_at + of_warp * kPitch + col * 2);
        *reinterpret_cast<uint4*>(out + (int64_t)of_warp * p.out_cols + col) = v;
    }
}

// ---------------------------------------------------------------------------------------------
// dA and dB

// By a warpgroup of its own: the items go to the blocks that make out, in turns.
template <typename E, typename T>
__device__ __forceinline__ void make_grads(const HopperShortParams& p, const HopperGradsParams& grads,
                                           uint32_t base) {
    const int blocks = gridDim.x - 2 * p.down_pairs, block = blockIdx.x - 2 * p.down_pairs;
    auto wait_for_ds = [&] {
        for (int row = 0; row * p.rows < p.m; row++) wait_for_ext(p, row);
        return true;
    };
    grads_beside<E, T>(grads, base + kGradsAt, grads_full(base), block, blocks, wait_for_ds);
    if (threadIdx.x % 128 == 0) flags_done(p, 2);
}

// ---------------------------------------------------------------------------------------------

// With `grads`, if dA and dB are to be made too.
template <typename E, int kM, int kN, bool kMnMajor>
__device__ __forceinline__ void hopper_short(const HopperShortParams& p, const HopperGradsParams* grads) {
    const uint32_t base = shared_base();
    const int tile = (int)blockIdx.x / 2 - p.down_pairs;
    const bool makes_ext = tile < 0;
    if (threadIdx.x == 0) {
        prefetch_map(p.lhs);
        prefetch_map(makes_ext ? p.down : p.rhs);
        for (int stage = 0; stage < kMaxStages; stage++) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), (makes_ext ? 1 : 2) * kM / 16);
        }
        mbarrier_init(received(base), 1);
        mbarrier_init(taken(base), kM / 16);
        mbarrier_init(grads_full(base), 1);
        fence_mbarrier_init();
    }
    cluster_sync();
    // Until here, this may run beside the end of the kernel before.
    wait_for_kernel_before();
    let_next_kernel_start();
    // Pairs that need the same of rhs follow one another.
    const int pairs = (p.m + 2 * p.rows - 1) / (2 * p.rows);  // of rows of tiles
    const int row = 2 * (tile % pairs) + (int)cluster_rank(), n0 = tile / pairs * kN;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < 4) {
        give_registers<40>();
        if (warp == 0 && is_elected()) {
            if (!makes_ext) {
                load<kM, kN, kMnMajor>(p, base, row, n0, grads == nullptr ? 1 : 2);
            } else if (p.r <= 16) {
                load_for_ext<kM, 16, kMnMajor>(p, base);
            } else {
                load_for_ext<kM, 64, kMnMajor>(p, base);
            }
        }
    } else {
        take_registers<232>();
        if (warp < 4 + kM / 16) {
            if (!makes_ext) {
                multiply<E, kM, kN, kMnMajor>(p, base, row, n0);
            } else if (p.r <= 16) {
                make_ext<E, kM, 16, kMnMajor>(p, base);
            } else {
                make_ext<E, kM, 64, kMnMajor>(p, base);
            }
        } else if (kM == 64 && grads != nullptr && !makes_ext) {
            if (p.r <= 16) {
                make_grads<E, GradsTiling<16, 64>>(p, *grads, base);
            } else {
                make_grads<E, GradsTiling<32, 64>>(p, *grads, base);
            }
        }
    }
    // A block stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#define HOPPER_SHORT_FORWARD(m, n, type, E)                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                \
        hopper_short_forward_m##m##_n##n##_##type(const __grid_constant__ HopperShortParams p) {  \
        hopper_short<E, m, n, false>(p, nullptr);                                                 \
    }
#define HOPPER_SHORT_INPUT_GRAD(m, n, type, E)                                                    \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                \
        hopper_short_input_grad_m##m##_n##n##_##type(                                             \
            const __grid_constant__ HopperShortBackwardParams p) {                                \
        hopper_short<E, m, n, true>(p.product, p.grads.da == nullptr ? nullptr : &p.grads);       \
    }
#define HOPPER_SHORT_KERNELS_OF_ROWS(m, type, E) \
    HOPPER_SHORT_FORWARD(m, 32, type, E)         \
    HOPPER_SHORT_FORWARD(m, 64, type, E)         \
    HOPPER_SHORT_FORWARD(m, 128, type, E)        \
    HOPPER_SHORT_FORWARD(m, 224, type, E)        \
    HOPPER_SHORT_INPUT_GRAD(m, 64, type, E)      \
    HOPPER_SHORT_INPUT_GRAD(m, 128, type, E)     \
    HOPPER_SHORT_INPUT_GRAD(m, 256, type, E)
#define HOPPER_SHORT_KERNELS(type, E)         \
    HOPPER_SHORT_KERNELS_OF_ROWS(64, type, E) \
    HOPPER_SHORT_KERNELS_OF_ROWS(128, type, E)

HOPPER_SHORT_KERNELS(bf16, __nv_bfloat16)
HOPPER_SHORT_KERNELS(f16, __half)
