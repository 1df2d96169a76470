// wgmma: a warpgroup's 64×kCols product over 16 columns of k, by the tensor cores.
#pragma once

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

#define REGISTERS(a, b, c, d, e, f, g, h) \
    "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h
#define REGISTERS_4 "%0, %1, %2, %3"
#define REGISTERS_8 REGISTERS(0, 1, 2, 3, 4, 5, 6, 7)
#define REGISTERS_16 REGISTERS_8 ", " REGISTERS(8, 9, 10, 11, 12, 13, 14, 15)
#define REGISTERS_32                               \
    REGISTERS_16 ", "                              \
    REGISTERS(16, 17, 18, 19, 20, 21, 22, 23) ", " \
    REGISTERS(24, 25, 26, 27, 28, 29, 30, 31)
#define REGISTERS_40 REGISTERS_32 ", " REGISTERS(32, 33, 34, 35, 36, 37, 38, 39)
#define REGISTERS_64                               \
    REGISTERS_40 ", "                              \
    REGISTERS(40, 41, 42, 43, 44, 45, 46, 47) ", " \
    REGISTERS(48, 49, 50, 51, 52, 53, 54, 55) ", " \
    REGISTERS(56, 57, 58, 59, 60, 61, 62, 63)
#define REGISTERS_72 REGISTERS_64 ", " REGISTERS(64, 65, 66, 67, 68, 69, 70, 71)
#define REGISTERS_88                                 \
    REGISTERS_72 ", "                                \
    REGISTERS(72, 73, 74, 75, 76, 77, 78, 79) ", " \
    REGISTERS(80, 81, 82, 83, 84, 85, 86, 87)
#define REGISTERS_96 REGISTERS_88 ", " REGISTERS(88, 89, 90, 91, 92, 93, 94, 95)
#define REGISTERS_112                                        \
    REGISTERS_96 ", "                                        \
    REGISTERS(96, 97, 98, 99, 100, 101, 102, 103) ", "     \
    REGISTERS(104, 105, 106, 107, 108, 109, 110, 111)
#define REGISTERS_128                                        \
    REGISTERS_112 ", "                                       \
    REGISTERS(112, 113, 114, 115, 116, 117, 118, 119) ", " \
    REGISTERS(120, 121, 122, 123, 124, 125, 126, 127)
#define OPERANDS_8(i)                                                                         \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define OPERANDS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OPERANDS_16(i) OPERANDS_8(i), OPERANDS_8(i + 8)
#define OPERANDS_32(i) OPERANDS_16(i), OPERANDS_16(i + 16)
#define OPERANDS_40(i) OPERANDS_32(i), OPERANDS_8(i + 32)
#define OPERANDS_64(i) OPERANDS_32(i), OPERANDS_32(i + 32)
#define OPERANDS_72(i) OPERANDS_64(i), OPERANDS_8(i + 64)
#define OPERANDS_88(i) OPERANDS_72(i), OPERANDS_8(i + 72), OPERANDS_8(i + 80)
#define OPERANDS_96(i) OPERANDS_64(i), OPERANDS_32(i + 64)
#define OPERANDS_112(i) OPERANDS_96(i), OPERANDS_16(i + 96)
#define OPERANDS_128(i) OPERANDS_64(i), OPERANDS_64(i + 64)

// The operands behind the accumulators have the numbers a to e.
#define WGMMA(type, cols, registers, a, b, c, d_, e)                                       \
    asm volatile(                                                                          \
        "{\n"                                                                              \
        ".reg .pred p;\n"                                                                  \
        "setp.ne.b32 p, %" #c ", 0;\n"                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #cols "k16.f32." type "." type " {"            \
        REGISTERS_##registers "}, %" #a ", %" #b ", p, 1, 1, %" #d_ ", %" #e ";\n"         \
        "}\n"                                                                              \
        : OPERANDS_##registers(kAt)                                                        \
        : "l"(lhs), "l"(rhs), "r"(accumulate), "n"(kLhs == Major::MN ? 1 : 0),                \
          "n"(kRhs == Major::MN ? 1 : 0))
// lhs in registers; it is added to what is there.
#define WGMMA_OF_REGISTERS(type, cols, registers, a, b, c, d_, e, f)                       \
    asm volatile(                                                                          \
        "wgmma.mma_async.sync.aligned.m64n" #cols "k16.f32." type "." type " {"            \
        REGISTERS_##registers "}, {%" #a ", %" #b ", %" #c ", %" #d_ "}, %" #e             \
        ", 1, 1, 1, %" #f ";\n"                                                            \
        : OPERANDS_##registers(kAt)                                                        \
        : "r"(lhs[0]), "r"(lhs[1]), "r"(lhs[2]), "r"(lhs[3]), "l"(rhs),                    \
          "n"(kRhs == Major::MN ? 1 : 0))
#define WGMMA_OF_REGISTERS_OF_COLS(type)                                 \
    if constexpr (kCols == 256) {                                        \
        WGMMA_OF_REGISTERS(type, 256, 128, 128, 129, 130, 131, 132, 133); \
    } else if constexpr (kCols == 192) {                                 \
        WGMMA_OF_REGISTERS(type, 192, 96, 96, 97, 98, 99, 100, 101);     \
    } else if constexpr (kCols == 176) {                                 \
        WGMMA_OF_REGISTERS(type, 176, 88, 88, 89, 90, 91, 92, 93);       \
    } else if constexpr (kCols == 144) {                                 \
        WGMMA_OF_REGISTERS(type, 144, 72, 72, 73, 74, 75, 76, 77);       \
    } else if constexpr (kCols == 128) {                                 \
        WGMMA_OF_REGISTERS(type, 128, 64, 64, 65, 66, 67, 68, 69);       \
    } else if constexpr (kCols == 80) {                                  \
        WGMMA_OF_REGISTERS(type, 80, 40, 40, 41, 42, 43, 44, 45);        \
    } else {                                                             \
        static_assert(kCols == 64, "write it proj_weight above");               \
        WGMMA_OF_REGISTERS(type, 64, 32, 32, 33, 34, 35, 36, 37);        \
    }
#define WGMMA_OF_COLS(type)                                    \
    if constexpr (kCols == 256) {                              \
        WGMMA(type, 256, 128, 128, 129, 130, 131, 132);        \
    } else if constexpr (kCols == 224) {                       \
        WGMMA(type, 224, 112, 112, 113, 114, 115, 116);        \
    } else if constexpr (kCols == 192) {                       \
        WGMMA(type, 192, 96, 96, 97, 98, 99, 100);             \
    } else if constexpr (kCols == 176) {                       \
        WGMMA(type, 176, 88, 88, 89, 90, 91, 92);              \
    } else if constexpr (kCols == 144) {                       \
        WGMMA(type, 144, 72, 72, 73, 74, 75, 76);              \
    } else if constexpr (kCols == 128) {                       \
        WGMMA(type, 128, 64, 64, 65, 66, 67, 68);              \
    } else if constexpr (kCols == 80) {                        \
        WGMMA(type, 80, 40, 40, 41, 42, 43, 44);               \
    } else if constexpr (kCols == 64) {                        \
        WGMMA(type, 64, 32, 32, 33, 34, 35, 36);               \
    } else if constexpr (kCols == 32) {                        \
        WGMMA(type, 32, 16, 16, 17, 18, 19, 20);               \
    } else if constexpr (kCols == 16) {                        \
        WGMMA(type, 16, 8, 8, 9, 10, 11, 12);                  \
    } else {                                                   \
        static_assert(kCols == 8, "write it proj_weight above");      \
        WGMMA(type, 8, 4, 4, 5, 6, 7, 8);                      \
    }

// d (64×kCols) = lhs (64×16) · rhsᵀ (kCols×16) + (accumulate ? d : 0), by one warpgroup; d's floats
// are those from kAt on.
template <typename E, int kCols, Major kLhs, Major kRhs, int kAt = 0, int kFloats>
__device__ __forceinline__ void wgmma(float (&d)[kFloats], uint64_t lhs, uint64_t rhs,
                                      int accumulate) {
    static_assert(kAt + kCols / 2 <= kFloats);
    if constexpr (std::is_same_v<E, __half>) {
        WGMMA_OF_COLS("f16");
    } else {
        WGMMA_OF_COLS("bf16");
    }
}

// d += lhs · rhsᵀ, with a warp's 16×16 of lhs in registers, packed, as accumulators hold them.
template <typename E, int kCols, Major kRhs, int kAt = 0, int kFloats>
__device__ __forceinline__ void wgmma_of_registers(float (&d)[kFloats], const uint32_t (&lhs)[4],
                                                   uint64_t rhs) {
    static_assert(kAt + kCols / 2 <= kFloats);
    if constexpr (std::is_same_v<E, __half>) {
        WGMMA_OF_REGISTERS_OF_COLS("f16");
    } else {
        WGMMA_OF_REGISTERS_OF_COLS("bf16");
    }
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
