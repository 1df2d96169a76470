// Flags in global memory, by which CTAs of one launch wait for one another.
#pragma once

#include "ptx.cuh"

// flags[0] counts the waiters that are done; flags[1 + i] counts what is published of row block i.
// All are zero before a launch and after it: the last waiter resets them, so that a CUDA graph can
// replay.
struct GridFlags {
    uint32_t* flags;

    // What this thread has written, or seen written through a barrier, is visible to who sees the
    // flag.
    static __device__ __forceinline__ void publish(uint32_t* flag) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(flag) : "memory");
    }
    __device__ __forceinline__ void publish(int i) const { publish(&flags[1 + i]); }

    // By one thread, before it loads what `count` publications of the row block guard.
    __device__ __forceinline__ void wait(int i, uint32_t count) const {
        while (load_acquire(&flags[1 + i]) < count) {
        }
        fence_proxy_async_global();
    }

    // By each of the waiters, once, after its last wait: whether it is the last of them.
    __device__ __forceinline__ bool is_last(uint32_t waiters) const {
        const uint32_t last = waiters - 1;
        uint32_t before;
        asm volatile(
            "fence.acq_rel.gpu;\n"
            "atom.inc.relaxed.gpu.global.u32 %0, [%1], %2;\n"
            "fence.acq_rel.gpu;\n"
            : "=r"(before)
            : "l"(flags), "r"(last)
            : "memory");
        return before == last;
    }
    // The same; the last resets the flags of `rows` rows.
    __device__ __forceinline__ void done(uint32_t waiters, int rows, int rows_of_flag) const {
        if (is_last(waiters))
            for (int i = 0; i * rows_of_flag < rows; i++) flags[1 + i] = 0;
    }

    static __device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
        uint32_t value;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(value) : "l"(flag) : "memory");
        return value;
    }
};
