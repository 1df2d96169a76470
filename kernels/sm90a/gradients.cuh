// A role: CTAs, or a warpgroup beside others, that compute items of dA and dB. The contract is in
// grads.cu. Both operands lie MN-major: columns of Y are m, columns of L are n, rows of T are k.
// Used by grads.cu and linear.cuh (whole CTAs), decode.cu and short.cu (a warpgroup beside dX).
#pragma once

#include "dropout.cuh"
#include "projection.cuh"

#include "manifest/sm90a/grads.cuh"

// What a stage and an item are. With kSplits, items of dA are of a split of T.
template <int kRank_, int kCols_, bool kSplits_ = false>
struct GradTile {
    static constexpr int kRank = kRank_, kCols = kCols_, kRows = kStepRows;
    static constexpr bool kSplits = kSplits_;
    static constexpr int kWarps = 8;  // that consume
    static_assert((kRank == 16 || kRank == 32 || kRank % 64 == 0) && kCols % 64 == 0);
    using Y = SmemTile<Major::MN, kCols, kRows>;
    using L = SmemTile<Major::MN, kRank, kRows, (kRank < 64 ? kRank : 64)>;
    static constexpr int kStageBytes = Y::kBytes + L::kBytes;
    static constexpr int kCount = kPipelineBytes / (kStageBytes + 16);
    using Stages = ::Stages<kCount, kStageBytes, kCount * kStageBytes>;
    static constexpr int kBoxes = Y::kBoxes / 2;  // of Y, of each of two warpgroups
    // After so many rows the tensor cores' sums are added in plain f32. Their own additions
    // truncate: this bounds the error of a long sum.
    static constexpr int kChainRows = 2048;
    static_assert(kChainRows % kRows == 0);
};

template <typename T>
struct GradItem {
    bool of_da;
    int part;         // the projection of a dB
    int cols, ranks;  // of its dH and S, or of X and dS
    int col0, rank0;  // the item's first column and rank
    int split;        // of T

    __device__ __forceinline__ GradItem(const HopperGradsParams& p, int index) {
        part = 0;
        for (; part < kMaxParts; part++) {
            const int count = count_of(p, p.d[part], p.parts.rank[part]);
            if (index < count) break;
            index -= count;
        }
        of_da = part == kMaxParts;
        if (of_da) part = 0;
        split = 0;
        if (T::kSplits && of_da) {
            const int count = count_of(p, p.k, p.r);
            split = index / count, index %= count;
        }
        cols = of_da ? p.k : p.d[part];
        ranks = of_da ? p.r : p.parts.rank[part];
        // Items that read the same columns of Y follow one another.
        const int tiles = (ranks + T::kRank - 1) / T::kRank;
        col0 = index / tiles * T::kCols;
        rank0 = index % tiles * T::kRank;
    }

    // Its rows of T.
    __device__ __forceinline__ int first_row(const HopperGradsParams& p) const {
        return T::kSplits && of_da ? split * p.rows_per_split : 0;
    }
    __device__ __forceinline__ int end_row(const HopperGradsParams& p) const {
        return T::kSplits && of_da ? min(p.t, (split + 1) * p.rows_per_split) : p.t;
    }

    static __device__ __forceinline__ int count(const HopperGradsParams& p) {
        int all = count_of(p, p.k, p.r) * (T::kSplits ? p.splits : 1);
        for (int i = 0; i < kMaxParts; i++) all += count_of(p, p.d[i], p.parts.rank[i]);
        return all;
    }

    static __device__ __forceinline__ int count_of(const HopperGradsParams& p, int cols,
                                                   int ranks) {
        const int tiles = (ranks + T::kRank - 1) / T::kRank;
        return p.da == nullptr ? 0 : (cols + T::kCols - 1) / T::kCols * tiles;
    }
};

// By one thread, elect_one(), of worker `worker` of `workers`: items go to workers in turns. With
// kWaits, the kernel before has not been waited for: of what is loaded here it may have computed
// dS.
template <typename T, bool kWaits = false>
__device__ __forceinline__ void grads_produce(const HopperGradsParams& p, uint32_t base, int worker,
                                              int workers) {
    using Y = typename T::Y;
    using L = typename T::L;
    Producer<typename T::Stages> producer(base);
    int ds_rows = p.ds_flag_count > 0 ? 0 : p.t;  // rows of dS whose flags were seen
    bool has_waited = !kWaits;
    const int count = GradItem<T>::count(p);
    for (int index = worker; index < count; index += workers) {
        const GradItem<T> item(p, index);
        const TensorMap &y = item.of_da ? p.x : p.dh[item.part], &l = item.of_da ? p.ds : p.s;
        const int rank0 = item.rank0 + (item.of_da ? 0 : p.parts.rank_start[item.part]);
        const int end = item.end_row(p);
        auto load_y = [&](const Slot& slot, int t0) {
            Y::load(slot.to, y, item.col0, t0, slot.full);
        };
        auto wait_for_l = [&](int t0) {
            if (!item.of_da || t0 < ds_rows) return;
            GridFlags{p.flags}.wait(t0 / kFlagRows, p.ds_flag_count);
            ds_rows = t0 + kFlagRows;
        };
        auto load_l = [&](const Slot& slot, int t0) {
            L::load(slot.to + Y::kBytes, l, rank0, t0, slot.full);
        };
        int t0 = item.first_row(p);
        if (item.of_da && !has_waited) {
            // As much of X as fits is loaded beside the end of the kernel before.
            auto of_ds = producer;
            int t_ds = t0;
            for (int stage = 0; stage < T::kCount && t0 < end; stage++, t0 += T::kRows) {
                load_y(producer.acquire(T::kStageBytes), t0);
                producer.commit();
            }
            pdl_wait();
            pdl_trigger();
            has_waited = true;
            for (; t_ds < t0; t_ds += T::kRows) {
                wait_for_l(t_ds);
                load_l(of_ds.slot(), t_ds);
                of_ds.commit();
            }
        }
        for (; t0 < end; t0 += T::kRows) {
            wait_for_l(t0);
            const Slot slot = producer.acquire(T::kStageBytes);
            load_y(slot, t0);
            load_l(slot, t0);
            producer.commit();
        }
    }
}

// By one thread of every CTA of the grid, after its last wait for dS.
__device__ __forceinline__ void grads_done(const HopperGradsParams& p) {
    if (p.ds_flag_count > 0) GridFlags{p.flags}.done(gridDim.x, p.t, kFlagRows);
}

// Stores a warpgroup's 64 columns of an item, from `col0` on, for the columns of L that v has, as
// elements G.
template <typename G, typename T, int kFloats>
__device__ __forceinline__ void grads_store_as(const HopperGradsParams& p, const GradItem<T>& item,
                                               int col0, float (&v)[kFloats]) {
    struct alignas(2 * sizeof(G)) Two {
        G low, high;
    };
    const int lane = threadIdx.x % 32;
    const int first_col = item.col0 + col0 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const int first_rank = item.rank0 + lane % 4 * 2;
    // Two at a time: a rank and the next.
    auto each = [&](auto&& use) {
#pragma unroll
        for (int i = 0; i < kFloats; i += 2) {
            const int col = first_col + i % 4 / 2 * 8, rank = first_rank + i / 4 * 8;
            if (col < item.cols && rank < item.ranks) use(v[i], v[i + 1], rank, col);
        }
    };
    // With `accumulate`, all loads are issued before any of them is used.
    if (item.of_da) {
        auto at = [&](int rank, int col) {
            return static_cast<G*>(p.da) + (int64_t)rank * p.k + col;
        };
        if (p.accumulate)
            each([&](float& a, float& b, int rank, int col) {
                a = widen(*at(rank, col)) + a;
                b = widen(*at(rank + 1, col)) + b;
            });
        each([&](float a, float b, int rank, int col) {
            round_to(*at(rank, col), a);
            round_to(*at(rank + 1, col), b);
        });
    } else {
        auto at = [&](int rank, int col) {
            G* to = static_cast<G*>(p.db[item.part]) + (int64_t)col * item.ranks + rank;
            return reinterpret_cast<Two*>(to);
        };
        if (p.accumulate)
            each([&](float& a, float& b, int rank, int col) {
                const Two before = *at(rank, col);
                a = widen(before.low) + a;
                b = widen(before.high) + b;
            });
        each([&](float a, float b, int rank, int col) {
            Two two;
            round_to(two.low, a), round_to(two.high, b);
            *at(rank, col) = two;
        });
    }
}

template <typename E, typename T, int kFloats>
__device__ __forceinline__ void grads_store(const HopperGradsParams& p, const GradItem<T>& item,
                                            int col0, float (&v)[kFloats]) {
    if (p.rounds) {
        grads_store_as<E>(p, item, col0, v);
    } else {
        grads_store_as<float>(p, item, col0, v);
    }
}

// Adds up the sums of all splits of an item of dA in their order, by each warp that is the last of
// the splits to have its part of them: whether it is. The counters are zero before and after.
template <typename T, int kFloats>
__device__ __forceinline__ bool add_splits(const HopperGradsParams& p, const GradItem<T>& item,
                                           float (&sum)[T::kBoxes][kFloats]) {
    const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
    const int tiles = (p.r + T::kRank - 1) / T::kRank;
    const int part = (item.col0 / T::kCols * tiles + item.rank0 / T::kRank) * T::kWarps + warp;
    constexpr int kFours = T::kBoxes * kFloats / 4;
    auto* sums = reinterpret_cast<float4*>(p.partials) + (int64_t)part * p.splits * kFours * 32;
    auto each = [&](int split, auto&& use) {
        float4* of_split = sums + split * kFours * 32 + lane;
#pragma unroll
        for (int i = 0; i < kFours; i++)
            use(*reinterpret_cast<float4*>(&sum[i / (kFloats / 4)][i % (kFloats / 4) * 4]),
                of_split + i * 32);
    };
    each(item.split, [](const float4& v, float4* at) { *at = v; });
    __syncwarp();
    bool is_last = lane == 0 && GridFlags{p.arrivals + part}.is_last(p.splits);
    if (!__any_sync(~0u, is_last)) return false;
    __syncwarp();
    each(0, [](float4& v, const float4* at) { v = __ldcg(at); });
    for (int split = 1; split < p.splits; split++)
        each(split, [](float4& v, const float4* at) {
            const float4 other = __ldcg(at);
            v.x += other.x, v.y += other.y, v.z += other.z, v.w += other.w;
        });
    return true;
}

// By the two warpgroups behind the first.
template <typename E, typename T, typename D>
__device__ __forceinline__ void grads_consume(const HopperGradsParams& p, uint32_t base, int worker,
                                              int workers, const D& dropout) {
    [[maybe_unused]] const auto mask = mask_of(dropout);
    using Y = typename T::Y;
    using L = typename T::L;
    const int half = warpgroup_index() - 1;
    constexpr int kFloats = T::kRank / 2;
    Consumer<typename T::Stages, ReleaseToCta> consumer(base);
    const int count = GradItem<T>::count(p);
    for (int index = worker; index < count; index += workers) {
        [[maybe_unused]] bool of_da;
        [[maybe_unused]] DropoutCols32 cols[T::kBoxes];
        int t0 = 0, end = p.t;
        if constexpr (kDrops<D>) {
            const GradItem<T> item(p, index);
            of_da = item.of_da;
#pragma unroll
            for (int i = 0; i < T::kBoxes; i++)
                cols[i] = box_cols(mask, item.col0 + (half * T::kBoxes + i) * 64);
            t0 = item.first_row(p), end = item.end_row(p);
        }
        float sum[T::kBoxes][kFloats] = {};
        for (; t0 < end; t0 += T::kChainRows) {
            const int steps = (min(T::kChainRows, end - t0) + T::kRows - 1) / T::kRows;
            float acc[T::kBoxes][kFloats];
            int accumulate = 0;
            for (int step = 0; step < steps; step++)
                consumer.step([&](uint32_t stage) {
                    if constexpr (kDrops<D>)
                        if (of_da) {
#pragma unroll
                            for (int i = 0; i < T::kBoxes; i++)
                                drop_box(mask, stage + (half * T::kBoxes + i) * Y::kBoxBytes,
                                         t0 + step * T::kRows, cols[i]);
                            fence_proxy_async_shared();
                            bar_sync<128>(1 + half);
                        }
                    const uint64_t y = Y::descriptor(stage + half * T::kBoxes * Y::kBoxBytes);
                    const uint64_t l = L::descriptor(stage + Y::kBytes);
                    wgmma_fence();
#pragma unroll
                    for (int k16 = 0; k16 < T::kRows / 16; k16++) {
#pragma unroll
                        for (int i = 0; i < T::kBoxes; i++)
                            wgmma<E, T::kRank, Major::MN, Major::MN>(
                                acc[i], y + i * (Y::kBoxBytes / 16) + k16 * Y::kStepK16,
                                l + k16 * L::kStepK16, accumulate);
                        accumulate = 1;
                    }
                    wgmma_commit();
                });
            consumer.drain();
#pragma unroll
            for (int i = 0; i < T::kBoxes; i++)
#pragma unroll
                for (int j = 0; j < kFloats; j++) sum[i][j] += acc[i][j];
        }
        const GradItem<T> item(p, index);
        if constexpr (kDrops<D>)
            if (item.of_da) {
                if (p.splits > 1 && !add_splits(p, item, sum)) continue;
#pragma unroll
                for (int i = 0; i < T::kBoxes; i++)
#pragma unroll
                    for (float& v : sum[i]) v *= mask.inv_keep;
            }
#pragma unroll
        for (int i = 0; i < T::kBoxes; i++)
            grads_store<E>(p, item, (half * T::kBoxes + i) * 64, sum[i]);
    }
}

// Shared memory of a step of grads_beside at most, from a multiple of 1024 on.
constexpr int kGradsBesideBytes = GradTile<32, 64>::kStageBytes;

// The items of grads_beside, a step at a time, with no pipeline.
template <typename E, typename T, typename Wait>
__device__ __forceinline__ void grads_by_steps(const HopperGradsParams& p, uint32_t at,
                                               uint32_t full, int worker, int workers,
                                               Wait&& wait_for_ds) {
    using Y = typename T::Y;
    using L = typename T::L;
    static_assert(T::kStageBytes <= kGradsBesideBytes && Y::kBoxes == 1 && L::kBoxes == 1);
    const int box_rows = min(T::kRows, (p.t + 15) / 16 * 16);
    const uint32_t y_at = at, l_at = at + box_rows * 64 * 2;
    const uint64_t y = Y::descriptor(y_at), l = L::descriptor(l_at);
    const bool loads = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0) == 0 && elect_one();
    const int bytes = box_rows * (T::kCols + T::kRank) * 2;
    const int count = GradItem<T>::count(p);
    uint32_t phase = 0;
    bool has_ds = false;
    for (int index = worker; index < count; index += workers) {
        const GradItem<T> item(p, index);
        float acc[T::kRank / 2] = {};
        for (int t0 = 0; t0 < p.t; t0 += T::kRows) {
            bar_sync<128>(2);  // all warps have read the step before
            if (loads) {
                mbarrier_arrive_expect_tx(full, bytes);
                Y::load(y_at, item.of_da ? p.x : p.dh[0], item.col0, t0, full);
                if (item.of_da && !has_ds) wait_for_ds(), has_ds = true;
                L::load(l_at, item.of_da ? p.ds : p.s, item.rank0, t0, full);
            }
            mbarrier_wait(full, phase);
            phase ^= 1;
            wgmma_groups<E, T::kRank, Y, L>(acc, y, l, p.t - t0);
            wgmma_wait<0>();
        }
        grads_store<E>(p, item, 0, acc);
    }
}

// By a warpgroup beside the consumers of dX, in a small batch of rank r. Items go in turns to the
// CTAs from first_cta on. Boxes of Y and L are as high as T, up to whole 16. No other warp uses the
// barrier `full`. One thread calls wait_for_ds() before it first loads dS.
// NOTES: slow, and no one waits for it. In the stages of the warpgroups for dX an item took 2.5 µs:
// its loads and stores queued behind the loads of W0.
template <typename E, typename Wait>
__device__ __forceinline__ void grads_beside(const HopperGradsParams& p, int r, uint32_t at,
                                             uint32_t full, int first_cta, Wait&& wait_for_ds) {
    const int workers = gridDim.x - first_cta, worker = blockIdx.x - first_cta;
    if (r <= 16) {
        grads_by_steps<E, GradTile<16, 64>>(p, at, full, worker, workers, wait_for_ds);
    } else {
        grads_by_steps<E, GradTile<32, 64>>(p, at, full, worker, workers, wait_for_ds);
    }
}
