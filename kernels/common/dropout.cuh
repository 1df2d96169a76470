// Dropout of X, of which no mask is stored: whether an element is kept is computed where it is
// used, in S, dA and dX.
//
//   element (t, j) is kept if its 16 bits are at least threshold = round(65536 p)
//
// Its bits are of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// 2011), under the seed as key:
//
//   counter   4 ⌊j / 32⌋ + ⌊j mod 8 / 2⌋,  the 64 bits of offset + t,  0
//   word      ⌊j mod 32 / 8⌋, its low half for an even j
//
// So a call makes the eight elements of a row that a thread has of four neighbouring 8×8 matrices,
// in a fragment of an mma or in its accumulators. They depend on nothing else: not on tiles, nor
// on how a batch is cut.
#pragma once

#include "drops.cuh"
#include "manifest/common/dropout.cuh"
#include "shared.cuh"

// The parameters of a pass with dropout.
template <typename Params>
struct WithDropout {
    Params pass;
    Dropout dropout;
};

// The random words of a call, for columns of a row within 32 from a multiple of 32 on.
struct DropoutWords {
    uint32_t of[4];
};

// What the first two rounds of a call make of its row alone, and of its columns alone: the third is
// the first to multiply what depends on both.
struct DropoutRow {
    uint32_t of[3];
};
struct DropoutCols {
    uint32_t of[3];
};

// Each half filled with its sign.
__device__ __forceinline__ uint32_t halves_of_signs(uint32_t signs) {
    uint32_t halves;  // the sign of byte 1 twice, and that of byte 3
    asm("prmt.b32 %0, %1, 0, 0xbb99;\n" : "=r"(halves) : "r"(signs));
    return halves;
}

// A byte filled with the sign of each half, of `low` and then of `high`.
__device__ __forceinline__ uint32_t bytes_of_signs(uint32_t low, uint32_t high) {
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, 0xfdb9;\n" : "=r"(bytes) : "r"(low), "r"(high));
    return bytes;
}

struct DropoutMask {
    uint32_t seed[2], offset[2], threshold;
    float inv_keep;

    __device__ __forceinline__ explicit DropoutMask(const Dropout& d)
        : threshold(d.threshold), inv_keep(d.inv_keep) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            seed[i] = d.state == nullptr ? d.seed[i] : d.state[i];
            offset[i] = d.state == nullptr ? d.offset[i] : d.state[2 + i];
        }
    }

    static constexpr uint64_t kFactor0 = 0xd2511f53, kFactor1 = 0xcd9e8d57;
    static constexpr uint32_t kKeyStep0 = 0x9e3779b9, kKeyStep1 = 0xbb67ae85;

    __device__ __forceinline__ DropoutRow row(int row) const {
        const uint32_t low = offset[0] + row, high = offset[1] + (low < offset[0]);
        const uint64_t b = kFactor1 * high;
        const uint64_t a = kFactor0 * ((uint32_t)(b >> 32) ^ low ^ seed[0]);
        return {{(uint32_t)b, (uint32_t)(a >> 32) ^ (seed[1] + kKeyStep1), (uint32_t)a}};
    }

    // Columns col + 2 pair and the next, and 8, 16 and 24 columns on. col is a multiple of 32.
    __device__ __forceinline__ DropoutCols cols(int col, int pair) const {
        const uint64_t a = kFactor0 * (col / 8u + pair);
        const uint64_t b = kFactor1 * ((uint32_t)(a >> 32) ^ seed[1]);
        return {{(uint32_t)(b >> 32) ^ (seed[0] + kKeyStep0), (uint32_t)b, (uint32_t)a}};
    }

    // kCalls at once, of each row and columns.
    // NOTES: with kUnroll below 8 rounds are a loop, so that calls are computed side by side.
    // Unrolled, ptxas orders one behind the other where registers are few.
    template <int kCalls, int kUnroll = 8>
    __device__ __forceinline__ void words(DropoutWords (&words)[kCalls],
                                          const DropoutRow (&rows)[kCalls],
                                          const DropoutCols (&cols)[kCalls]) const {
#pragma unroll
        for (int i = 0; i < kCalls; i++) {
            const uint32_t(&row)[3] = rows[i].of, (&col)[3] = cols[i].of;
            words[i] = {{row[0] ^ col[0], col[1], row[1] ^ col[2], row[2]}};
        }
        uint32_t key[2] = {seed[0] + 2 * kKeyStep0, seed[1] + 2 * kKeyStep1};
#pragma unroll kUnroll
        for (int round = 2; round < 10; round++) {
#pragma unroll
            for (int i = 0; i < kCalls; i++) {
                uint32_t(&c)[4] = words[i].of;
                const uint64_t a = kFactor0 * c[0], b = kFactor1 * c[2];
                c[0] = (uint32_t)(b >> 32) ^ c[1] ^ key[0];
                c[2] = (uint32_t)(a >> 32) ^ c[3] ^ key[1];
                c[1] = (uint32_t)b, c[3] = (uint32_t)a;
            }
            key[0] += kKeyStep0, key[1] += kKeyStep1;
        }
    }
    __device__ __forceinline__ DropoutWords words(const DropoutRow& row,
                                                  const DropoutCols& cols) const {
        DropoutWords one[1];
        words(one, {row}, {cols});
        return one[0];
    }

    __device__ __forceinline__ bool keeps_low(uint32_t word) const {
        return word << 16 >= threshold << 16;
    }
    __device__ __forceinline__ bool keeps_high(uint32_t word) const {
        return word >= threshold << 16;
    }

    // Whether each of two elements is kept: the sign of its half.
    // NOTES: 15 bits of each are compared by a subtraction with the 16th set, so that no half
    // borrows from the other, and the 16th decides by which half of the range the threshold is in.
    // With a comparison for each a call takes 126 clocks of an H200 for a warp, not 100.
    __device__ __forceinline__ uint32_t kept(uint32_t word) const {
        const bool is_low = threshold <= 0x8000;
        const uint32_t least = (is_low ? threshold : threshold - 0x8000) * 0x10001;
        const uint32_t either = is_low ? ~0u : 0u;
        const uint32_t difference = (word | 0x80008000) - least;
        return (difference & word) | (difference & either) | (word & either);
    }

    // Two elements of 16 bits, of which those that are dropped become zeros.
    __device__ __forceinline__ uint32_t apply(uint32_t pair, uint32_t word) const {
        return pair & halves_of_signs(kept(word));
    }
};

__device__ __forceinline__ DropoutMask mask_of(const Dropout& dropout) {
    return DropoutMask(dropout);
}

// 32 columns from a multiple of 32 on.
struct DropoutCols32 {
    DropoutCols of[4];

    DropoutCols32() = default;
    __device__ __forceinline__ DropoutCols32(const DropoutMask& mask, int col) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) of[pair] = mask.cols(col, pair);
    }
};

// Drops 32 columns of a row in shared memory, by one thread: at(i) is where its i-th 16 bytes are.
template <typename At>
__device__ __forceinline__ void drop_32(const DropoutMask& mask, int row,
                                        const DropoutCols32& cols, At&& at) {
    uint32_t v[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(v[i][0]), "=r"(v[i][1]), "=r"(v[i][2]), "=r"(v[i][3])
                     : "r"(at(i))
                     : "memory");
    const DropoutRow of_row = mask.row(row);
    DropoutWords words[4];
    mask.words(words, {of_row, of_row, of_row, of_row}, cols.of);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++)
            v[i][pair] = mask.apply(v[i][pair], words[pair].of[i]);
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(at(i)), "r"(v[i][0]),
                     "r"(v[i][1]), "r"(v[i][2]), "r"(v[i][3])
                     : "memory");
    }
}
