// mma.sync, and its fragments from shared memory.
#pragma once

#include "../common/shared.cuh"

// Four 8×8 matrices of 16 bits, the rows of each at the addresses of eight lanes.
template <bool kTranspose>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t from) {
    if constexpr (kTranspose) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(from)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(from)
                     : "memory");
    }
}

#define MMA_SYNC(TYPE)                                                                            \
    ("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                               \
     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"                          \
     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                             \
     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// c (16×8) += a (16×16) · b (16×8), the fragments as PTX lays them out for m16n8k16.
template <typename E>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
    if constexpr (std::is_same_v<E, __half>) {
        asm MMA_SYNC("f16");
    } else {
        asm MMA_SYNC("bf16");
    }
}

// The same, in its place among the loads. NOTES: ptxas otherwise moves loads of a round behind all
// of its mma, or in front of them, and few are in flight or tensor cores wait.
template <typename E>
__device__ __forceinline__ void mma_in_place(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    if constexpr (std::is_same_v<E, __half>) {
        asm volatile MMA_SYNC("f16");
    } else {
        asm volatile MMA_SYNC("bf16");
    }
}

#undef MMA_SYNC
