// archs: 90a
//
// linear.cu's products on Hopper's own instructions, in the forward with project.cu's beside them:
//
//   forward      S = s·X Aᵀ,  H = X W0ᵀ + S Bᵀ     lhs X,  rhs W0, down A, extension S, B
//   input grad   dX = dH W0 + dS A                 lhs dH, rhs W0,         extension dS, A
//
//   lhs_ext[m, r] = scale · Σk lhs[m, k] down[r, k]                     rounded once, if project
//   out[m, n]     = Σk lhs[m, k] rhs[n, k] + Σr lhs_ext[m, r] rhs_ext[n, r]     rounded once
//
// all accumulated in f32. rhs and rhs_ext lie K-major in the forward, MN-major in the input gradient.
// With r = 0 it is the frozen layer. `project` (projecting_pairs > 0) is for the forward with r up to
// 16; without it, lhs_ext is an input. All rows must start at multiples of 16 bytes, which is what TMA
// takes; what a box has beyond the edge of its matrix is read as zeros and not written.
//
// Grid: persistent, a pair of blocks (cluster) for every two multiprocessors. Without `project` all
// pairs multiply: a pair works on two tiles of 128×256, one above the other, and shares rhs, of which
// each block loads one half into both. With it, the first projecting_pairs pairs make lhs_ext and
// nothing else: reading lhs leaves the tensor cores idle, and where the tiles come in powers of two,
// four of 132 multiprocessors are idle anyway.
// Block: three warpgroups. Of the first, one thread loads and another scouts; the other two multiply,
// 64×256 each, or project.
// Shared memory: 4 stages of (128 + 256)×64 elements, 2×2 staging areas for the output of 8 KiB.
// Reads lhs, rhs, down and rhs_ext; writes lhs_ext (if project) and out, every element once. `flags`
// must be zeros, one for every 128 rows.
//
//   loader      |fill 0|fill 1|fill 2|fill 3|wait for empty 0, fill 0| ...       over all tiles
//   scout       |wait for S of tile 0|of tile 1| ...
//   multipliers        |4 k16 of stage 0|4 k16 of stage 1| ... |S·Bᵀ|round, store|
//
// full[stage] of a block completes when all its bytes have come, from its own loads and its peer's.
// empty[stage] completes when the eight multiplying warps of both blocks are done with the stage,
// since a load writes to both. A stage is released when the products that read it are waited for,
// one stage behind those being issued. The scout waits for the flag of the rows of S that a tile will
// need, so that the loader, with loads in flight, need not fence: it only waits for scouted.
//
// Who waits for whom: within a pair, for earlier steps of the same pair. Between pairs, the multiplying
// ones for the projecting ones, which wait for nobody. So nobody waits forever, provided that all
// pairs run at the same time: with `project` the launch is cooperative, which guarantees it or fails.
#include "hopper.cuh"

// Mirrored by cuda::hopper::HopperLinearParams in Rust.
struct HopperLinearParams {
    TensorMap lhs, rhs, down, lhs_ext, rhs_ext, out;
    void* s;          // where lhs_ext is written, m×r
    uint32_t* flags;  // one for every 128 rows of lhs_ext
    int m, n, k, r;
    float scale;
    int projecting_pairs;  // 0 unless project
};
static_assert(sizeof(HopperLinearParams) == 832);

constexpr int kTileM = 128, kTileN = 256, kTileK = 64, kTileR = 16, kStages = 4;
// Pairs of tiles along m that are worked on column by column, to share lhs and rhs in the L2.
constexpr int kGroup = 8;
constexpr int kLhsBytes = kTileM * kTileK * 2, kRhsBytes = kTileN * kTileK * 2;
constexpr int kStageBytes = kLhsBytes + kRhsBytes;
// A projecting block's stages hold two steps each: a tile of lhs and one of down for either. There
// are as many as fit, since it is the bytes in flight that decide how fast it reads.
constexpr int kProjectSteps = 2, kDownBytes = kTileR * kTileK * 2, kProjectStages = 5;
constexpr int kProjectStageBytes = kProjectSteps * (kLhsBytes + kDownBytes);
static_assert(kProjectStages * kProjectStageBytes <= kStages * kStageBytes);
constexpr int kStagingBytes = 64 * 64 * 2;
constexpr int kBarriersAt = kStages * kStageBytes + 4 * kStagingBytes;
constexpr int kMultiplyingWarps = 8;

// Swizzled boxes lie at multiples of 1024 bytes; dynamic shared memory need not start at one.
__device__ __forceinline__ uint32_t shared_base() {
    extern __shared__ unsigned char shared[];
    return (shared_address(shared) + 1023) / 1024 * 1024;
}

__device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * stage;
}

__device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * (kProjectStages + stage);
}

// The scout has seen the flag of a tile; the loader has seen that it has.
__device__ __forceinline__ uint32_t scouted(uint32_t base) { return empty(base, kProjectStages); }
__device__ __forceinline__ uint32_t taken(uint32_t base) { return scouted(base) + 8; }

// Where the steps of a block are in its ring of stages.
template <int kCount>
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kCount) {
            stage = 0;
            phase ^= 1;
        }
    }
};

struct Tile {
    int m0, n0;
};

// The tiles of a multiplying pair: every so many-th of all, in groups of kGroup rows of pairs.
template <typename F>
__device__ __forceinline__ void for_each_tile(const HopperLinearParams& p, F&& f) {
    const int rank = cluster_rank(), pairs = gridDim.x / 2 - p.projecting_pairs;
    const int rows = (p.m + 2 * kTileM - 1) / (2 * kTileM), cols = (p.n + kTileN - 1) / kTileN;
    for (int i = blockIdx.x / 2 - p.projecting_pairs; i < rows * cols; i += pairs) {
        const int group = i / (kGroup * cols), in_group = i % (kGroup * cols);
        const int group_rows = min(kGroup, rows - group * kGroup);
        const int row = group * kGroup + in_group % group_rows;
        f(Tile{(2 * row + rank) * kTileM, in_group / group_rows * kTileN});
    }
}

// ---------------------------------------------------------------------------------------------
// Multiplying pairs

template <bool kMnMajor>
__device__ __forceinline__ void load_stage(uint32_t stage, uint32_t barrier, const TensorMap& lhs,
                                           const TensorMap& rhs, Tile tile, int k0) {
    const int rank = cluster_rank();
    mbarrier_arrive_expect(barrier, kStageBytes);
    tma_load(stage, lhs, tile.m0, k0, barrier);
    const uint32_t half = stage + kLhsBytes + rank * (kRhsBytes / 2);
    const int n0 = tile.n0 + rank * (kTileN / 2);
    if constexpr (kMnMajor) {
        tma_load_pair(half, rhs, k0, n0, barrier);
        tma_load_pair(half + kRhsBytes / 4, rhs, k0, n0 + 64, barrier);
    } else {
        tma_load_pair(half, rhs, n0, k0, barrier);
    }
}

template <bool kMnMajor>
__device__ __forceinline__ void load(const HopperLinearParams& p, uint32_t base) {
    Ring<kStages> ring;
    uint32_t tile_phase = 0;
    auto fill = [&](const TensorMap& lhs, const TensorMap& rhs, Tile tile, int k0) {
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        load_stage<kMnMajor>(base + ring.stage * kStageBytes, full(base, ring.stage), lhs, rhs,
                             tile, k0);
        ring.advance();
    };
    for_each_tile(p, [&](Tile tile) {
        for (int k0 = 0; k0 < p.k; k0 += kTileK) fill(p.lhs, p.rhs, tile, k0);
        if (p.projecting_pairs > 0) {
            mbarrier_wait(scouted(base), tile_phase);
            mbarrier_arrive(taken(base));
            tile_phase ^= 1;
        }
        for (int r0 = 0; r0 < p.r; r0 += kTileK) fill(p.lhs_ext, p.rhs_ext, tile, r0);
    });
}

// Waits for the rows of S of the block's tiles, one tile ahead of the loader at most.
__device__ __forceinline__ void scout(const HopperLinearParams& p, uint32_t base) {
    uint32_t tile_phase = 0;
    for_each_tile(p, [&](Tile tile) {
        if (tile.m0 < p.m)
            while (flag_load_acquire(&p.flags[tile.m0 / kTileM]) == 0) {
            }
        fence_global_before_tma();
        mbarrier_wait(taken(base), tile_phase ^ 1);
        mbarrier_arrive(scouted(base));
        tile_phase ^= 1;
    });
}

// Rounds a warpgroup's 64×256 and stores it, 64 columns at a time, by way of two staging areas.
template <typename E>
__device__ __forceinline__ void store(const HopperLinearParams& p, const float (&acc)[128],
                                      uint32_t staging, int row, int col) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int barrier = threadIdx.x / 128;  // 0 is __syncthreads, and not a multiplier's
    // The lane's row of an 8×8 matrix: of rows 0 to 7 and 8 to 15, then of eight columns on.
    const int lane_row = warp * 16 + lane % 16, lane_chunk = lane / 16;
#pragma unroll
    for (int part = 0; part < 4; part++) {
        const uint32_t area = staging + part % 2 * kStagingBytes;
        // NOTES: the wait holds in the thread that stored; the barrier passes it on to the others.
        if (thread == 0) tma_store_wait_read<1>();
        named_barrier<128>(barrier);
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const float* v = &acc[part * 32 + pair * 8];
            const int chunk = (pair * 2 + lane_chunk) ^ lane_row % 8;
            stmatrix_x4(area + lane_row * 128 + chunk * 16, pack<E>(v[0], v[1]),
                        pack<E>(v[2], v[3]), pack<E>(v[4], v[5]), pack<E>(v[6], v[7]));
        }
        fence_shared_before_tma();
        named_barrier<128>(barrier);
        if (thread == 0) tma_store(p.out, row, col + part * 64, area);
    }
}

template <typename E, bool kMnMajor>
__device__ __forceinline__ void multiply(const HopperLinearParams& p, uint32_t base) {
    constexpr int kLhsStep = 32 / 16, kRhsStep = (kMnMajor ? 2048 : 32) / 16;
    const int half = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    const uint32_t staging = base + kStages * kStageBytes + half * 2 * kStagingBytes;
    Ring<kStages> ring;
    auto release = [&](int stage) {
        if (lane < 2) mbarrier_arrive_remote(empty(base, stage), lane);
    };
    for_each_tile(p, [&](Tile tile) {
        float acc[128];
        int accumulate = 0, previous = -1;
        auto step = [&](int k16s) {
            mbarrier_wait(full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * kStageBytes;
            const uint64_t lhs = wgmma_descriptor(stage + half * (kLhsBytes / 2), false);
            const uint64_t rhs = wgmma_descriptor(stage + kLhsBytes, kMnMajor);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < kTileK / 16; i++) {
                if (i < k16s) {
                    wgmma<E, kMnMajor>(acc, lhs + i * kLhsStep, rhs + i * kRhsStep, accumulate);
                    accumulate = 1;
                }
            }
            wgmma_commit();
            wgmma_wait<1>();
            if (previous >= 0) release(previous);
            previous = ring.stage;
            ring.advance();
        };
        for (int k0 = 0; k0 < p.k; k0 += kTileK) step(kTileK / 16);
        // Boxes past column r hold zeros: only the steps of 16 that hold anything are multiplied.
        for (int r0 = 0; r0 < p.r; r0 += kTileK) step(min((p.r - r0 + 15) / 16, kTileK / 16));
        wgmma_wait<0>();
        release(previous);
        store<E>(p, acc, staging, tile.m0 + half * 64, tile.n0);
    });
    // Shared memory stays until the last stores have read it.
    if (threadIdx.x % 128 == 0) tma_store_wait_read<0>();
}

// ---------------------------------------------------------------------------------------------
// Projecting pairs, whose blocks work on their own

// The items of a block: S for 128 rows, in the order in which the tiles want them.
template <typename F>
__device__ __forceinline__ void for_each_item(const HopperLinearParams& p, F&& f) {
    for (int m0 = blockIdx.x * kTileM; m0 < p.m; m0 += 2 * p.projecting_pairs * kTileM) f(m0);
}

__device__ __forceinline__ void load_items(const HopperLinearParams& p, uint32_t base) {
    Ring<kProjectStages> ring;
    for_each_item(p, [&](int m0) {
        for (int k0 = 0; k0 < p.k; k0 += kProjectSteps * kTileK) {
            const uint32_t barrier = full(base, ring.stage);
            const uint32_t lhs = base + ring.stage * kProjectStageBytes;
            const uint32_t down = lhs + kProjectSteps * kLhsBytes;
            mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
            mbarrier_arrive_expect(barrier, kProjectStageBytes);
            // Boxes past column k hold zeros.
            for (int i = 0; i < kProjectSteps; i++) {
                tma_load(lhs + i * kLhsBytes, p.lhs, m0, k0 + i * kTileK, barrier);
                tma_load(down + i * kDownBytes, p.down, 0, k0 + i * kTileK, barrier);
            }
            ring.advance();
        }
    });
}

// Where 16 bytes are in a box.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
    return row * 128 + (chunk ^ row % 8) * 16;
}

// Each of the eight warps takes one k16 of a stage for all 128 rows, so that lhs and down are read
// from shared memory once.
template <typename E>
__device__ __forceinline__ void project(const HopperLinearParams& p, uint32_t base) {
    static_assert(kProjectSteps * kTileK / 16 == kMultiplyingWarps);
    constexpr int kM16 = kTileM / 16;
    const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
    const int step = warp / 4, k16 = warp % 4;
    float* const partials =
        static_cast<float*>(__cvta_shared_to_generic(base + kStages * kStageBytes));
    constexpr int kFloats = kM16 * 8;  // of a lane's share of the 128×16
    static_assert(kMultiplyingWarps / 2 * kFloats * 32 * 4 <= 4 * kStagingBytes);
    Ring<kProjectStages> ring;
    for_each_item(p, [&](int m0) {
        float acc[kM16][2][4] = {};
        for (int k0 = 0; k0 < p.k; k0 += kProjectSteps * kTileK) {
            mbarrier_wait(full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * kProjectStageBytes;
            const uint32_t lhs = stage + step * kLhsBytes;
            const uint32_t down = stage + kProjectSteps * kLhsBytes + step * kDownBytes;
            uint32_t a[kM16][4], b[4];
            const int down_row = lane % 8 + lane / 16 * 8;
            ldmatrix_x4<false>(b, down + swizzled(down_row, k16 * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < kM16; i++)
                ldmatrix_x4<false>(a[i], lhs + swizzled(i * 16 + lane % 16, k16 * 2 + lane / 16));
#pragma unroll
            for (int i = 0; i < kM16; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) mma<E>(acc[i][j], a[i], b[2 * j], b[2 * j + 1]);
            __syncwarp();
            // The barrier counts the warps of both blocks of a pair; here they are this one's, twice.
            if (lane < 2) mbarrier_arrive_remote(empty(base, ring.stage), cluster_rank());
            ring.advance();
        }
        // The sum of the warps, halving their number: 0+4, 1+5, ... in every step.
#pragma unroll
        for (int warps = kMultiplyingWarps / 2; warps >= 1; warps /= 2) {
            auto each = [&](auto&& f) {
                float* shared = partials + warp % warps * kFloats * 32 + lane;
#pragma unroll
                for (int i = 0; i < kFloats; i++) f(shared[i * 32], acc[i / 8][i / 4 % 2][i % 4]);
            };
            if (warp >= warps && warp < 2 * warps) each([](float& s, float& v) { s = v; });
            named_barrier<256>(1);
            if (warp < warps) each([](float& s, float& v) { v += s; });
            named_barrier<256>(1);
        }
        if (warp == 0) {
#pragma unroll
            for (int i = 0; i < kM16 * 4; i++) {
                const int row = m0 + i / 4 * 16 + i % 2 * 8 + lane / 4;
                const int col = i / 2 % 2 * 8 + lane % 4 * 2;
                if (row >= p.m || col >= p.r) continue;
                const float* v = &acc[i / 4][i / 2 % 2][i % 2 * 2];
                E* to = static_cast<E*>(p.s) + (int64_t)row * p.r + col;
                *reinterpret_cast<uint32_t*>(to) = pack<E>(v[0] * p.scale, v[1] * p.scale);
            }
            __syncwarp();
            if (lane == 0) flag_add_release(&p.flags[m0 / kTileM]);
        }
    });
}

// ---------------------------------------------------------------------------------------------

template <typename E, bool kMnMajor>
__device__ __forceinline__ void hopper_linear(const HopperLinearParams& p) {
    const uint32_t base = shared_base();
    const bool projects = !kMnMajor && blockIdx.x / 2 < p.projecting_pairs;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kProjectStages; stage++) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), 2 * kMultiplyingWarps);
        }
        mbarrier_init(scouted(base), 1);
        mbarrier_init(taken(base), 1);
        fence_mbarrier_init();
        prefetch_map(p.lhs);
        prefetch_map(p.rhs);
        prefetch_map(p.out);
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        give_registers<40>();
        if (threadIdx.x == 0) {
            if (projects) {
                load_items(p, base);
            } else {
                load<kMnMajor>(p, base);
            }
        } else if (threadIdx.x == 32 && p.projecting_pairs > 0 && !projects) {
            scout(p, base);
        }
    } else {
        take_registers<232>();
        if (projects) {
            project<E>(p, base);
        } else {
            multiply<E, kMnMajor>(p, base);
        }
    }
    // A block stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#define HOPPER_LINEAR_KERNEL(name, E, mn_major)                                         \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)      \
        name(const __grid_constant__ HopperLinearParams params) {                       \
        hopper_linear<E, mn_major>(params);                                             \
    }

HOPPER_LINEAR_KERNEL(hopper_linear_forward_bf16, __nv_bfloat16, false)
HOPPER_LINEAR_KERNEL(hopper_linear_forward_f16, __half, false)
HOPPER_LINEAR_KERNEL(hopper_linear_input_grad_bf16, __nv_bfloat16, true)
HOPPER_LINEAR_KERNEL(hopper_linear_input_grad_f16, __half, true)
