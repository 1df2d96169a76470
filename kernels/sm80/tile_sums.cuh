// The sums of a CTA's tile, in the registers of its warps, and what becomes of them.
//
//   scale, drop                 multiply, or drop, elements
//   reduce_warps_k              adds the partial sums of warps along k, for the first of them
//   reduce_halves_k             the same for two warps, each of which keeps half
//   for_each_rounded_chunk      hands out eight columns at a time, rounded, from registers
//   for_each_chunk              the same in f32, through shared memory
#pragma once

#include "mma.cuh"

// kM×kN by kWarpsM·kWarpsN·kWarpsK warps. Warps along k hold a partial sum each.
template <typename E, int kM, int kN, int kWarpsM, int kWarpsN, int kWarpsK>
struct TileSums {
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
    static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
    static constexpr int kM16 = kWarpM / 16, kN16 = kWarpN / 16;
    // A warp's staging area in `for_each_chunk`; the padding keeps its rows off each other's banks.
    static constexpr int kStagingPitch = kWarpN + 8;
    static constexpr int kStagingBytes = 16 * kStagingPitch * 4;
    // Blocks of 16 rows that a warp has after reduce_halves_k.
    static constexpr int kStoredM16 = kM16 / (kWarpsK == 2 ? 2 : 1);
    static constexpr int kPartialFloats = kM16 * kN16 * 8 * 32;
    // Shared memory for the sums of other warps, and for staging areas.
    static constexpr int kReduceBytes = kWarpsM * kWarpsN * (kWarpsK - 1) * kPartialFloats * 4;
    static constexpr int kStagedBytes = kWarpsM * kWarpsN * kStagingBytes;
    static_assert(kM16 * 16 == kWarpM && kN16 * 16 == kWarpN);

    float acc[kM16][kN16 * 2][4];

    static __device__ __forceinline__ int warp() { return threadIdx.x / 32; }
    static __device__ __forceinline__ int warp_m() { return warp() % kWarpsM; }
    static __device__ __forceinline__ int warp_n() { return warp() / kWarpsM % kWarpsN; }
    static __device__ __forceinline__ int warp_k() { return warp() / (kWarpsM * kWarpsN); }

    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (int i = 0; i < kM16; i++)
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) acc[i][j][c] *= factor;
    }

    // Drops elements of the sum and scales the others. The tile is at (row0, col0) of the output;
    // col0 is a multiple of 32.
    template <typename Mask>
    __device__ __forceinline__ void drop(const Mask& mask, int row0, int col0) {
        static_assert(kWarpN % 32 == 0);
        const int lane = threadIdx.x % 32;
        row0 += warp_m() * kWarpM + lane / 4, col0 += warp_n() * kWarpN;
#pragma unroll
        for (int i = 0; i < kM16 * 2; i++) {
            const auto row = mask.row(row0 + i * 8);
#pragma unroll
            for (int j = 0; j < kN16 * 2; j += 4) {
                const auto words = mask.words(row, mask.cols(col0 + j * 8, lane % 4));
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    float* v = &acc[i / 2][j + c][i % 2 * 2];
                    v[0] = mask.keeps_low(words.of[c]) ? v[0] * mask.inv_keep : 0.f;
                    v[1] = mask.keeps_high(words.of[c]) ? v[1] * mask.inv_keep : 0.f;
                }
            }
        }
    }

    // Adds the partial sums of the warps along k, the first one's first. Afterwards only the warps
    // with warp_k() == 0 hold the sum.
    __device__ __forceinline__ void reduce_warps_k(unsigned char* shared) {
        float* partials = reinterpret_cast<float*>(shared) + threadIdx.x % 32;
        const int warps_mn = kWarpsM * kWarpsN, warp_mn = warp() % warps_mn;
        auto each = [&](int warp_k, auto&& f) {
            float* p = partials + ((warp_k - 1) * warps_mn + warp_mn) * kPartialFloats;
#pragma unroll
            for (int i = 0; i < kM16; i++)
#pragma unroll
                for (int j = 0; j < kN16 * 2; j++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        f(p[((i * kN16 * 2 + j) * 4 + c) * 32], acc[i][j][c]);
        };
        if (warp_k() > 0) each(warp_k(), [](float& p, float& acc) { p = acc; });
        __syncthreads();
        if (warp_k() == 0)
            for (int w = 1; w < kWarpsK; w++) each(w, [](float& p, float& acc) { acc += p; });
        __syncthreads();
    }

    // The same for two warps along k, each of which keeps half: the first kStoredM16 of `acc` are
    // the sums of the first half of its rows, or of the second. Shared memory is not free
    // afterwards.
    __device__ __forceinline__ void reduce_halves_k(unsigned char* shared) {
        if constexpr (kWarpsK == 1) return;
        static_assert(kWarpsK <= 2 && kM16 % kWarpsK == 0);
        const int pairs = kWarpsM * kWarpsN, pair = warp() % pairs, lane = threadIdx.x % 32;
        auto slot = [&](int warp_k, int i, int j) {
            const int block = (warp_k * pairs + pair) * kStoredM16 + i;
            return reinterpret_cast<float4*>(shared) + (block * kN16 * 2 + j) * 32 + lane;
        };
        const bool is_first = warp_k() == 0;
#pragma unroll
        for (int i = 0; i < kStoredM16; i++)
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++) {
                float give[4];
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    float &first = acc[i][j][c], second = acc[i + kM16 - kStoredM16][j][c];
                    give[c] = is_first ? second : first;
                    first = is_first ? first : second;
                }
                *slot(1 - warp_k(), i, j) = make_float4(give[0], give[1], give[2], give[3]);
            }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kStoredM16; i++)
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++) {
                const float4 v = *slot(warp_k(), i, j);
                acc[i][j][0] += v.x, acc[i][j][1] += v.y;
                acc[i][j][2] += v.z, acc[i][j][3] += v.w;
            }
    }

    // Calls f(row, col, chunk) for every eight neighbouring columns of what this warp has after
    // reduce_halves_k, rounded. Four lanes transpose what they hold of four 8×8 blocks:
    //
    //   lane q has columns 2q, 2q + 1 of blocks 0 to 3  ->  columns 0 to 7 of block q
    template <typename F>
    __device__ __forceinline__ void for_each_rounded_chunk(F&& f) const {
        constexpr int kN8 = kN16 * 2, kBlocks = kStoredM16 * 2 * kN8;
        static_assert(kBlocks % 4 == 0);
        const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const int row0 = warp_m() * kWarpM + warp_k() * kStoredM16 * 16;
        auto exchange = [&](uint32_t& low, uint32_t& high, int lanes) {
            const bool is_high = q & lanes;
            const uint32_t theirs = __shfl_xor_sync(~0u, is_high ? low : high, lanes);
            low = is_high ? theirs : low, high = is_high ? high : theirs;
        };
#pragma unroll
        for (int block0 = 0; block0 < kBlocks; block0 += 4) {
            uint32_t v[4];
#pragma unroll
            for (int b = 0; b < 4; b++) {
                const int block = block0 + b;
                const float* of = acc[block / kN8 / 2][block % kN8] + block / kN8 % 2 * 2;
                v[b] = pack<E>(of[0], of[1]);
            }
            exchange(v[0], v[1], 1), exchange(v[2], v[3], 1);
            exchange(v[0], v[2], 2), exchange(v[1], v[3], 2);
            const int block = block0 + q;
            f(row0 + block / kN8 * 8 + g, warp_n() * kWarpN + block % kN8 * 8,
              make_uint4(v[0], v[1], v[2], v[3]));
        }
    }

    // Calls f(row, col, values) for every eight neighbouring columns of the warp's part of the
    // tile, rows and columns counted from the tile's corner. Goes through shared memory so that
    // neighbouring lanes get neighbouring columns.
    template <typename F>
    __device__ __forceinline__ void for_each_chunk(unsigned char* shared, F&& f) const {
        const int lane = threadIdx.x % 32;
        const int warp_mn = warp() % (kWarpsM * kWarpsN);
        float* staging = reinterpret_cast<float*>(shared + warp_mn * kStagingBytes);
#pragma unroll
        for (int i = 0; i < kM16; i++) {
            __syncwarp();
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++) {
                float* to = staging + lane / 4 * kStagingPitch + j * 8 + lane % 4 * 2;
                *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
                *reinterpret_cast<float2*>(to + 8 * kStagingPitch) =
                    make_float2(acc[i][j][2], acc[i][j][3]);
            }
            __syncwarp();
            constexpr int kChunksPerRow = kWarpN / 8;
#pragma unroll
            for (int index = lane; index < 16 * kChunksPerRow; index += 32) {
                const int row = index / kChunksPerRow, col = index % kChunksPerRow * 8;
                float v[8];
                const float* from = staging + row * kStagingPitch + col;
                *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(from);
                *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(from + 4);
                f(warp_m() * kWarpM + i * 16 + row, warp_n() * kWarpN + col, v);
            }
        }
    }
};
