// Flags in global memory, by which CTAs of one launch wait for one another.
#pragma once

#include <cstdint>

// What this CTA has written before its last barrier is visible to who sees the flag. By one thread.
__device__ __forceinline__ void publish(uint32_t* flag) {
    asm volatile(
        "fence.acq_rel.gpu;\n"
        "red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(flag)
        : "memory");
}

// By every thread that reads what `count` publications guard.
__device__ __forceinline__ void wait_for(const uint32_t* flag, uint32_t count) {
    uint32_t value;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(flag) : "memory");
    } while (value < count);
}

// Whether this CTA is the last of `count` to arrive, by all of its threads: what the others wrote
// before they arrived is then visible to them. The counter is zero again behind the last.
__device__ __forceinline__ bool is_last_to_arrive(uint32_t* arrivals, uint32_t count) {
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicInc(arrivals, count - 1) == count - 1;
        __threadfence();
    }
    __syncthreads();
    return is_last;
}

// By one thread of each waiter, after its last wait. The last of them resets the flags: a CUDA
// graph can replay.
__device__ __forceinline__ void waited(uint32_t* done, uint32_t waiters, uint32_t* flags,
                                       int count) {
    if (atomicInc(done, waiters - 1) == waiters - 1) {
        __threadfence();
        for (int i = 0; i < count; i++) flags[i] = 0;
    }
}
