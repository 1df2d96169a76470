// The two consumer warpgroups of a CTA of linear.cuh that computes output tiles. Its schedule and
// its barriers are there.
#pragma once

#include "dropout.cuh"
#include "linear_layout.cuh"

// A warpgroup's 64×kN of the output, rounded, on its way to memory.
template <int kN>
struct RoundedTile {
    uint32_t pairs[kN / 4];
    int row, col;
};

// Stores a part of it through the warpgroup's boxes in shared memory.
template <int kN, typename Layout, Major kRhs, bool kShared>
__device__ __forceinline__ void store_part(const HopperLinearParams<kRhs, kShared>& p,
                                           const RoundedTile<kN>& rounded, uint32_t base,
                                           int part) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int barrier = threadIdx.x / 128;  // 1 or 2; 0 is __syncthreads
    // The lane's row of an 8×8 matrix: rows 0 to 7 and 8 to 15, then eight columns on, in rows of
    // 128, 64 or 32 bytes by the width of a box. The swizzle of columns i on is the same with i's
    // bits flipped.
    const int row = warp * 16 + lane % 16, chunk = lane / 16;
    uint32_t in_128 = row * 128 + (chunk ^ row % 8) * 16;
    const uint32_t in_64 = row * 64 + (chunk ^ row / 2 % 4) * 16;
    const uint32_t in_32 = row * 32 + (chunk ^ row / 4 % 2) * 16;
    // One register, not one for each column.
    if constexpr (Layout::kWideBoxes) pin_register(in_128);
    // Parts take turns with the boxes. Their stores are bulk groups.
    const uint32_t boxes = base + Layout::kBoxesAt + (barrier - 1) * Layout::kBoxes * kBoxBytes;
    const uint32_t to = boxes + part % 2 * 2 * kBoxBytes;
    const int part_col = Layout::part_col(part), part_cols = Layout::part_cols(part);
    // NOTES: the wait holds in the thread that stored; the barrier passes it on to the others.
    if (thread == 0) {
        if (part == 0) tma_store_wait_read<0>();
        if (part > 1) tma_store_wait_read<1>();
    }
    bar_sync<128>(barrier);
#pragma unroll
    for (int i = 0; i < part_cols; i += 16) {
        const uint32_t* v = &rounded.pairs[(part_col + i) / 4];
        const uint32_t at = Layout::kWideBoxes ? in_128 ^ i * 2
                            : part_cols - i / 32 * 32 < 32
                                ? i / 32 * kBoxBytes + in_32
                                : i / 32 * kBoxBytes + (in_64 ^ i % 32 * 2);
        stmatrix_x4(to + at, v[0], v[1], v[2], v[3]);
    }
    fence_proxy_async_shared();
    bar_sync<128>(barrier);
    if (thread == 0) {
        const int layer = kRhs == Major::MN ? 0 : p.part(rounded.col);
        const int col = rounded.col - (kRhs == Major::MN ? 0 : p.start(layer)) + part_col;
        const OutBoxes& out = p.out(layer);
        if constexpr (Layout::kWideBoxes) {
            tma_store(out.by_64, rounded.row, col, to);
        } else {
#pragma unroll
            for (int i = 0; i < part_cols; i += 32) {
                const TensorMap& map = part_cols - i < 32 ? out.by_16 : out.by_32;
                tma_store(map, rounded.row, col + i, to + i / 32 * kBoxBytes);
            }
        }
        tma_store_commit();
    }
}

// Stores a warp's 16×16 of S, packed as an mma operand.
__device__ __forceinline__ void store_slice(const HopperProduct& p, const uint32_t (&slice)[4],
                                            int row0, int col0) {
    const int lane = reread_thread_index() % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + i % 2 * 8 + lane / 4, col = col0 + i / 2 * 8 + lane % 4 * 2;
        if (row < p.m && col < p.r) store_pair(p.s, row, col, p.r, slice[i]);
    }
}

// How a tile's columns are multiplied in a step, with a slice of S or without.
//
// 64 columns of a slice have wgmmas of their own. 16 would take as long, to read lhs, so they are
// multiplied together with others: K-major in one wgmma with all columns, or with half of them
// where that makes more than 256; MN-major with the last box, wherever they lie. All steps do so,
// though only the steps along k have a slice: what the steps along r add to it is not read.
template <typename Layout, int kN, Major kRhs, int kSlice, bool kProjects>
struct StepShape {
    static constexpr bool kApart = kProjects && kSlice == 64;
    static constexpr bool kTogether = kProjects && !kApart;
    static constexpr bool kToLastBox = kTogether && kRhs == Major::MN;
    static constexpr int kCols = kTogether ? Layout::kRhsCols + kSlice : kN;
    static constexpr int kLeft = kToLastBox ? Layout::kRhsCols - 64 : kCols > 256 ? kN / 2 : kCols;
    static constexpr int kRight = kCols - kLeft;
};

template <typename E, int kN, Major kRhs, int kSlice, bool kShared, typename D>
__device__ __forceinline__ void consume(const HopperLinearParams<kRhs, kShared>& p, uint32_t base,
                                        const D& dropout) {
    constexpr bool kDropsOutput = kDrops<D>;
    static_assert(!kDropsOutput || kRhs == Major::MN, "a launch before drops elements of X");
    using Layout = LinearLayout<kN, kRhs, kSlice>;
    using Lhs = typename Layout::Lhs;
    using Rhs = typename Layout::Rhs;
    using ProjWeight = typename Layout::ProjWeight;
    const int half = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const LinearBarriers barriers(base);
    Consumer<typename Layout::Stages, ReleaseToCluster> consumer(base);
    // The tile before: a part is stored after every step, while the wgmmas of that step run.
    RoundedTile<kN> rounded;
    int part = Layout::kParts;
    auto store_next = [&] {
#pragma unroll
        for (int i = 0; i < Layout::kParts; i++)
            if (part == i) store_part<kN, Layout>(p, rounded, base, i);
        part++;
    };
    TileScheduler<kN, (kSlice > 0)> tiles(p);
    [[maybe_unused]] const auto mask = mask_of(dropout);
    // A tile from its first wgmma to its accumulators, rounded. With a slice and without are two
    // functions: wgmmas that divide the same registers in different ways are serialised.
    auto compute_tile = [&](const Tile<kN>& tile, auto projects) {
        constexpr bool kProjects = decltype(projects)::value;
        using Shape = StepShape<Layout, kN, kRhs, kSlice, kProjects>;
        constexpr bool kApart = Shape::kApart;
        constexpr int kLeft = Shape::kLeft, kRight = Shape::kRight;
        const int row0 = tile.m0 + half * 64;
        // A tile of few steps may be faster than the flag warp, which must not miss a phase.
        if (kProjects && tiles.wave > 0)
            mbarrier_wait(barriers.slice_stored_seen, (tiles.wave - 1) % 2);
        float acc[Shape::kCols / 2];
        [[maybe_unused]] float acc_apart[kApart ? kSlice / 2 : 1];
        // Zero the accumulators: otherwise they stay live from the tile before, and ptxas spills.
        constexpr bool kZeroes = kApart || kDropsOutput;
        if constexpr (kZeroes) {
#pragma unroll
            for (float& v : acc) v = 0.f;
#pragma unroll
            for (float& v : acc_apart) v = 0.f;
        }
        int accumulate = kZeroes;
        // The rhs of the wgmmas on the right.
        auto right = [&](uint32_t rhs_at) {
            const uint32_t right_at = rhs_at + kLeft * 128;
            if (!Shape::kToLastBox) return Rhs::descriptor(right_at);
            return Rhs::descriptor(
                right_at, Layout::proj_weight(base, consumer.ring.stage, rhs_at) - right_at);
        };
        // Adds the product of 16 columns of a stage.
        auto multiply_k16 = [&](uint32_t stage, int k16) {
            const uint32_t rhs_at = stage + Lhs::kBytes;
            const uint64_t lhs =
                Lhs::descriptor(stage + half * (Lhs::kBytes / 2)) + k16 * Lhs::kStepK16;
            const uint64_t rhs = Rhs::descriptor(rhs_at) + k16 * Rhs::kStepK16;
            wgmma<E, kLeft, Major::K, kRhs>(acc, lhs, rhs, accumulate);
            if constexpr (kRight > 0)
                wgmma<E, kRight, Major::K, kRhs, kLeft / 2>(
                    acc, lhs, right(rhs_at) + k16 * Rhs::kStepK16, accumulate);
            if constexpr (kApart) {
                const uint32_t proj_weight_at =
                    Layout::proj_weight(base, consumer.ring.stage, rhs_at);
                const uint64_t proj_weight =
                    ProjWeight::descriptor(proj_weight_at) + k16 * ProjWeight::kStepK16;
                wgmma<E, kSlice, Major::K, kRhs>(acc_apart, lhs, proj_weight, accumulate);
            }
            accumulate = 1;
        };
        // Adds the product of the first `ranks` columns of a stage along r, without what is
        // dropped, 64 columns at a time. acc is complete without it.
        [[maybe_unused]] KeptBits<kDropsOutput ? kN : 64> kept;
        [[maybe_unused]] auto add_dropped_columns = [&](uint32_t stage, auto ranks) {
            if constexpr (kDropsOutput) {
                const uint64_t lhs = Lhs::descriptor(stage + half * (Lhs::kBytes / 2));
#pragma unroll
                for (int box = 0; box < kN / 64; box++) {
                    const uint64_t rhs =
                        Rhs::descriptor(stage + Lhs::kBytes + box * Rhs::kBoxBytes);
                    float product[32];
                    wgmma_fence();
#pragma unroll
                    for (int k16 = 0; k16 < decltype(ranks)::value / 16; k16++)
                        wgmma<E, 64, Major::K, kRhs>(product, lhs + k16 * Lhs::kStepK16,
                                                     rhs + k16 * Rhs::kStepK16, k16 > 0);
                    wgmma_commit();
                    wgmma_wait<0>();
                    // NOTES: otherwise all tests of bits come first, and their results are spilled.
                    uint32_t bits = kept.of_box[box];
                    pin_register(bits);
#pragma unroll
                    for (int i = 0; i < 32; i++)
                        if (kept.keeps(bits, i)) acc[box * 32 + i] += product[i] * mask.inv_keep;
                }
            }
        };
        // A slice and the tile before do not both fit in registers.
        if (kProjects && !kApart)
            while (part < Layout::kParts) store_next();
        auto step = [&] {
            consumer.step([&](uint32_t stage) {
                wgmma_fence();
#pragma unroll
                for (int k16 = 0; k16 < kTileK / 16; k16++) multiply_k16(stage, k16);
                wgmma_commit();
            });
        };
        if constexpr (kDropsOutput) {
            // The tile before is stored before the first random number, so that its registers are
            // free then.
            int i = 0;
            for (; i < tile.steps && part < Layout::kParts; i++) {
                step();
                if (i > 0) store_next();
            }
            while (part < Layout::kParts) store_next();
            // NOTES: with no wgmma in flight. Beside wgmmas, which fill the ports of the register
            // file, random numbers take three to seven times as long, and the wgmmas wait for them.
            bool wants_kept = !tiles.writes_partial(tile);
            for (; i < tile.steps; i++) {
                step();
                if (wants_kept) {
                    wgmma_wait<0>();
                    kept.make(mask, row0 + warp * 16, tile.n0);
                    wants_kept = false;
                }
            }
            consumer.drain();
            if (wants_kept) kept.make(mask, row0 + warp * 16, tile.n0);
        } else {
            for (int i = 0; i < tile.steps; i++) {
                step();
                // With two steps in flight: otherwise the tensor cores would wait for the third.
                if (!kProjects && i > 0 && part < Layout::kParts) store_next();
            }
        }
        if constexpr (kProjects) {
            wgmma_wait<0>();
            uint32_t slice[kSlice / 16][4];
#pragma unroll
            for (int i = 0; i < kSlice / 4; i++) {
                const float* v = kApart ? &acc_apart[2 * i] : &acc[Layout::kRhsCols / 2 + 2 * i];
                const float scale = p.scale_of(tile.slice(p) * kSlice + i / 2 * 8);
                slice[i / 4][i % 4] = pack_saturated<E>(v[0] * scale, v[1] * scale);
            }
            if (tile.publishes(p)) {
                const int col0 = tile.slice(p) * kSlice;
#pragma unroll
                for (int i = 0; i < kSlice / 16; i++)
                    store_slice(p, slice[i], row0 + warp * 16, col0 + i * 16);
            }
            __syncwarp();
            if (lane == 0) mbarrier_arrive(barriers.slice_stored);
            // All of S is in registers: the operand of the steps along r.
            const bool has_all_of_s = kSlice == 64 || p.slices == 1;
            if constexpr (kDropsOutput) {
                // It takes the place of the lhs that this step does not have.
                if (has_all_of_s)
                    consumer.step([&](uint32_t stage) {
                        const uint32_t lhs_at = stage + half * (Lhs::kBytes / 2);
                        const int row = warp * 16 + lane % 16;
#pragma unroll
                        for (int i = 0; i < kSlice / 16; i++) {
                            const auto& v = slice[i];
                            stmatrix_x4(lhs_at + row * 128 + ((2 * i + lane / 16) ^ row % 8) * 16,
                                        v[0], v[1], v[2], v[3]);
                        }
                        fence_proxy_async_shared();
                        bar_sync<128>(threadIdx.x / 128);
                        add_dropped_columns(stage, std::integral_constant<int, kSlice>{});
                    });
            } else if (has_all_of_s)
                consumer.last_step([&](uint32_t stage) {
                    const uint32_t rhs_at = stage + Lhs::kBytes;
                    wgmma_fence();
#pragma unroll
                    for (int i = 0; i < kSlice / 16; i++) {
                        const uint64_t rhs = Rhs::descriptor(rhs_at) + i * Rhs::kStepK16;
                        wgmma_of_registers<E, kLeft, kRhs>(acc, slice[i], rhs);
                        if constexpr (kRight > 0)
                            wgmma_of_registers<E, kRight, kRhs, kLeft / 2>(
                                acc, slice[i], right(rhs_at) + i * Rhs::kStepK16);
                    }
                    wgmma_commit();
                });
        }
        // The steps along r. Tiles with slices are never split along K.
        const int r = tile.ranks(p, kRhs == Major::MN);
        if (kProjects ? kSlice != 64 && p.slices > 1 : !tiles.writes_partial(tile))
            for (int r0 = 0; r0 < r; r0 += kTileK) {
                if constexpr (kDropsOutput) {
                    consumer.step([&](uint32_t stage) {
                        if (r <= 16) {
                            add_dropped_columns(stage, std::integral_constant<int, 16>{});
                        } else {
                            add_dropped_columns(stage, std::integral_constant<int, kTileK>{});
                        }
                    });
                    continue;
                }
                // A group each: branches between the wgmmas of one group would serialise them.
                auto issue = [&](uint32_t stage) {
                    for (int k16 = 0; k16 < min((r - r0 + 15) / 16, kTileK / 16); k16++) {
                        wgmma_fence();
                        multiply_k16(stage, k16);
                        wgmma_commit();
                    }
                };
                consumer.step_or_last(r0 + kTileK >= r, issue);
            }
        // While the last wgmmas run:
        const bool writes_partial = tiles.writes_partial(tile);
        const bool reduces_partial = tiles.reduces_partial(tile);
        tiles.advance(tile);
        const Tile<kN> next = tiles.tile();
        if (!kProjects && !kDropsOutput)
            while (part < Layout::kParts) store_next();
        consumer.drain();
        if constexpr (!kProjects) {
            if (writes_partial) {
                write_partial(p, acc);
                __syncwarp();
                if (lane == 0) mbarrier_arrive(barriers.partial_written);
                return next;
            }
            if (reduces_partial) reduce_partial(p, acc);
        }
#pragma unroll
        for (int i = 0; i < kN / 4; i++) rounded.pairs[i] = pack<E>(acc[2 * i], acc[2 * i + 1]);
        rounded.row = row0;
        rounded.col = tile.n0;
        part = 0;
        return next;
    };
    Tile<kN> tile = tiles.tile();
    if constexpr (kSlice > 0) {
        while (!tiles.done() && tile.projects) {
            tile = compute_tile(tile, std::true_type{});
            if constexpr (Layout::kProjWeightApart) {
                // Both warpgroups have read A or B: the output boxes may take its place, and back.
                bar_sync<256>(3);
                if (tiles.done() || !tile.projects) break;
                while (part < Layout::kParts) store_next();
                if (threadIdx.x % 128 == 0) {
                    tma_store_wait_read<0>();
                    mbarrier_arrive_remote(barriers.output_stored, 0);
                    mbarrier_arrive_remote(barriers.output_stored, 1);
                }
            }
        }
    }
    while (!tiles.done()) tile = compute_tile(tile, std::false_type{});
    while (part < Layout::kParts) store_next();
    // Shared memory stays until the last stores have read it.
    if (threadIdx.x % 128 == 0) tma_store_wait_read<0>();
}
