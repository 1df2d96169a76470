// From accumulators to memory.
//
// A warp's wgmma accumulators, 16×N: lane l holds rows l / 4 and l / 4 + 8, columns l % 4 * 2 and
// the next, of every 8 columns; two floats of the upper row, then two of the lower.
#pragma once

#include "ptx.cuh"

// Two neighbours in a row of 16-bit elements.
__device__ __forceinline__ void store_pair(void* matrix, int row, int col, int row_stride,
                                           uint32_t pair) {
    auto* to = static_cast<uint16_t*>(matrix) + (int64_t)row * row_stride + col;
    *reinterpret_cast<uint32_t*>(to) = pair;
}

// Stores rows of 16-bit elements, `eights` times 8 columns each, from shared memory, where they lie
// `pitch` bytes apart. By `threads` threads, of which this is number `thread`.
__device__ __forceinline__ void store_rows(uint16_t* out, int row_stride, uint32_t from, int pitch,
                                           int rows, int eights, int thread, int threads) {
    for (int i = thread; i < rows * eights; i += threads) {
        const int row = i / eights, col = i % eights * 8;
        const uint4 v = load_shared(from + row * pitch + col * 2);
        *reinterpret_cast<uint4*>(out + (int64_t)row * row_stride + col) = v;
    }
}
