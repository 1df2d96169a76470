// archs: 90a
//
// linear.cu's products on Hopper's own instructions, in the forward with project.cu's beside them:
//
//   forward      S = s·X Aᵀ,  H = X W0ᵀ + S Bᵀ     lhs X,  rhs W0, down A, extension S, B
//   input grad   dX = dH W0 + dS A                 lhs dH, rhs W0,         extension dS, A
//
//   lhs_ext[m, r] = scale · Σk lhs[m, k] down[r, k]                     rounded once, if made here
//   out[m, n]     = Σk lhs[m, k] rhs[n, k] + Σr lhs_ext[m, r] rhs_ext[n, r]     rounded once
//
// all accumulated in f32. rhs and rhs_ext lie K-major in the forward, MN-major in the input gradient.
// With r = 0 it is the frozen layer. lhs_ext is an input, or made in one of two ways, in the forward:
//
//   slices    the first tiles of every row of tiles make 16 columns of it each, beside their own
//   project   the first projecting_pairs pairs of blocks make it and nothing else, for r up to 16:
//             reading lhs leaves the tensor cores idle, and where the tiles come in powers of two, four
//             of 132 multiprocessors are idle anyway
//
// All rows must start at multiples of 16 bytes, which is what TMA takes; what a box has beyond the edge
// of its matrix is read as zeros and not written.
//
// Grid: persistent, a pair of blocks (cluster) for every two multiprocessors. A pair works on two tiles
// of 128×kN, one above the other, and shares rhs, of which each block loads one half into both.
// Block: three warpgroups. Of the first, one thread loads and a warp scouts; the other two multiply,
// 64×kN each, or project.
// Shared memory: 4 or 5 stages of (128 + kN)×64 elements and, for slices, 16×64 more; the rest is for
// the output on its way to the TMA.
// Reads lhs, rhs, down and rhs_ext; writes lhs_ext (if it is made) and out, every element once. `flags`
// must be zeros, and are again when the launch is done.
//
//   loader      |fill 0|fill 1|fill 2|fill 3|wait for empty 0, fill 0| ...       over all tiles
//   scout       |wait for S of tile 0|of tile 1| ...
//   multipliers        |4 k16 of stage 0|4 k16 of stage 1| ... |S·Bᵀ|round, store|
//
// full[stage] of a block completes when all its bytes have come, from its own loads and its peer's.
// empty[stage] completes when the eight multiplying warps of both blocks are done with the stage,
// since a load writes to both. A stage is released when the products that read it are waited for,
// one stage behind those being issued. The scout waits for the flag of the rows of S that a tile will
// need, so that the loader, with loads in flight, need not fence: it only waits for scouted. Where the
// tile makes a slice, the multipliers write it and arrive at sliced, and the scout raises the flag.
//
// Who waits for whom: within a pair, for earlier steps of the same pair. Between pairs, provided that
// all run at the same time, which a cooperative launch guarantees or fails:
//   - multiplying ones for projecting ones, which wait for nobody;
//   - a tile for the slices of its row. The tiles that make them follow one another in the order of
//     tiles, and are no more than there are pairs, so each is another pair's. Suppose that tiles wait
//     forever, and take the first of them: all before it get done, so every pair that makes a slice of
//     its row comes to that tile, or has been there, and makes it before it waits itself. So it does
//     not wait forever.
#include "hopper.cuh"

// Mirrored by cuda::hopper::HopperLinearParams in Rust.
struct HopperLinearParams {
    TensorMap lhs, rhs, down, lhs_ext, rhs_ext;
    TensorMap out_64, out_32, out_16;  // out in boxes of 64 rows and so many columns
    void* s;          // where lhs_ext is written, m×r
    uint32_t* flags;  // a count, then one for every 128 rows of lhs_ext
    int m, n, k, r;
    float scale;
    int slices;      // of 16 columns of lhs_ext, to be made here; 0 if it is an input
    int slice_cols;  // columns of tiles that make a slice: one for each, or more if it is the only one
    int group;       // rows of pairs of tiles that are worked on together once there are no slices left
};
static_assert(sizeof(HopperLinearParams) == 1088);

constexpr int kTileM = 128, kTileK = 64, kTileR = 16;
constexpr int kLhsBytes = kTileM * kTileK * 2, kDownBytes = kTileR * kTileK * 2;
constexpr int kMaxStages = 5, kMultiplyingWarps = 8, kBoxBytes = 64 * 32 * 2;
// Where the barriers are in shared memory, whatever else is before.
constexpr int kBarriersAt = 224 << 10;

// The tile 128×kN of a multiplying block, which may make slices of lhs_ext too.
template <int kN, bool kMnMajor, bool kSlices>
struct Tiling {
    static_assert(kN % 16 == 0 && kN <= 256);
    static constexpr int kStages = kN > 176 ? 4 : 5;
    // What lies MN-major comes in boxes of 64 columns.
    static constexpr int kRhsCols = kMnMajor ? (kN + 63) / 64 * 64 : kN;
    static constexpr int kRhsBytes = kRhsCols * kTileK * 2;
    static constexpr int kStageBytes = kLhsBytes + kRhsBytes + (kSlices ? kDownBytes : 0);
    // The output goes to the TMA by way of boxes of 64×32, as many for each warpgroup as fit. Two of
    // them or one make a part.
    static constexpr int kBoxes = (kBarriersAt - kStages * kStageBytes) / (2 * kBoxBytes) < 4 ? 3 : 4;
    static constexpr int kParts = kBoxes == 4 ? (kN + 63) / 64 : (kN + 95) / 96 + (kN + 31) / 96;
    static constexpr __device__ int part_col(int part) {
        return kBoxes == 4 ? part * 64 : part / 2 * 96 + part % 2 * 64;
    }
    static constexpr __device__ int part_cols(int part) {
        const int cols = kBoxes == 3 && part % 2 == 1 ? 32 : 64, rest = kN - part_col(part);
        return rest < cols ? rest : cols;
    }
    // Two boxes make one of 64×64 where that comes out even.
    static constexpr bool kWideBoxes = kBoxes == 4 && kN % 64 == 0;
    static_assert(kStages * kStageBytes + 2 * kBoxes * kBoxBytes <= kBarriersAt);
};

// Swizzled boxes lie at multiples of 1024 bytes; dynamic shared memory need not start at one.
__device__ __forceinline__ uint32_t shared_base() {
    extern __shared__ unsigned char shared[];
    return (shared_address(shared) + 1023) / 1024 * 1024;
}

__device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * stage;
}

__device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * (kMaxStages + stage);
}

// The scout has seen the flag of a tile; the loader has seen that it has.
__device__ __forceinline__ uint32_t scouted(uint32_t base) { return empty(base, kMaxStages); }
__device__ __forceinline__ uint32_t taken(uint32_t base) { return scouted(base) + 8; }
// The multipliers have written a slice of lhs_ext.
__device__ __forceinline__ uint32_t sliced(uint32_t base) { return scouted(base) + 16; }

// Where 16 bytes are in a box.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
    return row * 128 + (chunk ^ row % 8) * 16;
}

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
    int slice;     // of lhs_ext that is made with it, or -1
    bool is_only;  // that slice is all of lhs_ext, so the tile needs nobody else's
    bool tells;    // others need what it makes
};

// dividend / divisor, in far fewer cycles than `/` takes. Both are below 2^24: they count tiles, and the
// output of so many would not fit any memory.
__device__ __forceinline__ int divide(int dividend, int divisor, int& remainder) {
    int quotient = (int)__fdividef(dividend, divisor);  // off by one at most
    remainder = dividend - quotient * divisor;
    if (remainder < 0) quotient--, remainder += divisor;
    if (remainder >= divisor) quotient++, remainder -= divisor;
    return quotient;
}

// The tiles of a pair: every so many-th of all. First come the tiles that make slices, row by row; the
// others come in groups of rows, column by column, so that lhs and rhs are shared in the L2.
template <int kN>
struct Tiles {
    const HopperLinearParams& p;
    int rows, cols, i;

    __device__ __forceinline__ explicit Tiles(const HopperLinearParams& p)
        : p(p),
          rows((p.m + 2 * kTileM - 1) / (2 * kTileM)),
          cols((p.n + kN - 1) / kN),
          i(blockIdx.x / 2) {}

    __device__ __forceinline__ bool done() const { return i >= rows * cols; }
    __device__ __forceinline__ void advance() { i += gridDim.x / 2; }

    __device__ __forceinline__ Tile tile() const {
        int in_group, row, col;
        const int rest = i - rows * p.slice_cols;
        if (rest < 0) {
            row = divide(i, p.slice_cols, col);
        } else {
            const int group0 = divide(rest, p.group * (cols - p.slice_cols), in_group) * p.group;
            col = p.slice_cols + divide(in_group, min(p.group, rows - group0), row);
            row += group0;
        }
        const bool is_only = rest < 0 && p.slices == 1;
        const int slice = rest >= 0 ? -1 : is_only ? 0 : col;
        return {(2 * row + (int)cluster_rank()) * kTileM, col * kN, slice, is_only, col < p.slices};
    }
};

// ---------------------------------------------------------------------------------------------
// The roles of a block

template <int kN, bool kMnMajor, bool kSlices>
__device__ __forceinline__ void load(const HopperLinearParams& p, uint32_t base) {
    using T = Tiling<kN, kMnMajor, kSlices>;
    const int rank = cluster_rank();
    Ring<T::kStages> ring;
    uint32_t tile_phase = 0;
    // Without lhs, only rhs.
    auto fill = [&](const TensorMap* lhs, const TensorMap& rhs, const Tile& tile, int slice, int k0) {
        const uint32_t to_lhs = base + ring.stage * T::kStageBytes, to_rhs = to_lhs + kLhsBytes;
        const uint32_t barrier = full(base, ring.stage);
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        const bool makes_slice = kSlices && slice >= 0;
        mbarrier_arrive_expect(barrier, (lhs ? kLhsBytes : 0) + T::kRhsBytes +
                                            (makes_slice ? kDownBytes : 0));
        if (lhs) tma_load(to_lhs, *lhs, tile.m0, k0, barrier);
        // Each block of the pair loads one half of rhs into both, of the rows as they lie.
        if constexpr (kMnMajor) {
            for (int i = 0; i < T::kRhsCols / 64; i++)
                tma_load_pair(to_rhs + i * 8192 + rank * 4096, rhs, k0 + rank * (kTileK / 2),
                              tile.n0 + i * 64, barrier);
        } else {
            tma_load_pair(to_rhs + rank * (T::kRhsBytes / 2), rhs, tile.n0 + rank * (kN / 2), k0,
                          barrier);
        }
        if (makes_slice) tma_load(to_rhs + T::kRhsBytes, p.down, slice * kTileR, k0, barrier);
        ring.advance();
    };
    Tiles<kN> tiles(p);
    for (Tile tile = tiles.tile(), next; !tiles.done(); tile = next) {
        for (int k0 = 0; k0 < p.k; k0 += kTileK) {
            fill(&p.lhs, p.rhs, tile, tile.slice, k0);
            // While there is time, since it takes some.
            if (k0 == 0) {
                tiles.advance();
                next = tiles.tile();
                keep(next.m0), keep(next.n0);
            }
        }
        if (kSlices && !tile.is_only) {
            mbarrier_wait(scouted(base), tile_phase);
            mbarrier_arrive(taken(base));
            tile_phase ^= 1;
        }
        const TensorMap* lhs_ext = kSlices && tile.is_only ? nullptr : &p.lhs_ext;
        for (int r0 = 0; r0 < p.r; r0 += kTileK) fill(lhs_ext, p.rhs_ext, tile, -1, r0);
    }
}

// Tells other blocks of the slices that this one makes, and waits for all those that its tiles need,
// one tile ahead of the loader at most. The last scout to have seen all of its flags clears them.
template <int kN>
__device__ __forceinline__ void scout(const HopperLinearParams& p, uint32_t base) {
    const int lane = threadIdx.x % 32;
    bool is_last = false;
    if (lane == 0) {
        uint32_t tile_phase = 0, slice_phase = 0;
        for (Tiles<kN> tiles(p); !tiles.done(); tiles.advance()) {
            const Tile tile = tiles.tile();
            uint32_t* flag = &p.flags[1 + tile.m0 / kTileM];
            if (tile.slice >= 0 && tile.tells) {
                mbarrier_wait(sliced(base), slice_phase);
                slice_phase ^= 1;
                if (tile.m0 < p.m) flag_add_release(flag);
            }
            if (tile.is_only) continue;
            if (tile.m0 < p.m)
                while (flag_load_acquire(flag) < p.slices) {
                }
            fence_global_before_tma();
            mbarrier_wait(taken(base), tile_phase ^ 1);
            mbarrier_arrive(scouted(base));
            tile_phase ^= 1;
        }
        const uint32_t last = gridDim.x - 1;
        is_last = count_round(p.flags, last) == last;
    }
    if (__any_sync(~0u, is_last))
        for (int i = lane; i * kTileM < p.m; i += 32) p.flags[1 + i] = 0;
}

// A warpgroup's 64×kN of out, rounded, on its way to memory.
template <int kN>
struct Rounded {
    uint32_t pairs[kN / 4];
    int row, col;
};

// Stores a part of it by way of the warpgroup's boxes in shared memory.
template <int kN, typename T>
__device__ __forceinline__ void store_part(const HopperLinearParams& p, const Rounded<kN>& rounded,
                                           uint32_t boxes, int part) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int barrier = threadIdx.x / 128;  // 0 is __syncthreads, and not a multiplier's
    // The lane's row of an 8×8 matrix: of rows 0 to 7 and 8 to 15, then of eight columns on.
    const int lane_row = warp * 16 + lane % 16, lane_chunk = lane / 16;
    // Parts take turns with the boxes, and their stores are groups.
    const uint32_t to = boxes + part % 2 * 2 * kBoxBytes;
    const int part_col = T::part_col(part), part_cols = T::part_cols(part);
    // NOTES: the wait holds in the thread that stored; the barrier passes it on to the others.
    if (thread == 0) {
        if (part == 0) tma_store_wait_read<0>();
        if (part > 1) tma_store_wait_read<1>();
    }
    named_barrier<128>(barrier);
#pragma unroll
    for (int i = 0; i < part_cols; i += 16) {
        const uint32_t* v = &rounded.pairs[(part_col + i) / 4];
        // In rows of 128 bytes, 64, or 32 where a box has no more than 16 columns.
        const int chunk = i / 8 + lane_chunk;
        const uint32_t narrow = to + i / 32 * kBoxBytes;
        const uint32_t at =
            T::kWideBoxes ? to + swizzled(lane_row, chunk)
            : part_cols - i / 32 * 32 < 32
                ? narrow + lane_row * 32 + (chunk % 4 ^ lane_row / 4 % 2) * 16
                : narrow + lane_row * 64 + (chunk % 4 ^ lane_row / 2 % 4) * 16;
        stmatrix_x4(at, v[0], v[1], v[2], v[3]);
    }
    fence_shared_before_tma();
    named_barrier<128>(barrier);
    if (thread == 0) {
        if constexpr (T::kWideBoxes) {
            tma_store(p.out_64, rounded.row, rounded.col + part_col, to);
        } else {
#pragma unroll
            for (int i = 0; i < part_cols; i += 32) {
                const TensorMap& map = part_cols - i < 32 ? p.out_16 : p.out_32;
                tma_store(map, rounded.row, rounded.col + part_col + i, to + i / 32 * kBoxBytes);
            }
        }
        tma_store_commit();
    }
}

// A warp's 16×16 of lhs_ext, as its lanes hold it for an mma: two rows, eight apart, then eight columns
// on.
__device__ __forceinline__ void store_slice(const HopperLinearParams& p, const uint32_t (&slice)[4],
                                            int row0, int col0) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + i % 2 * 8 + lane / 4, col = col0 + i / 2 * 8 + lane % 4 * 2;
        if (row >= p.m || col >= p.r) continue;
        // Elements have 16 bits.
        auto* to = static_cast<uint16_t*>(p.s) + (int64_t)row * p.r + col;
        *reinterpret_cast<uint32_t*>(to) = slice[i];
    }
}

template <typename E, int kN, bool kMnMajor, bool kSlices>
__device__ __forceinline__ void multiply(const HopperLinearParams& p, uint32_t base) {
    using T = Tiling<kN, kMnMajor, kSlices>;
    constexpr int kLhsStep = 32 / 16, kRhsStep = (kMnMajor ? 2048 : 32) / 16;
    const int half = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const uint32_t boxes = base + T::kStages * T::kStageBytes + half * T::kBoxes * kBoxBytes;
    Ring<T::kStages> ring;
    auto release = [&](int stage) {
        if (lane < 2) mbarrier_arrive_remote(empty(base, stage), lane);
    };
    // The tile before, of which a part is stored after every step, while its products run.
    Rounded<kN> rounded;
    int part = T::kParts;
    auto store_next = [&] {
#pragma unroll
        for (int i = 0; i < T::kParts; i++)
            if (part == i) store_part<kN, T>(p, rounded, boxes, i);
        part++;
    };
    // The warpgroups issue their products of a step in turns, so that one can round a tile while the
    // other's are running.
    const int turn = 3 + half, other_turn = 3 + (half ^ 1);
    if (half == 1) named_barrier_arrive<256>(other_turn);
    Tiles<kN> tiles(p);
    // A tile from its first product to its accumulators, rounded. With a slice and without are apart
    // from each other, since wgmmas that divide the same registers in different ways are serialised.
    auto multiply_tile = [&](const Tile& tile, auto makes_slice) {
        constexpr int kSlice = decltype(makes_slice)::value ? kTileR : 0;
        // The columns and those of a slice are multiplied in one go, or where they are more than 256,
        // in two. That is so in all steps, though only those along k have a slice; what the others
        // add to it, nobody reads.
        constexpr int kLeft = kN + kSlice > 256 ? kN / 2 : kN + kSlice;
        constexpr int kRight = kN + kSlice - kLeft;
        const int row0 = tile.m0 + half * 64;
        float acc[(kN + kSlice) / 2];
        int accumulate = 0, previous = -1;
        // Adds what `products` issues for a stage, given the addresses of its lhs and rhs.
        auto step = [&](auto&& products) {
            mbarrier_wait(full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * T::kStageBytes;
            named_barrier<256>(turn);
            wgmma_fence();
            products(stage + half * (kLhsBytes / 2), stage + kLhsBytes);
            wgmma_commit();
            named_barrier_arrive<256>(other_turn);
            wgmma_wait<1>();
            if (previous >= 0) release(previous);
            previous = ring.stage;
            ring.advance();
        };
        auto step_of = [&](int k16s) {
            step([&](uint32_t lhs_at, uint32_t rhs_at) {
                const uint64_t lhs_0 = wgmma_descriptor(lhs_at, false);
                const uint64_t rhs_0 = wgmma_descriptor(rhs_at, kMnMajor);
#pragma unroll
                for (int i = 0; i < kTileK / 16; i++) {
                    if (i >= k16s) continue;
                    const uint64_t lhs = lhs_0 + i * kLhsStep, rhs = rhs_0 + i * kRhsStep;
                    // The slice of down lies behind rhs.
                    wgmma<E, kLeft, 0, kMnMajor>(acc, lhs, rhs, accumulate);
                    if constexpr (kRight > 0)
                        wgmma<E, kRight, kLeft / 2, kMnMajor>(acc, lhs, rhs + kLeft * 128 / 16,
                                                              accumulate);
                    accumulate = 1;
                }
            });
        };
        for (int k0 = 0; k0 < p.k; k0 += kTileK) {
            step_of(kTileK / 16);
            if (part < T::kParts) store_next();
        }
        if constexpr (kSlice > 0) {
            wgmma_wait<0>();
            uint32_t slice[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* v = &acc[kN / 2 + 2 * i];
                slice[i] = pack<E>(v[0] * p.scale, v[1] * p.scale);
            }
            if (tile.tells) {
                store_slice(p, slice, row0 + warp * 16, tile.slice * kTileR);
                __syncwarp();
                if (lane == 0) mbarrier_arrive(sliced(base));
            }
            if (tile.is_only)
                step([&](uint32_t, uint32_t rhs_at) {
                    const uint64_t rhs = wgmma_descriptor(rhs_at, kMnMajor);
                    wgmma_of_registers<E, kLeft, 0>(acc, slice, rhs);
                    if constexpr (kRight > 0)
                        wgmma_of_registers<E, kRight, kLeft / 2>(acc, slice,
                                                                 rhs + kLeft * 128 / 16);
                });
        }
        if (kSlice == 0 || !tile.is_only)
            for (int r0 = 0; r0 < p.r; r0 += kTileK)
                step_of(min((p.r - r0 + 15) / 16, kTileK / 16));
        while (part < T::kParts) store_next();
        // While the last products run.
        tiles.advance();
        Tile next = tiles.tile();
        keep(next.m0), keep(next.n0);
        wgmma_wait<0>();
        release(previous);
#pragma unroll
        for (int i = 0; i < kN / 4; i++) rounded.pairs[i] = pack<E>(acc[2 * i], acc[2 * i + 1]);
        rounded.row = row0;
        rounded.col = tile.n0;
        part = 0;
        return next;
    };
    Tile tile = tiles.tile();
    if constexpr (kSlices)
        while (!tiles.done() && tile.slice >= 0) tile = multiply_tile(tile, std::true_type{});
    while (!tiles.done()) tile = multiply_tile(tile, std::false_type{});
    while (part < T::kParts) store_next();
    if (half == 0) named_barrier<256>(turn);
    // Shared memory stays until the last stores have read it.
    if (threadIdx.x % 128 == 0) tma_store_wait_read<0>();
}

// ---------------------------------------------------------------------------------------------

template <typename E, int kN, bool kMnMajor, bool kSlices>
__device__ __forceinline__ void hopper_linear(const HopperLinearParams& p) {
    const uint32_t base = shared_base();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kMaxStages; stage++) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), 2 * kMultiplyingWarps);
        }
        mbarrier_init(scouted(base), 1);
        mbarrier_init(taken(base), 1);
        mbarrier_init(sliced(base), kMultiplyingWarps);
        fence_mbarrier_init();
        prefetch_map(p.lhs);
        prefetch_map(p.rhs);
    }
    cluster_sync();
    // Until here, this may run beside the end of the kernel before.
    wait_for_kernel_before();
    let_next_kernel_start();
    if (threadIdx.x < 128) {
        give_registers<40>();
        if (threadIdx.x == 0) {
            load<kN, kMnMajor, kSlices>(p, base);
        } else if (kSlices && threadIdx.x / 32 == 1) {
            scout<kN>(p, base);
        }
    } else {
        take_registers<232>();
        multiply<E, kN, kMnMajor, kSlices>(p, base);
    }
    // A block stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#define HOPPER_LINEAR_KERNEL(name, E, n, mn_major, slices)                              \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)      \
        name(const __grid_constant__ HopperLinearParams params) {                       \
        hopper_linear<E, n, mn_major, slices>(params);                                  \
    }
#define HOPPER_LINEAR_KERNELS(n, type, E)                                               \
    HOPPER_LINEAR_KERNEL(hopper_linear_forward_n##n##_##type, E, n, false, false)       \
    HOPPER_LINEAR_KERNEL(hopper_linear_sliced_n##n##_##type, E, n, false, true)         \
    HOPPER_LINEAR_KERNEL(hopper_linear_input_grad_n##n##_##type, E, n, true, false)

HOPPER_LINEAR_KERNELS(128, bf16, __nv_bfloat16)
HOPPER_LINEAR_KERNELS(176, bf16, __nv_bfloat16)
HOPPER_LINEAR_KERNELS(256, bf16, __nv_bfloat16)
HOPPER_LINEAR_KERNELS(128, f16, __half)
HOPPER_LINEAR_KERNELS(176, f16, __half)
HOPPER_LINEAR_KERNELS(256, f16, __half)
