// wgmma: a warpgroup's 64×kCols product over 16 columns of k, by the tensor cores.
#pragma once

#include "manifest/sm90a/wgmma_asm.cuh"
#include "smem_tile.cuh"

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// d (64×kCols) = lhs (64×16) · rhsᵀ (kCols×16) + (accumulate ? d : 0), by one warpgroup; d's floats
// start at kAt. Widths: kernels/manifest/constants.rs.
template <typename E, int kCols, Major kLhs, Major kRhs, int kAt = 0, int kFloats>
__device__ __forceinline__ void wgmma(float (&d)[kFloats], uint64_t lhs, uint64_t rhs,
                                      int accumulate) {
    static_assert(kAt + kCols / 2 <= kFloats, "the accumulators have fewer columns");
    WgmmaAsm<E, kCols>::template shared<kLhs == Major::MN, kRhs == Major::MN, kAt>(d, lhs, rhs,
                                                                                 accumulate);
}

// d += lhs · rhsᵀ, with a warp's 16×16 of lhs in registers, packed, as accumulators hold them.
template <typename E, int kCols, Major kRhs, int kAt = 0, int kFloats>
__device__ __forceinline__ void wgmma_of_registers(float (&d)[kFloats], const uint32_t (&lhs)[4],
                                                   uint64_t rhs) {
    static_assert(kAt + kCols / 2 <= kFloats, "the accumulators have fewer columns");
    WgmmaAsm<E, kCols>::template registers<kRhs == Major::MN, kAt>(d, lhs, rhs);
}

// d += lhs · rhsᵀ over all of k of two tiles in shared memory, as one group.
template <typename E, int kCols, typename Lhs, typename Rhs, int kFloats>
__device__ __forceinline__ void wgmma_group(float (&d)[kFloats], uint64_t lhs, uint64_t rhs,
                                            int& accumulate) {
    static_assert(Lhs::kK == Rhs::kK, "both operands have the same stretch of k");
    wgmma_fence();
#pragma unroll
    for (int k16 = 0; k16 < Lhs::kK / 16; k16++) {
        wgmma<E, kCols, Lhs::kMajor, Rhs::kMajor>(d, lhs + k16 * Lhs::kStepK16,
                                                  rhs + k16 * Rhs::kStepK16, accumulate);
        accumulate = 1;
    }
    wgmma_commit();
}

// The same over the first `cols` columns of k only, a group for each 16: branches between the
// wgmmas of one group would serialise them.
template <typename E, int kCols, typename Lhs, typename Rhs, int kFloats>
__device__ __forceinline__ void wgmma_groups(float (&d)[kFloats], uint64_t lhs, uint64_t rhs,
                                             int cols) {
#pragma unroll 1
    for (int k16 = 0; k16 < min((cols + 15) / 16, Lhs::kK / 16); k16++) {
        wgmma_fence();
        wgmma<E, kCols, Lhs::kMajor, Rhs::kMajor>(d, lhs + k16 * Lhs::kStepK16,
                                                  rhs + k16 * Rhs::kStepK16, 1);
        wgmma_commit();
    }
}
