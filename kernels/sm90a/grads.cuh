// What a block of grads.cu does for dA and dB, as roles of its warpgroups; the contract is there.
// Some blocks of linear.cuh do the same beside those that make dX; and where those are for few tokens, in
// decode.cu and short.cu, they have a warpgroup for it.
#pragma once

#include "project.cuh"

// Mirrored by cuda::hopper::HopperGradsParams in Rust.
struct HopperGradsParams {
    TensorMap dh[kMaxParts], b[kMaxParts], x;  // in boxes of 64 rows and columns
    TensorMap s, ds;      // in boxes of 64 rows and kRankBoxCols columns
    void* ds_out;         // dS, if it is made here
    uint32_t* flags;      // a count, then one for every 128 rows of dS
    float* db[kMaxParts];
    float* da;            // null if they are not wanted
    int d[kMaxParts];     // 0 of layers that there are not
    int t, k, r;          // r of all layers
    int outputs;          // of all layers, as Parts counts them
    int projectors;       // the blocks that make dS, the first ones; 0 if others make it
    int ds_parts;         // what a flag counts up to when its rows of dS are there; 0 if all are
    int accumulate;
    Parts parts;
};
static_assert(sizeof(HopperGradsParams) == 1600);

// Stages of kRows rows: of Y in boxes of 64 columns, then of L in boxes of 64 or fewer. Behind the stages
// are their barriers. Each of two warpgroups multiplies kTiles boxes of Y with all kRank columns of L.
template <int kRank_, int kCols_>
struct GradsTiling {
    static constexpr int kRank = kRank_, kCols = kCols_, kRows = 64;
    static_assert((kRank == 16 || kRank == 32 || kRank % 64 == 0) && kCols % 64 == 0);
    static constexpr int kRankBoxCols = kRank < 64 ? kRank : 64;
    static constexpr int kBoxes = kCols / 64, kRankBoxes = kRank / kRankBoxCols;
    static constexpr int kBoxBytes = kRows * 64 * 2, kRankBoxBytes = kRows * kRankBoxCols * 2;
    static constexpr int kStageBytes = kBoxes * kBoxBytes + kRankBoxes * kRankBoxBytes;
    static_assert(kStageBytes % 1024 == 0);
    static constexpr int kStages = (224 << 10) / (kStageBytes + 16);
    static constexpr int kTiles = kBoxes / 2;
    // The tensor cores' sums go on for so many rows: it bounds how far off those can be.
    static constexpr int kChainRows = 2048;
    static_assert(kChainRows % kRows == 0);

    static __device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
        return base + kStages * kStageBytes + 8 * stage;
    }
    static __device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
        return full(base, kStages + stage);
    }
};

// kCols columns of a dB's dH or of dA's X, and kRank columns of their S or dS.
template <typename T>
struct GradsItem {
    bool of_da;
    int part;             // whose dB
    int cols, ranks;      // of its layer's dH and S, or of X and dS
    int col0, rank0;      // among those

    __device__ __forceinline__ GradsItem(const HopperGradsParams& p, int index) {
        part = 0;
        for (; part < kMaxParts; part++) {
            const int count = count_of(p, p.d[part], p.parts.rank[part]);
            if (index < count) break;
            index -= count;
        }
        of_da = part == kMaxParts;
        if (of_da) part = 0;
        cols = of_da ? p.k : p.d[part];
        ranks = of_da ? p.r : p.parts.rank[part];
        const int tiles = (ranks + T::kRank - 1) / T::kRank;
        // Those that read the same of Y are next to each other.
        col0 = index / tiles * T::kCols;
        rank0 = index % tiles * T::kRank;
    }

    static __device__ __forceinline__ int count(const HopperGradsParams& p) {
        int all = count_of(p, p.k, p.r);
        for (int i = 0; i < kMaxParts; i++) all += count_of(p, p.d[i], p.parts.rank[i]);
        return all;
    }

    static __device__ __forceinline__ int count_of(const HopperGradsParams& p, int cols, int ranks) {
        const int tiles = (ranks + T::kRank - 1) / T::kRank;
        return p.da == nullptr ? 0 : (cols + T::kCols - 1) / T::kCols * tiles;
    }
};

// By one thread; fence_mbarrier_init and a barrier of the block must follow.
template <typename T>
__device__ __forceinline__ void grads_init(uint32_t base) {
    for (int stage = 0; stage < T::kStages; stage++) {
        mbarrier_init(T::full(base, stage), 1);
        mbarrier_init(T::empty(base, stage), 8);  // the multiplying warps
    }
}

// By one thread, which is_elected(), of worker `worker` of `workers`, to which items go in turns.
template <typename T>
__device__ __forceinline__ void grads_load(const HopperGradsParams& p, uint32_t base, int worker,
                                           int workers) {
    Ring<T::kStages> ring;
    int ds_rows = p.ds_parts > 0 ? 0 : p.t;  // seen to be there
    const int count = GradsItem<T>::count(p);
    for (int index = worker; index < count; index += workers) {
        const GradsItem<T> item(p, index);
        const TensorMap &y = item.of_da ? p.x : p.dh[item.part], &l = item.of_da ? p.ds : p.s;
        const int rank0 = item.rank0 + (item.of_da ? 0 : p.parts.rank_start[item.part]);
        for (int t0 = 0; t0 < p.t; t0 += T::kRows) {
            if (item.of_da && t0 >= ds_rows) {
                while (flag_load_acquire(&p.flags[1 + t0 / kFlagRows]) < p.ds_parts) {
                }
                fence_global_before_tma();
                ds_rows = t0 + kFlagRows;
            }
            const uint32_t to = base + ring.stage * T::kStageBytes;
            const uint32_t barrier = T::full(base, ring.stage);
            // A stage that was never filled counts as released.
            mbarrier_wait(T::empty(base, ring.stage), ring.phase ^ 1);
            mbarrier_arrive_expect(barrier, T::kStageBytes);
#pragma unroll
            for (int i = 0; i < T::kBoxes; i++)
                tma_load(to + i * T::kBoxBytes, y, t0, item.col0 + i * 64, barrier);
#pragma unroll
            for (int i = 0; i < T::kRankBoxes; i++)
                tma_load(to + T::kBoxes * T::kBoxBytes + i * T::kRankBoxBytes, l, t0,
                         rank0 + i * 64, barrier);
            ring.advance();
        }
    }
}

// By one thread of every block, when it has seen all the flags that it needs. The last clears them.
__device__ __forceinline__ void grads_done(const HopperGradsParams& p) {
    const uint32_t last = gridDim.x - 1;
    if (p.ds_parts > 0 && count_round(p.flags, last) == last)
        for (int i = 0; i * kFlagRows < p.t; i++) p.flags[1 + i] = 0;
}

// What a warpgroup has of an item: 64 columns of Y, from `col0` on, with the columns of L that v has.
template <typename T, int kFloats>
__device__ __forceinline__ void grads_store(const HopperGradsParams& p, const GradsItem<T>& item, int col0,
                                            float (&v)[kFloats]) {
    const int lane = threadIdx.x % 32;
    const int first_col = item.col0 + col0 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int first_rank = item.rank0 + lane % 4 * 2;
    // Two at a time, of a rank and the next.
    auto each = [&](auto&& use) {
#pragma unroll
        for (int i = 0; i < kFloats; i += 2) {
            const int col = first_col + i % 4 / 2 * 8, rank = first_rank + i / 4 * 8;
            if (col < item.cols && rank < item.ranks) use(v[i], v[i + 1], rank, col);
        }
    };
    // What is there is all on its way before any of it is needed.
    if (item.of_da) {
        auto at = [&](int rank, int col) { return p.da + (int64_t)rank * p.k + col; };
        if (p.accumulate)
            each([&](float& a, float& b, int rank, int col) {
                a = *at(rank, col) + a;
                b = *at(rank + 1, col) + b;
            });
        each([&](float a, float b, int rank, int col) {
            *at(rank, col) = a;
            *at(rank + 1, col) = b;
        });
    } else {
        auto at = [&](int rank, int col) {
            return reinterpret_cast<float2*>(p.db[item.part] + (int64_t)col * item.ranks + rank);
        };
        if (p.accumulate)
            each([&](float& a, float& b, int rank, int col) {
                const float2 before = *at(rank, col);
                a = before.x + a;
                b = before.y + b;
            });
        each([&](float a, float b, int rank, int col) { *at(rank, col) = {a, b}; });
    }
}

// By the two warpgroups behind the first.
template <typename E, typename T>
__device__ __forceinline__ void grads_multiply(const HopperGradsParams& p, uint32_t base, int worker,
                                               int workers) {
    // NOTES: the same in all lanes, and known to be, so that descriptors are computed in uniform
    // registers: moving them there costs a fifth of the rate.
    const int half = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int lane = threadIdx.x % 32;
    constexpr int kStep = 16 * 64 * 2 / 16, kRankStep = 16 * T::kRankBoxCols * 2 / 16;
    constexpr int kFloats = T::kRank / 2;

    Ring<T::kStages> ring;
    auto release = [&](int stage) {
        if (lane == 0) mbarrier_arrive(T::empty(base, stage));
    };
    const int count = GradsItem<T>::count(p);
    for (int index = worker; index < count; index += workers) {
        float sum[T::kTiles][kFloats] = {};
        for (int t0 = 0; t0 < p.t; t0 += T::kChainRows) {
            const int steps = (min(T::kChainRows, p.t - t0) + T::kRows - 1) / T::kRows;
            float acc[T::kTiles][kFloats];
            int accumulate = 0, previous = -1;
            for (int step = 0; step < steps; step++) {
                mbarrier_wait(T::full(base, ring.stage), ring.phase);
                const uint32_t y_at = base + ring.stage * T::kStageBytes;
                const uint32_t l_at = y_at + T::kBoxes * T::kBoxBytes;
                const uint64_t y = wgmma_descriptor_of_boxes(y_at + half * T::kTiles * T::kBoxBytes,
                                                             64, T::kBoxBytes);
                const uint64_t l =
                    wgmma_descriptor_of_boxes(l_at, T::kRankBoxCols, T::kRankBoxBytes);
                wgmma_fence();
#pragma unroll
                for (int k16 = 0; k16 < T::kRows / 16; k16++) {
#pragma unroll
                    for (int i = 0; i < T::kTiles; i++)
                        wgmma<E, T::kRank, 0, true, true>(
                            acc[i], y + i * (T::kBoxBytes / 16) + k16 * kStep, l + k16 * kRankStep,
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
#pragma unroll
            for (int i = 0; i < T::kTiles; i++)
#pragma unroll
                for (int j = 0; j < kFloats; j++) sum[i][j] += acc[i][j];
        }
        const GradsItem<T> item(p, index);
#pragma unroll
        for (int i = 0; i < T::kTiles; i++)
            grads_store(p, item, (half * T::kTiles + i) * 64, sum[i]);
    }
}

// What a step of grads_beside takes in shared memory, at most, from a multiple of 1024 on.
constexpr int kGradsBesideBytes = GradsTiling<32, 64>::kStageBytes;

// By a warpgroup beside those that make dX of few tokens: the items of worker `worker` of `workers`, in the
// order of grads.cu. Boxes of Y and L have as many rows as there are, up to a multiple of what a product
// takes. `full` is a barrier that nobody else knows. One thread calls wait_for_ds(), which returns true, before
// it reads dS.
// NOTES: one step after the other, which takes long, and nobody waits for it. Made by those that make dX, with
// stages of theirs, an item took 2.5 µs: what is read and stored waits behind all that is on its way of W0.
template <typename E, typename T, typename Wait>
__device__ __forceinline__ void grads_beside(const HopperGradsParams& p, uint32_t at, uint32_t full,
                                             int worker, int workers, Wait&& wait_for_ds) {
    constexpr int kYStep = 16 * 64 * 2 / 16, kLStep = 16 * T::kRankBoxCols * 2 / 16;
    static_assert(T::kStageBytes <= kGradsBesideBytes && T::kBoxes == 1 && T::kRankBoxes == 1);
    const int box_rows = min(T::kRows, (p.t + 15) / 16 * 16);
    const uint32_t y_at = at, l_at = at + box_rows * 64 * 2;
    const uint64_t y = wgmma_descriptor_of_boxes(y_at, 64, T::kBoxBytes);
    const uint64_t l = wgmma_descriptor_of_boxes(l_at, T::kRankBoxCols, T::kRankBoxBytes);
    const bool loads = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0) == 0 && is_elected();
    const int bytes = box_rows * (T::kCols + T::kRankBoxCols) * 2;
    const int count = GradsItem<T>::count(p);
    uint32_t phase = 0;
    bool has_ds = false;
    for (int index = worker; index < count; index += workers) {
        const GradsItem<T> item(p, index);
        float acc[T::kRank / 2] = {};
        for (int t0 = 0; t0 < p.t; t0 += T::kRows) {
            // All are done with the step before.
            named_barrier<128>(2);
            if (loads) {
                mbarrier_arrive_expect(full, bytes);
                tma_load(y_at, item.of_da ? p.x : p.dh[0], t0, item.col0, full);
                if (item.of_da && !has_ds) has_ds = wait_for_ds();
                tma_load(l_at, item.of_da ? p.ds : p.s, t0, item.rank0, full);
            }
            mbarrier_wait(full, phase);
            phase ^= 1;
            // One by one, since branches between wgmmas would serialise them.
            for (int k16 = 0; k16 < min((p.t - t0 + 15) / 16, T::kRows / 16); k16++) {
                wgmma_fence();
                wgmma<E, T::kRank, 0, true, true>(acc, y + k16 * kYStep, l + k16 * kLStep, 1);
                wgmma_commit();
            }
            wgmma_wait<0>();
        }
        grads_store(p, item, 0, acc);
    }
}
