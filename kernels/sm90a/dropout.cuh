// Dropout in shared memory and in the registers of a warpgroup.
#pragma once

#include "../common/dropout.cuh"
#include "wgmma.cuh"

// A thread's columns of a box of 64×64 of X, from col0 on.
__device__ __forceinline__ DropoutCols32 box_cols(const DropoutMask& mask, int col0) {
    return {mask, col0 + (int)threadIdx.x % 2 * 32};
}

// Drops elements of such a box, from row0 on, by a warpgroup. A fence and a barrier must follow
// before wgmma reads it.
__device__ __forceinline__ void drop_box(const DropoutMask& mask, uint32_t box, int row0,
                                         const DropoutCols32& cols) {
    const int row = threadIdx.x % 128 / 2, chunk = threadIdx.x % 2 * 4;
    drop_32(mask, row0 + row, cols, [&](int i) {
        return box + row * 128 + ((chunk + i) ^ row % 8) * 16;
    });
}

// Which elements are kept of a warp's 16×kCols of dX, from (row0, col0) on: for each box of 64
// columns a bit for each of a lane's accumulators. A box a round of one loop, so that little code
// needs few registers; of_box moves up, as registers have no index.
template <int kCols>
struct KeptBits {
    static constexpr int kBoxes = kCols / 64;
    static_assert(kCols % 64 == 0);
    uint32_t of_box[kBoxes];

    __device__ __forceinline__ void make(const DropoutMask& mask, int row0, int col0) {
        const int lane = reread_thread_index() % 32;
        const DropoutRow rows[2] = {mask.row(row0 + lane / 4), mask.row(row0 + 8 + lane / 4)};
#pragma unroll 1
        for (int box = 0; box < kBoxes; box++) {
            const DropoutCols left = mask.cols(col0 + box * 64, lane % 4),
                              right = mask.cols(col0 + box * 64 + 32, lane % 4);
            DropoutWords words[4];
            mask.words<4, 4>(words, {rows[0], rows[1], rows[0], rows[1]},
                             {left, left, right, right});
            uint32_t bits = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const DropoutWords &first = words[i / 4 * 2], &other = words[i / 4 * 2 + 1];
                bits |= bytes_of_signs(mask.kept(first.of[i % 4]), mask.kept(other.of[i % 4])) &
                        0x01010101 << i;
            }
#pragma unroll
            for (int i = 0; i < kBoxes - 1; i++) of_box[i] = of_box[i + 1];
            of_box[kBoxes - 1] = bits;
        }
    }

    // Whether the i-th accumulator of a box is kept, by the bits of the box. Accumulators are, for
    // each 8 columns, two of the first 8 rows, and two of the others: a byte of bits each.
    static __device__ __forceinline__ bool keeps(uint32_t bits, int i) {
        return bits >> (i / 4 + i % 4 * 8) & 1;
    }
};
