// Dropout in shared memory and in the registers of a warpgroup.
#pragma once

#include "../common/dropout.cuh"
#include "wgmma.cuh"

// Drops elements of a box of 64×64 of X, K-major or MN-major, from (row0, col0) on, by a warpgroup
// on its way to wgmma. It has a named barrier of its own.
__device__ __forceinline__ void drop_box(const DropoutMask& mask, uint32_t box, int row0, int col0,
                                         int barrier) {
    const int row = threadIdx.x % 128 / 2, chunk = threadIdx.x % 2 * 4;
    drop_32(mask, row0 + row, col0 + chunk * 8, [&](int i) {
        return box + row * 128 + ((chunk + i) ^ row % 8) * 16;
    });
    fence_proxy_async_shared();
    bar_sync<128>(barrier);
}

// Loads a warp's 16×64 of X, from (row0, col0) on, out of a K-major tile, without what is dropped:
// lhs[i] is the operand of 16 columns. The tile's rows are at multiples of 128 bytes.
__device__ __forceinline__ void load_dropped(const DropoutMask& mask, uint32_t (&lhs)[4][4],
                                             uint32_t tile, int row0, int col0) {
    const int lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
    for (int i = 0; i < 4; i++)
        ldmatrix_x4(lhs[i], tile + row * 128 + ((2 * i + lane / 16) ^ row % 8) * 16);
#pragma unroll
    for (int block = 0; block < 2; block++)
#pragma unroll
        for (int eight = 0; eight < 2; eight++) {
            const DropoutWords words =
                mask.words(row0 + eight * 8 + lane / 4, col0 + block * 32, lane % 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t& pair = lhs[block * 2 + i / 2][i % 2 * 2 + eight];
                pair = mask.apply(pair, words.of[i]);
            }
        }
}

// Keeps additions in their place among the wgmmas, which ptxas otherwise serialises.
template <int kFloats>
__device__ __forceinline__ void pin_floats(float (&v)[kFloats]) {
#pragma unroll
    for (float& one : v) asm volatile("" : "+f"(one)::"memory");
}

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
