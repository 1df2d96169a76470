// Dropout in shared memory and in the registers of a warpgroup.
#pragma once

#include "../common/dropout.cuh"
#include "wgmma.cuh"

// Drops elements of a box of 64×64 of X, from (row0, col0) on, by a warpgroup. A fence and a barrier
// must follow before wgmma reads it.
__device__ __forceinline__ void drop_box(const DropoutMask& mask, uint32_t box, int row0,
                                         int col0) {
    const int row = threadIdx.x % 128 / 2, chunk = threadIdx.x % 2 * 4;
    drop_32(mask, row0 + row, col0 + chunk * 8, [&](int i) {
        return box + row * 128 + ((chunk + i) ^ row % 8) * 16;
    });
}

// Of a warp's 16×64 of X, as operands of wgmma hold it: which elements are kept, by the signs of
// halves, and the elements.
struct KeptOperands {
    uint32_t signs[4][4];

    // Of those from (row0, col0) on.
    __device__ __forceinline__ void make(const DropoutMask& mask, int row0, int col0) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int eight = i % 2;
            const DropoutWords words =
                mask.words(row0 + eight * 8 + lane / 4, col0 + i / 2 * 32, lane % 4);
#pragma unroll
            for (int j = 0; j < 4; j++)
                signs[i / 2 * 2 + j / 2][j % 2 * 2 + eight] = mask.kept(words.of[j]);
        }
    }

    // Out of a K-major tile whose rows are at multiples of 128 bytes: operand[i] is 16 columns.
    __device__ __forceinline__ void load(uint32_t (&operand)[4][4], uint32_t tile) const {
        const int lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            ldmatrix_x4(operand[i], tile + row * 128 + ((2 * i + lane / 16) ^ row % 8) * 16);
#pragma unroll
            for (int j = 0; j < 4; j++) operand[i][j] &= halves_of_signs(signs[i][j]);
        }
    }
};

// Which elements are kept of a warp's 16×kCols of dX, from (row0, col0) on: a bit for each of a
// lane's. Computed a call of Philox at a time, so that wgmmas hide it.
template <int kCols>
struct KeptBits {
    static constexpr int kCalls = kCols / 16;  // of 8 rows and 32 columns
    static_assert(kCols % 64 == 0);
    uint32_t bits[kCols / 64];
    int calls = 0;

    // The next call's. Later calls shift the bits of earlier ones up.
    __device__ __forceinline__ void add(const DropoutMask& mask, int row0, int col0) {
        const int lane = reread_thread_index() % 32;
        const DropoutWords words =
            mask.words(row0 + calls % 2 * 8 + lane / 4, col0 + calls / 2 * 32, lane % 4);
        uint32_t two = 0;  // bits 0 to 3 and 16 to 19
#pragma unroll
        for (int i = 0; i < 4; i++) two |= (mask.kept(words.of[i]) & 0x80008000) >> (15 - i);
        const uint32_t eight = (two | two >> 12) & 0xff;
#pragma unroll
        for (int i = kCols / 64 - 1; i > 0; i--)
            bits[i] = __funnelshift_l(bits[i - 1], bits[i], 8);
        bits[0] = bits[0] << 8 | eight;
        calls++;
    }

    // Given all calls: whether a lane's n-th accumulator of so many columns is kept.
    __device__ __forceinline__ bool keeps(int n) const {
        // Accumulators are, for each 8 columns, two of the first 8 rows, and two of the others.
        const int call = n / 16 * 2 + n / 2 % 2, eight = n % 16 / 4, high = n % 2;
        const int at = (kCalls - 1 - call) * 8 + high * 4 + eight;
        return bits[at / 32] >> at % 32 & 1;
    }
};
