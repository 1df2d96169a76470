// The instructions of sm_90a that the kernels use, one function each, destination first. wgmma is
// in wgmma.cuh.
#pragma once

#include "../common/pdl.cuh"
#include "../common/shared.cuh"
#include "manifest/sm90a/ptx.cuh"

// A CUtensorMap, whose C type has another alignment in every CUDA major version.
struct alignas(64) TensorMap {
    uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128);

// ---- Threads, registers -----------------------------------------------------------------------

// True in one thread of a converged warp.
//
// NOTES: ptxas knows that it is one thread. Behind any other condition it loops over the warp's
// threads for every TMA instruction: 75 clocks each at best.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.b32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(elected));
    return elected;
}

// The index of the warp or the warpgroup, uniform in ptxas's eyes: descriptors are then computed in
// uniform registers. Moving them there costs a fifth of the wgmma rate.
__device__ __forceinline__ int warp_index() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }
__device__ __forceinline__ int warpgroup_index() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }

// threadIdx.x, read anew: values derived from it would otherwise occupy registers that accumulators
// need.
__device__ __forceinline__ int reread_thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(index));
    return index;
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// A barrier of `kThreads` threads of the CTA; id 0 is __syncthreads.
template <int kThreads>
__device__ __forceinline__ void bar_sync(int id) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "n"(kThreads) : "memory");
}

// ---- Clusters ---------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.aligned;\n"
        "barrier.cluster.wait.aligned;\n" ::
            : "memory");
}

// The two halves of cluster_sync, for diverged threads too.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive;\n" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait;\n" ::: "memory");
}

// The DSMEM address of the same shared memory in a CTA of the cluster.
__device__ __forceinline__ uint32_t map_to_cta(uint32_t address, int rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// Stores four floats to DSMEM; completes 16 bytes of the barrier in that CTA.
__device__ __forceinline__ void st_async(uint32_t to, const float* v, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
        "[%5];\n" ::"r"(to),
        "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
        : "memory");
}

// ---- mbarriers, by their shared address -------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the cluster and the TMA; a barrier of all users must
// follow.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

// Arrives, and adds bytes for TMA loads to complete.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

// Arrives at the barrier of the same address in a CTA of the cluster.
//
// NOTES: without `.release.cluster`, which puts a MEMBAR.ALL.GPU in front of every arrive (1.5× the
// GEMM's time). What is released are reads that a wgmma wait has completed.
__device__ __forceinline__ void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(map_to_cta(barrier, rank))
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

// ---- TMA: boxes of a matrix, at (row, col) of their first element -----------------------------

__device__ __forceinline__ void tma_load(uint32_t to, const TensorMap& map, int row, int col,
                                         uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
        "l"(&map), "r"(col), "r"(row), "r"(barrier)
        : "memory");
}

// The same for data that is read once: it is the first to leave the L2.
__device__ __forceinline__ void tma_load_evict_first(uint32_t to, const TensorMap& map, int row,
                                                     int col, uint32_t barrier) {
    constexpr uint64_t kEvictFirst = 0x12f0000000000000;
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
        "l"(&map), "r"(col), "r"(row), "r"(barrier), "l"(kEvictFirst)
        : "memory");
}

// Multicast to the same shared address of both CTAs of a cluster, and to the barrier of each.
__device__ __forceinline__ void tma_load_multicast(uint32_t to, const TensorMap& map, int row,
                                                   int col, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
        "l"(&map), "r"(col), "r"(row), "r"(barrier), "h"((uint16_t)3)
        : "memory");
}

// Into the L2 only.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map, int row, int col) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];\n" ::"l"(&map),
                 "r"(col), "r"(row)
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

__device__ __forceinline__ void prefetch_tensormap(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}

// Orders this thread's ordinary writes of shared memory before TMA and wgmma read it.
__device__ __forceinline__ void fence_proxy_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Orders global memory that this thread has seen before TMA loads that it issues from here on.
__device__ __forceinline__ void fence_proxy_async_global() {
    asm volatile("fence.proxy.async.global;\n" ::: "memory");
}

// ---- Shared memory ----------------------------------------------------------------------------

// The CTA's dynamic shared memory, from a multiple of 1024 bytes on: the 128-byte swizzle needs
// that.
__device__ __forceinline__ uint32_t shared_base() {
    extern __shared__ unsigned char shared[];
    return (shared_address(shared) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

// The fragments of a warp's 16×16 of an mma's lhs: each lane has the address of a row of 16 bytes,
// of rows 0 to 15, then of the same eight columns on.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// Four 8×8 matrices of 16-bit pairs, as mma and wgmma accumulators hold them, into rows of 16
// bytes.
__device__ __forceinline__ void stmatrix_x4(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(to),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// Two of them transposed.
__device__ __forceinline__ void stmatrix_x2_transposed(uint32_t to, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};\n" ::"r"(to),
                 "r"(a), "r"(b)
                 : "memory");
}

__device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}

__device__ __forceinline__ void add_from_shared(float (&v)[4], uint32_t from) {
    const uint4 u = load_shared(from);
    v[0] += __uint_as_float(u.x), v[1] += __uint_as_float(u.y);
    v[2] += __uint_as_float(u.z), v[3] += __uint_as_float(u.w);
}
