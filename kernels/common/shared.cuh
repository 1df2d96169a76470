// Addresses in shared memory, and values in registers.
#pragma once

#include "element.cuh"

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Pins a value to its register: otherwise the compiler may compute it later, or again in every step
// of a loop.
template <typename T>
__device__ __forceinline__ void pin_register(T& value) {
    static_assert(sizeof(T) == 4);
    asm volatile("" : "+r"(value));
}
