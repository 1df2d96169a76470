// What sm_90a has that kernels here use: mbarriers, the tensor memory accelerator (TMA), clusters and
// register reallocation; wgmma.cuh has its products. Thin wrappers, one instruction each,
// destination first.
#pragma once

#include "../common/shared.cuh"

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
