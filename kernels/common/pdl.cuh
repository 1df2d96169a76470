// Programmatic dependent launch (PDL), in code for 9.0 on. Code for less is launched without it.
#pragma once

// Waits until the kernel before in the stream is done and its writes are visible. No-op unless the
// launch allows the overlap.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// Lets CTAs of the next kernel start where there is room, if its launch allows that. They may rely
// on nothing of this kernel before their own pdl_wait.
__device__ __forceinline__ void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
