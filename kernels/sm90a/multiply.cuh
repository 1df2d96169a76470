// What the two multiplying warpgroups of a block of linear.cuh do: its schedule and what its barriers
// mean are there.
#pragma once

#include "tiling.cuh"

// A warpgroup's 64×kN of out, rounded, on its way to memory.
template <int kN>
struct Rounded {
    uint32_t pairs[kN / 4];
    int row, col;
};

// Stores a part of it by way of the warpgroup's boxes in shared memory.
template <int kN, typename T, bool kMnMajor, bool kShared>
__device__ __forceinline__ void store_part(const HopperLinearParams<kMnMajor, kShared>& p,
                                           const Rounded<kN>& rounded, uint32_t base, int part) {
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int barrier = threadIdx.x / 128;  // 0 is __syncthreads, and not a multiplier's
    // The lane's row of an 8×8 matrix, of rows 0 to 7 and 8 to 15, then of eight columns on, in rows of
    // 128 bytes, 64, or 32 where a box has no more than 16 columns. Sixteen columns on differ in some
    // bits, to be flipped then.
    const int row = warp * 16 + lane % 16, chunk = lane / 16;
    uint32_t in_128 = row * 128 + (chunk ^ row % 8) * 16;
    const uint32_t in_64 = row * 64 + (chunk ^ row / 2 % 4) * 16;
    const uint32_t in_32 = row * 32 + (chunk ^ row / 4 % 2) * 16;
    // One register, and not one for each of its columns.
    if constexpr (T::kWideBoxes) pin_register(in_128);
    // Parts take turns with the boxes, and their stores are groups.
    const uint32_t boxes = base + T::kStages * T::kStageBytes + (barrier - 1) * T::kBoxes * kBoxBytes;
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
        const uint32_t at = T::kWideBoxes                    ? in_128 ^ i * 2
                            : part_cols - i / 32 * 32 < 32 ? i / 32 * kBoxBytes + in_32
                                                           : i / 32 * kBoxBytes + (in_64 ^ i % 32 * 2);
        stmatrix_x4(to + at, v[0], v[1], v[2], v[3]);
    }
    fence_shared_before_tma();
    named_barrier<128>(barrier);
    if (thread == 0) {
        const int layer = kMnMajor ? 0 : p.part(rounded.col);
        const int col = rounded.col - (kMnMajor ? 0 : p.start(layer)) + part_col;
        const OutBoxes& out = p.out(layer);
        if constexpr (T::kWideBoxes) {
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

// A warp's 16×16 of lhs_ext, as its lanes hold it for an mma: two rows, eight apart, then eight columns
// on.
__device__ __forceinline__ void store_slice(const HopperProduct& p, const uint32_t (&slice)[4],
                                            int row0, int col0) {
    const int lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + i % 2 * 8 + lane / 4, col = col0 + i / 2 * 8 + lane % 4 * 2;
        if (row >= p.m || col >= p.r) continue;
        // Elements have 16 bits.
        auto* to = static_cast<uint16_t*>(p.s) + (int64_t)row * p.r + col;
        *reinterpret_cast<uint32_t*>(to) = slice[i];
    }
}

template <typename E, int kN, bool kMnMajor, int kSlice, bool kShared>
__device__ __forceinline__ void multiply(const HopperLinearParams<kMnMajor, kShared>& p,
                                         uint32_t base) {
    using T = Tiling<kN, kMnMajor, kSlice>;
    constexpr int kLhsStep = 32 / 16, kRhsStep = (kMnMajor ? 2048 : 32) / 16;
    const int half = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    Ring<T::kStages> ring;
    auto release = [&](int stage) {
        if (lane < 2) mbarrier_arrive_remote(empty(base, stage), lane);
    };
    // The tile before, of which a part is stored after every step, while the step's products run.
    Rounded<kN> rounded;
    int part = T::kParts;
    auto store_next = [&] {
#pragma unroll
        for (int i = 0; i < T::kParts; i++)
            if (part == i) store_part<kN, T>(p, rounded, base, i);
        part++;
    };
    Tiles<kN, (kSlice > 0)> tiles(p);
    // A tile from its first product to its accumulators, rounded. With a slice and without are apart
    // from each other, since wgmmas that divide the same registers in different ways are serialised.
    auto multiply_tile = [&](const Tile<kN>& tile, auto makes_slice) {
        constexpr bool kSlices = decltype(makes_slice)::value;
        // Sixty-four columns of a slice have wgmmas of their own. Those of 16 would take as long, to read
        // lhs, so they are multiplied together with others: K-major in one go with all, or where that is
        // more than 256, with one half; MN-major with the last box, though they lie anywhere. That is so
        // in all steps, though only those along k have a slice; what the others add to it, nobody reads.
        constexpr bool kApart = kSlices && kSlice == 64, kTogether = kSlices && kSlice == 16;
        constexpr bool kToLastBox = kTogether && kMnMajor;
        constexpr int kCols = kTogether ? T::kRhsCols + kSlice : kN;
        constexpr int kLeft = kToLastBox ? T::kRhsCols - 64 : kCols > 256 ? kN / 2 : kCols;
        constexpr int kRight = kCols - kLeft;
        const int row0 = tile.m0 + half * 64;
        // Tiles of few steps may be faster than the scout, which must not miss a phase.
        if (kSlices && tiles.wave > 0) mbarrier_wait(noticed(base), (tiles.wave - 1) % 2);
        float acc[kCols / 2];
        [[maybe_unused]] float acc_apart[kApart ? kSlice / 2 : 1];
        // Accumulators that nobody clears count as in use since the tile before, which here is too many.
        if constexpr (kApart) {
#pragma unroll
            for (float& v : acc) v = 0.f;
#pragma unroll
            for (float& v : acc_apart) v = 0.f;
        }
        int accumulate = kApart, previous = -1, before_previous = -1;
        // The rhs of the wgmmas on the right.
        auto right = [&](uint32_t rhs_at) {
            const uint32_t right_at = rhs_at + kLeft * 128;
            if (!kToLastBox) return wgmma_descriptor(right_at, kMnMajor);
            return wgmma_descriptor_of_boxes(right_at, 64,
                                             T::down(base, ring.stage, rhs_at) - right_at);
        };
        // Adds the product of 16 columns of lhs and rhs, given where they are.
        auto multiply_k16 = [&](uint32_t lhs_at, uint32_t rhs_at, int k16) {
            const uint64_t lhs = wgmma_descriptor(lhs_at, false) + k16 * kLhsStep;
            const uint64_t rhs = wgmma_descriptor(rhs_at, kMnMajor) + k16 * kRhsStep;
            wgmma<E, kLeft, 0, false, kMnMajor>(acc, lhs, rhs, accumulate);
            if constexpr (kRight > 0)
                wgmma<E, kRight, kLeft / 2, false, kMnMajor>(acc, lhs, right(rhs_at) + k16 * kRhsStep,
                                                             accumulate);
            if constexpr (kApart) {
                const uint32_t down_at = T::down(base, ring.stage, rhs_at);
                const uint64_t down = wgmma_descriptor(down_at, kMnMajor) + k16 * kRhsStep;
                wgmma<E, kSlice, 0, false, kMnMajor>(acc_apart, lhs, down, accumulate);
            }
            accumulate = 1;
        };
        // A step is the products that `issue` issues of a stage, given where its lhs and rhs are. It
        // releases the stage before, unless there is nothing else to do but to wait for both.
        auto step = [&](bool is_last, auto&& issue) {
            mbarrier_wait(full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * T::kStageBytes;
            issue(stage + half * (kLhsBytes / 2), stage + kLhsBytes);
            if (is_last) {
                before_previous = previous;
            } else {
                wgmma_wait<1>();
                if (previous >= 0) release(previous);
            }
            previous = ring.stage;
            ring.advance();
        };
        // There are not enough registers for a slice and the tile before.
        if (kSlices && !kApart)
            while (part < T::kParts) store_next();
        for (int i = 0; i < tile.steps; i++) {
            step(false, [&](uint32_t lhs_at, uint32_t rhs_at) {
                wgmma_fence();
#pragma unroll
                for (int k16 = 0; k16 < kTileK / 16; k16++) multiply_k16(lhs_at, rhs_at, k16);
                wgmma_commit();
            });
            // Not before two steps are on their way, or the tensor cores would wait for the third.
            if (!kSlices && i > 0 && part < T::kParts) store_next();
        }
        if constexpr (kSlices) {
            wgmma_wait<0>();
            uint32_t slice[kSlice / 16][4];
#pragma unroll
            for (int i = 0; i < kSlice / 4; i++) {
                const float* v = kApart ? &acc_apart[2 * i] : &acc[T::kRhsCols / 2 + 2 * i];
                const float scale = p.scale_of(tile.slice(p) * kSlice + i / 2 * 8);
                slice[i / 4][i % 4] = pack_saturated<E>(v[0] * scale, v[1] * scale);
            }
            if (tile.tells(p)) {
                const int col0 = tile.slice(p) * kSlice;
#pragma unroll
                for (int i = 0; i < kSlice / 16; i++)
                    store_slice(p, slice[i], row0 + warp * 16, col0 + i * 16);
            }
            __syncwarp();
            if (lane == 0) mbarrier_arrive(sliced(base));
            if (kApart || p.slices == 1)
                step(true, [&](uint32_t, uint32_t rhs_at) {
                    wgmma_fence();
#pragma unroll
                    for (int i = 0; i < kSlice / 16; i++) {
                        const uint64_t rhs = wgmma_descriptor(rhs_at, kMnMajor) + i * kRhsStep;
                        wgmma_of_registers<E, kLeft, 0, kMnMajor>(acc, slice[i], rhs);
                        if constexpr (kRight > 0)
                            wgmma_of_registers<E, kRight, kLeft / 2, kMnMajor>(
                                acc, slice[i], right(rhs_at) + i * kRhsStep);
                    }
                    wgmma_commit();
                });
        }
        // Slices are made by tiles that nobody shares.
        const int r = tile.ranks(p, kMnMajor);
        if (kSlices ? !kApart && p.slices > 1 : !tiles.leaves(tile))
            for (int r0 = 0; r0 < r; r0 += kTileK)
                step(r0 + kTileK >= r, [&](uint32_t lhs_at, uint32_t rhs_at) {
                    // One by one, since branches between wgmmas would serialise them.
                    for (int k16 = 0; k16 < min((r - r0 + 15) / 16, kTileK / 16); k16++) {
                        wgmma_fence();
                        multiply_k16(lhs_at, rhs_at, k16);
                        wgmma_commit();
                    }
                });
        // While the last products run.
        const bool leaves = tiles.leaves(tile), finishes = tiles.finishes(tile);
        tiles.advance(tile);
        const Tile<kN> next = tiles.tile();
        if (!kSlices)
            while (part < T::kParts) store_next();
        wgmma_wait<0>();
        if (before_previous >= 0) release(before_previous);
        release(previous);
        if constexpr (!kSlices) {
            if (leaves) {
                leave_partial(p, acc);
                __syncwarp();
                if (lane == 0) mbarrier_arrive(left(base));
                return next;
            }
            if (finishes) add_partial(p, acc);
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
        while (!tiles.done() && tile.makes_slice) {
            tile = multiply_tile(tile, std::true_type{});
            if constexpr (T::kDownApart) {
                // Both warpgroups have read down, and the boxes may take its place; and down theirs.
                named_barrier<256>(3);
                if (tiles.done() || !tile.makes_slice) break;
                while (part < T::kParts) store_next();
                if (threadIdx.x % 128 == 0) {
                    tma_store_wait_read<0>();
                    mbarrier_arrive_remote(stored(base), 0);
                    mbarrier_arrive_remote(stored(base), 1);
                }
            }
        }
    }
    while (!tiles.done()) tile = multiply_tile(tile, std::false_type{});
    while (part < T::kParts) store_next();
    // Shared memory stays until the last stores have read it.
    if (threadIdx.x % 128 == 0) tma_store_wait_read<0>();
}
