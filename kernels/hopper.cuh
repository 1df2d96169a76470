// What sm_90a has that kernels here use: mbarriers, the tensor memory accelerator (TMA), wgmma,
// clusters and register reallocation. Thin wrappers, one instruction each, destination first.
#pragma once

#include "mma.cuh"

// A CUtensorMap, whose C type has another alignment in every CUDA major version.
struct alignas(64) TensorMap {
    uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128);

// ---------------------------------------------------------------------------------------------
// Clusters and registers

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}

// True in one thread of a converged warp.
//
// NOTES: ptxas knows that it is one. Behind any other condition it makes a loop over the warp's threads of
// every TMA instruction, and a thread comes to issue one in 75 clocks at best.
__device__ __forceinline__ bool is_elected() {
    uint32_t is_elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.b32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(is_elected));
    return is_elected;
}

// All threads of all blocks of the cluster.
__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.aligned;\n"
        "barrier.cluster.wait.aligned;\n" ::
            : "memory");
}

// The two halves of cluster_sync, for threads apart from their warps too.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive;\n" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait;\n" ::: "memory");
}

// Where the same shared memory is of a block of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t address, int rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// Four floats into the shared memory of a block of the cluster, which completes 16 bytes of its barrier.
__device__ __forceinline__ void store_async(uint32_t to, const float* v, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
        "[%5];\n" ::"r"(to),
        "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
        : "memory");
}

// Until all that the kernel before in the stream has written is there to be read. Does nothing unless the
// launch allows the two to overlap.
__device__ __forceinline__ void wait_for_kernel_before() {
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

// Blocks of the next kernel may start where there is room for them, if its launch allows that. It may
// rely on nothing of this one before it waits.
__device__ __forceinline__ void let_next_kernel_start() {
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// A barrier of `kThreads` threads of this block; id 0 is __syncthreads.
template <int kThreads>
__device__ __forceinline__ void named_barrier(int id) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "n"(kThreads) : "memory");
}

// ---------------------------------------------------------------------------------------------
// mbarriers, by their shared address

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the cluster and to the TMA; a cluster_sync must follow.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Arrives, and adds the bytes that TMA loads are going to complete.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

// Arrives at the barrier of the same address in another block of the cluster.
//
// NOTES: without a `.release.cluster` qualifier. That would put a MEMBAR.ALL.GPU in front of every
// arrive, and what is released here are reads that a wgmma wait has already completed.
__device__ __forceinline__ void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}\n" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Where the steps of a block are in its ring of stages.
template <int kCount>
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kCount) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// The same of a number of stages that is not known before, and by steps of less than that.
struct RingOf {
    int count, stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ explicit RingOf(int count) : count(count) {}
    __device__ __forceinline__ void advance(int by) {
        stage += by;
        if (stage >= count) {
            stage -= count;
            phase ^= 1;
        }
    }
};

// Swizzled boxes lie at multiples of 1024 bytes; dynamic shared memory need not start at one.
__device__ __forceinline__ uint32_t shared_base() {
    extern __shared__ unsigned char shared[];
    return (shared_address(shared) + 1023) / 1024 * 1024;
}

// ---------------------------------------------------------------------------------------------
// Flags in global memory

// Everything that this thread has written, or seen written through a barrier, is visible to
// whoever sees the flag.
__device__ __forceinline__ void flag_add_release(uint32_t* flag) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(flag) : "memory");
}

// Counts up to `last` and starts again at 0. Returns the count before; whoever gets `last` sees what
// all the others had done.
__device__ __forceinline__ uint32_t count_round(uint32_t* count, uint32_t last) {
    uint32_t before;
    asm volatile("fence.acq_rel.gpu;\n"
                 "atom.inc.relaxed.gpu.global.u32 %0, [%1], %2;\n"
                 "fence.acq_rel.gpu;\n"
                 : "=r"(before)
                 : "l"(count), "r"(last)
                 : "memory");
    return before;
}

__device__ __forceinline__ uint32_t flag_load_acquire(const uint32_t* flag) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

// ---------------------------------------------------------------------------------------------
// TMA: boxes of a matrix, at (row, col) of their first element

__device__ __forceinline__ void tma_load(uint32_t to, const TensorMap& map, int row, int col,
                                         uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
        "l"(&map), "r"(col), "r"(row), "r"(barrier)
        : "memory");
}

// What nobody will read again soon: it is the first to leave the L2.
__device__ __forceinline__ void tma_load_once(uint32_t to, const TensorMap& map, int row, int col,
                                              uint32_t barrier) {
    constexpr uint64_t kEvictFirst = 0x12f0000000000000;
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
        "l"(&map), "r"(col), "r"(row), "r"(barrier), "l"(kEvictFirst)
        : "memory");
}

// Asks the L2 to have a box at hand.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map, int row, int col) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];\n" ::"l"(&map),
                 "r"(col), "r"(row)
                 : "memory");
}

// Into the same shared address of both blocks of a pair, and to the barrier of each.
__device__ __forceinline__ void tma_load_pair(uint32_t to, const TensorMap& map, int row, int col,
                                              uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
        "l"(&map), "r"(col), "r"(row), "r"(barrier), "h"((uint16_t)3)
        : "memory");
}

__device__ __forceinline__ void tma_store(const TensorMap& map, int row, int col, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n" ::
                     "l"(&map),
                 "r"(col), "r"(row), "r"(from)
                 : "memory");
}

// Makes a group of this thread's stores since the last.
__device__ __forceinline__ void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}

// Until all but `kPending` groups of this thread's stores have read their shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(kPending) : "memory");
}

// Orders this thread's ordinary writes of shared memory before TMA reads of it.
__device__ __forceinline__ void fence_shared_before_tma() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Orders what this thread has seen of global memory before TMA loads that it issues from here on.
__device__ __forceinline__ void fence_global_before_tma() {
    asm volatile("fence.proxy.async.global;\n" ::: "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// Four 8×8 matrices of 16-bit pairs, as mma and wgmma accumulators hold them, into rows of 16 bytes.
__device__ __forceinline__ void stmatrix_x4(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(to),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// Two of them, each transposed: a row of 16 bytes has what was a column.
__device__ __forceinline__ void stmatrix_x2_transposed(uint32_t to, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(to), "r"(a),
                 "r"(b)
                 : "memory");
}

// ---------------------------------------------------------------------------------------------
// Shared memory, 16 bytes at a time

__device__ __forceinline__ void store_shared(uint32_t to, const float* v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "f"(v[0]), "f"(v[1]),
                 "f"(v[2]), "f"(v[3])
                 : "memory");
}

__device__ __forceinline__ void add_shared(float (&v)[4], uint32_t from) {
    float u[4];
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
                 : "=f"(u[0]), "=f"(u[1]), "=f"(u[2]), "=f"(u[3])
                 : "r"(from)
                 : "memory");
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += u[i];
}

__device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}

// ---------------------------------------------------------------------------------------------
// Elements

// Two f32 rounded and packed, the first in the low half.
template <typename E>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    if constexpr (std::is_same_v<E, __half>) {
        const __half2 two = __floats2half2_rn(low, high);
        return reinterpret_cast<const uint32_t&>(two);
    } else {
        const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
        return reinterpret_cast<const uint32_t&>(two);
    }
}

// ---------------------------------------------------------------------------------------------
// wgmma

// How wgmma finds an operand in shared memory that TMA wrote with the 128-byte swizzle.
//
//   K-major    rows of 64 elements of k; eight rows make 1024 bytes. A k16 step is 32 bytes on.
//   MN-major   boxes of 64 rows of k, each 64 elements of m or n, 8192 bytes from box to box. A k16
//              step is 16 rows, 2048 bytes, on.
//
// The address field counts 16 bytes, so a descriptor is moved by adding bytes / 16 to it.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, bool mn_major) {
    const uint64_t leading = mn_major ? 8192 / 16 : 1, stride = 1024 / 16, swizzle_128 = 1;
    return (address & 0x3ffff) / 16 | leading << 16 | stride << 32 | swizzle_128 << 62;
}

// The same for an MN-major operand in other boxes: of 64 columns with the 128-byte swizzle, so many bytes
// apart, or in one of 16 with the 32-byte swizzle. A k16 step is 16 rows of a box on.
__device__ __forceinline__ uint64_t wgmma_descriptor_of_boxes(uint32_t address, int box_cols,
                                                              int box_bytes) {
    const uint64_t eight_rows = box_cols * 2 * 8, swizzle = box_cols == 64 ? 1 : 3;
    return (address & 0x3ffff) / 16 | (uint64_t)(box_bytes / 16) << 16 | eight_rows / 16 << 32 |
           swizzle << 62;
}

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
#define REGISTERS_128                                        \
    REGISTERS_96 ", "                                        \
    REGISTERS(96, 97, 98, 99, 100, 101, 102, 103) ", "     \
    REGISTERS(104, 105, 106, 107, 108, 109, 110, 111) ", " \
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
        : "l"(lhs), "l"(rhs), "r"(accumulate), "n"(kLhsMnMajor ? 1 : 0),                   \
          "n"(kRhsMnMajor ? 1 : 0))
// lhs in registers; it is added to what is there.
#define WGMMA_OF_REGISTERS(type, cols, registers, a, b, c, d_, e, f)                       \
    asm volatile(                                                                          \
        "wgmma.mma_async.sync.aligned.m64n" #cols "k16.f32." type "." type " {"            \
        REGISTERS_##registers "}, {%" #a ", %" #b ", %" #c ", %" #d_ "}, %" #e             \
        ", 1, 1, 1, %" #f ";\n"                                                            \
        : OPERANDS_##registers(kAt)                                                        \
        : "r"(lhs[0]), "r"(lhs[1]), "r"(lhs[2]), "r"(lhs[3]), "l"(rhs),                    \
          "n"(kRhsMnMajor ? 1 : 0))
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
        static_assert(kCols == 64, "write it down above");               \
        WGMMA_OF_REGISTERS(type, 64, 32, 32, 33, 34, 35, 36, 37);        \
    }
#define WGMMA_OF_COLS(type)                                    \
    if constexpr (kCols == 256) {                              \
        WGMMA(type, 256, 128, 128, 129, 130, 131, 132);        \
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
        static_assert(kCols == 8, "write it down above");      \
        WGMMA(type, 8, 4, 4, 5, 6, 7, 8);                      \
    }

// d (64×kCols) = lhs (64×16) · rhsᵀ (kCols×16) + (accumulate ? d : 0), by one warpgroup. Its floats
// are those from kAt on.
template <typename E, int kCols, int kAt, bool kLhsMnMajor, bool kRhsMnMajor, int kFloats>
__device__ __forceinline__ void wgmma(float (&d)[kFloats], uint64_t lhs, uint64_t rhs,
                                      int accumulate) {
    static_assert(kAt + kCols / 2 <= kFloats);
    if constexpr (std::is_same_v<E, __half>) {
        WGMMA_OF_COLS("f16");
    } else {
        WGMMA_OF_COLS("bf16");
    }
}

// d += lhs · rhsᵀ, where a warp's 16×16 of lhs lie in its registers as accumulators do, packed.
template <typename E, int kCols, int kAt, bool kRhsMnMajor, int kFloats>
__device__ __forceinline__ void wgmma_of_registers(float (&d)[kFloats], const uint32_t (&lhs)[4],
                                                   uint64_t rhs) {
    static_assert(kAt + kCols / 2 <= kFloats);
    if constexpr (std::is_same_v<E, __half>) {
        WGMMA_OF_REGISTERS_OF_COLS("f16");
    } else {
        WGMMA_OF_REGISTERS_OF_COLS("bf16");
    }
}
