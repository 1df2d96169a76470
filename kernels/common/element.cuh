// bf16 and f16 elements: conversion from and to f32, round to nearest even.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ __forceinline__ void round_to(__nv_bfloat16& to, float v) { to = __float2bfloat16(v); }
__device__ __forceinline__ void round_to(__half& to, float v) { to = __float2half(v); }
__device__ __forceinline__ void round_to(float& to, float v) { to = v; }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(float v) { return v; }

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

// S and dS. An f16 S beyond ±65504 saturates: as inf it would make inf · 0 = NaN of a zero in B.
// NaN stays NaN. bf16 has the range of f32 and rounds as above. H, dX and the gradients overflow
// to inf.
template <typename E>
__device__ __forceinline__ void round_saturated_to(E& to, float v) {
    if constexpr (std::is_same_v<E, __half>) {
        asm("cvt.rn.satfinite.f16.f32 %0, %1;\n"
            : "=h"(reinterpret_cast<unsigned short&>(to))
            : "f"(v));
    } else {
        round_to(to, v);
    }
}

template <typename E>
__device__ __forceinline__ uint32_t pack_saturated(float low, float high) {
    if constexpr (std::is_same_v<E, __half>) {
        uint32_t two;
        asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;\n" : "=r"(two) : "f"(high), "f"(low));
        return two;
    } else {
        return pack<E>(low, high);
    }
}

// For code that S and H share: saturates S, not H.
// NOTES: a select in asm. From `?:` ptxas makes a branch for every pair.
template <typename E>
__device__ __forceinline__ uint32_t pack_saturated_if(bool saturates, float low, float high) {
    if constexpr (std::is_same_v<E, __half>) {
        uint32_t two;
        asm("{\n"
            ".reg .pred saturates;\n"
            ".reg .b32 plain, saturated;\n"
            "setp.ne.u32 saturates, %3, 0;\n"
            "cvt.rn.f16x2.f32 plain, %1, %2;\n"
            "cvt.rn.satfinite.f16x2.f32 saturated, %1, %2;\n"
            "selp.b32 %0, saturated, plain, saturates;\n"
            "}\n"
            : "=r"(two)
            : "f"(high), "f"(low), "r"((uint32_t)saturates));
        return two;
    } else {
        return pack<E>(low, high);
    }
}
