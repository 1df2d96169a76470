// Rounds f32 tensors to bf16 or f16, up to eight in one launch: dst[i] = round(src[i]) for every
// segment, a dense f32 tensor and a dense 16-bit tensor of as many elements. f16 overflows to inf.
//
// Callers: the refresh of the 16-bit copies of f32 master weights A and B.
//
// Alignment: 4 bytes for src, 2 for dst. Where src starts at a multiple of 16 bytes and dst at a
// multiple of 8, whole chunks are read and written four elements at a time; 16 bytes for both will
// do. No dst may overlap another tensor of the launch. A segment may be empty, or longer than 2^32.
//
// Bound by memory: 6 bytes an element.
//
// Grid: any, 1-D. Chunks of kChunk elements go to the CTAs in turns, through all segments; only the
// last chunk of a segment is shorter. Block: 256 threads, 8 elements of a chunk each.
// Writes every element once.
#include "../common/element.cuh"

#include "manifest/sm80/round.cuh"

// A whole chunk of aligned tensors. Here and below, all loads are in flight before the first store.
template <typename E>
__device__ __forceinline__ void round_aligned(E* dst, const float* src) {
    constexpr int kFours = kElements / 4;
    auto* to = reinterpret_cast<uint2*>(dst) + threadIdx.x;
    const auto* from = reinterpret_cast<const float4*>(src) + threadIdx.x;
    alignas(16) float v[kFours][4];
    alignas(8) E out[kFours][4];
#pragma unroll
    for (int i = 0; i < kFours; i++) reinterpret_cast<float4&>(v[i]) = from[i * kThreads];
#pragma unroll
    for (int i = 0; i < kFours; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) round_to(out[i][j], v[i][j]);
        to[i * kThreads] = reinterpret_cast<const uint2&>(out[i]);
    }
}

// The first `count` elements of a chunk, one at a time.
template <typename E>
__device__ __forceinline__ void round_unaligned(E* dst, const float* src, int count) {
    float v[kElements];
#pragma unroll
    for (int i = 0; i < kElements; i++) {
        const int at = i * kThreads + threadIdx.x;
        if (at < count) v[i] = src[at];
    }
#pragma unroll
    for (int i = 0; i < kElements; i++) {
        const int at = i * kThreads + threadIdx.x;
        if (at < count) round_to(dst[at], v[i]);
    }
}

template <typename E>
__device__ __forceinline__ void round(const RoundParams& p) {
    int64_t chunk = blockIdx.x;  // in segment i; past its end, in a later one
    for (int i = 0; i < p.count; i++) {
        const int64_t elements = p.elements[i], chunks = (elements + kChunk - 1) / kChunk;
        const float* src = p.src[i];
        E* dst = static_cast<E*>(p.dst[i]);
        const bool aligned = reinterpret_cast<uintptr_t>(src) % sizeof(float4) == 0 &&
                             reinterpret_cast<uintptr_t>(dst) % sizeof(uint2) == 0;
        for (; chunk < chunks; chunk += gridDim.x) {
            const int64_t start = chunk * kChunk;
            const int count = (int)min((int64_t)kChunk, elements - start);
            if (aligned && count == kChunk) {
                round_aligned(dst + start, src + start);
            } else {
                round_unaligned(dst + start, src + start, count);
            }
        }
        chunk -= chunks;
    }
}

#include "instances/sm80/round.cuh"
