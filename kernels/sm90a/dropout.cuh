// Dropout in shared memory and in the registers of a warpgroup.
#pragma once

#include "../common/dropout.cuh"
#include "wgmma.cuh"

// Drops elements of a box of 64×64 of X, from (row0, col0) on, by a warpgroup. A fence and a
// barrier must follow before wgmma reads it.
__device__ __forceinline__ void drop_box(const DropoutMask& mask, uint32_t box, int row0,
                                         int col0) {
    const int row = threadIdx.x % 128 / 2, chunk = threadIdx.x % 2 * 4;
    drop_32(mask, row0 + row, col0 + chunk * 8, [&](int i) {
        return box + row * 128 + ((chunk + i) ^ row % 8) * 16;
    });
}

// Which elements are kept of a warp's 16×kCols of dX, from (row0, col0) on: for each box of 64
// columns a bit for each of a lane's accumulators, even columns in the low half. A box a round of
// one loop, so that little code needs few registers; of_box moves up, as registers have no index.
template <int kCols>
struct KeptBits {
    static constexpr int kBoxes = kCols / 64;
    static_assert(kCols % 64 == 0);
    uint32_t of_box[kBoxes];

    __device__ __forceinline__ void make(const DropoutMask& mask, int row0, int col0) {
        const int lane = reread_thread_index() % 32;
#pragma unroll 1
        for (int box = 0; box < kBoxes; box++) {
            uint32_t bits = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int half = i / 2, eight = i % 2;
                const DropoutWords words = mask.words(row0 + eight * 8 + lane / 4,
                                                      col0 + box * 64 + half * 32, lane % 4);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int at = half * 8 + j * 2 + eight;
                    bits |= mask.kept(words.of[j]) >> (15 - at) & 0x10001 << at;
                }
            }
#pragma unroll
            for (int i = 0; i < kBoxes - 1; i++) of_box[i] = of_box[i + 1];
            of_box[kBoxes - 1] = bits;
        }
    }

    // Whether the i-th accumulator of a box is kept, by the bits of the box. Accumulators are, for
    // each 8 columns, two of the first 8 rows, and two of the others.
    static __device__ __forceinline__ bool keeps(uint32_t bits, int i) {
        return bits >> (i / 2 + i % 2 * 16) & 1;
    }
};
