// archs: 90a
//
// linear.cu's products on Hopper's own instructions:
//
//   forward      H  = X W0ᵀ + S Bᵀ     lhs X (T×k),  rhs W0 (d×k),  extension S (T×r), B (d×r)
//   input grad   dX = dH W0 + dS A     lhs dH (T×d), rhs W0 (d×k),  extension dS (T×r), A (r×k)
//
// out[m, n] = Σk lhs[m, k] rhs[n, k] + Σr lhs_ext[m, r] rhs_ext[n, r], accumulated in f32 and
// rounded once; rhs and rhs_ext K-major in the forward, MN-major in the input gradient. With r = 0 it
// is the frozen layer. All rows must start at multiples of 16 bytes, which is what TMA takes; what a
// box has beyond the edge of its matrix is read as zeros and not written.
//
// Grid: persistent, a pair of blocks (cluster) for every two multiprocessors. A pair works on two
// tiles of 128×256, one above the other, and shares rhs: each block loads one half of it into both.
// Block: three warpgroups. The first one's first thread loads, with 40 registers; the other two
// multiply, 64×256 each, with 232.
// Shared memory: 4 stages of (128 + 256)×64 elements, 2×2 staging areas for the output of 8 KiB.
// Reads lhs, rhs and the extension; writes out, every element once. Needs nothing initialised.
//
//   loader      |fill 0|fill 1|fill 2|fill 3|wait for empty 0, fill 0| ...       over all tiles
//   multipliers        |4 k16 of stage 0|4 k16 of stage 1| ... |round, store|
//
// full[stage] of a block completes when all its bytes have come, from its own loads and its peer's.
// empty[stage] completes when the eight multiplying warps of both blocks are done with the stage,
// since a load writes to both. A stage is released when the products that read it are waited for,
// one stage behind those being issued. Every wait is for an earlier step of the same two blocks,
// which run at the same time, so none waits forever, whatever else is on the GPU.
#include "hopper.cuh"

// Mirrored by cuda::launch::HopperLinearParams in Rust.
struct HopperLinearParams {
    TensorMap lhs, rhs, lhs_ext, rhs_ext, out;
    int m, n, k, r;
};
static_assert(sizeof(HopperLinearParams) == 704);

constexpr int kTileM = 128, kTileN = 256, kTileK = 64, kStages = 4;
// Pairs of tiles along m that are worked on column by column, to share lhs and rhs in the L2.
constexpr int kGroup = 8;
constexpr int kLhsBytes = kTileM * kTileK * 2, kRhsBytes = kTileN * kTileK * 2;
constexpr int kStageBytes = kLhsBytes + kRhsBytes;
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
    return base + kBarriersAt + 8 * (kStages + stage);
}

// Where the steps of a block are in the ring of stages.
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

struct Tile {
    int m0, n0;
};

// The tiles of a pair of blocks: every `pairs`-th of all, in groups of kGroup rows of pairs.
template <typename F>
__device__ __forceinline__ void for_each_tile(const HopperLinearParams& p, F&& f) {
    const int rank = cluster_rank(), pairs = gridDim.x / 2;
    const int rows = (p.m + 2 * kTileM - 1) / (2 * kTileM), cols = (p.n + kTileN - 1) / kTileN;
    for (int i = blockIdx.x / 2; i < rows * cols; i += pairs) {
        const int group = i / (kGroup * cols), in_group = i % (kGroup * cols);
        const int group_rows = min(kGroup, rows - group * kGroup);
        const int row = group * kGroup + in_group % group_rows;
        f(Tile{(2 * row + rank) * kTileM, in_group / group_rows * kTileN});
    }
}

template <bool kRhsMnMajor>
__device__ __forceinline__ void load_stage(uint32_t stage, uint32_t barrier, const TensorMap& lhs,
                                           const TensorMap& rhs, Tile tile, int k0) {
    const int rank = cluster_rank();
    mbarrier_arrive_expect(barrier, kStageBytes);
    tma_load(stage, lhs, tile.m0, k0, barrier);
    const uint32_t half = stage + kLhsBytes + rank * (kRhsBytes / 2);
    const int n0 = tile.n0 + rank * (kTileN / 2);
    if constexpr (kRhsMnMajor) {
        tma_load_pair(half, rhs, k0, n0, barrier);
        tma_load_pair(half + kRhsBytes / 4, rhs, k0, n0 + 64, barrier);
    } else {
        tma_load_pair(half, rhs, n0, k0, barrier);
    }
}

template <bool kRhsMnMajor>
__device__ __forceinline__ void load(const HopperLinearParams& p, uint32_t base) {
    Ring ring;
    auto fill = [&](const TensorMap& lhs, const TensorMap& rhs, Tile tile, int k0) {
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        load_stage<kRhsMnMajor>(base + ring.stage * kStageBytes, full(base, ring.stage), lhs, rhs,
                                tile, k0);
        ring.advance();
    };
    for_each_tile(p, [&](Tile tile) {
        for (int k0 = 0; k0 < p.k; k0 += kTileK) fill(p.lhs, p.rhs, tile, k0);
        for (int k0 = 0; k0 < p.r; k0 += kTileK) fill(p.lhs_ext, p.rhs_ext, tile, k0);
    });
}

// Rounds a warpgroup's 64×256 and stores it, 64 columns at a time, by way of two staging areas.
template <typename E>
__device__ __forceinline__ void store(const HopperLinearParams& p, const float (&acc)[128],
                                      uint32_t staging, int row, int col) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int barrier = 1 + threadIdx.x / 128;
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
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (std::is_same_v<E, __half>) {
                    const __half2 two = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
                    words[i] = reinterpret_cast<const uint32_t&>(two);
                } else {
                    const __nv_bfloat162 two = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
                    words[i] = reinterpret_cast<const uint32_t&>(two);
                }
            }
            const int chunk = pair * 2 + lane_chunk;
            const uint32_t to = area + lane_row * 128 + (chunk ^ lane_row % 8) * 16;
            stmatrix_x4(to, words[0], words[1], words[2], words[3]);
        }
        fence_shared_before_tma();
        named_barrier<128>(barrier);
        if (thread == 0) tma_store(p.out, row, col + part * 64, area);
    }
}

template <typename E, bool kRhsMnMajor>
__device__ __forceinline__ void multiply(const HopperLinearParams& p, uint32_t base) {
    constexpr int kLhsStep = 32 / 16, kRhsStep = (kRhsMnMajor ? 2048 : 32) / 16;
    const int half = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
    const uint32_t staging = base + kStages * kStageBytes + half * 2 * kStagingBytes;
    Ring ring;
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
            const uint64_t rhs = wgmma_descriptor(stage + kLhsBytes, kRhsMnMajor);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < kTileK / 16; i++) {
                if (i < k16s) {
                    wgmma<E, kRhsMnMajor>(acc, lhs + i * kLhsStep, rhs + i * kRhsStep, accumulate);
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
        for (int k0 = 0; k0 < p.r; k0 += kTileK) step(min((p.r - k0 + 15) / 16, kTileK / 16));
        wgmma_wait<0>();
        release(previous);
        store<E>(p, acc, staging, tile.m0 + half * 64, tile.n0);
    });
    // Shared memory stays until the last stores have read it.
    if (threadIdx.x % 128 == 0) tma_store_wait_read<0>();
}

template <typename E, bool kRhsMnMajor>
__device__ __forceinline__ void hopper_linear(const HopperLinearParams& p) {
    const uint32_t base = shared_base();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; stage++) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), 2 * kMultiplyingWarps);
        }
        fence_mbarrier_init();
        prefetch_map(p.lhs);
        prefetch_map(p.rhs);
        prefetch_map(p.out);
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        give_registers<40>();
        if (threadIdx.x == 0) load<kRhsMnMajor>(p, base);
    } else {
        take_registers<232>();
        multiply<E, kRhsMnMajor>(p, base);
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
