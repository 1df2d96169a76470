// A main loop of decode.cu for MN-major weights whose rows start at any element: dX for T <= 32.
// Every lane loads the fragments it multiplies into registers, as in decode_lanes.cuh, eight bytes
// of a row at a time in two pieces that it shifts. Rows of one place in their step start alike.
//
//   step      0      1      2      3      4           kDepth = 4
//   mma     |0     |1     |2     |3     |4
//   load    |4     |5     |6     |7     |8       A, and dS when it is there, before the last kDepth
//
// A warp has one class, of all 32 columns of the CTA. Needs rows of X, B and S at multiples of 16
// bytes (dH, Aᵀ and dS), and zeros behind the columns of B up to a multiple of 4; k and m are any.
#pragma once

#include "decode_lanes.cuh"

// Four elements, or zeros. Through the L1: another lane reads most of the second piece.
template <typename E>
__device__ __forceinline__ uint2 load_half(const E* from, bool exists) {
    uint2 v;
    asm volatile(
        "{\n.reg .pred exists;\nsetp.ne.s32 exists, %3, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0;\n"
        "@exists ld.global.nc.v2.b32 {%0, %1}, [%2];\n}\n"
        : "=&r"(v.x), "=&r"(v.y)
        : "l"(from), "r"((int)exists));
    return v;
}

// Two aligned pieces of eight bytes: one has the first of four elements, one the last.
template <typename E>
__device__ __forceinline__ void load_halves(uint2 (&v)[2], const E* from, bool exists) {
    const auto at = reinterpret_cast<uintptr_t>(from);
    v[0] = load_half(reinterpret_cast<const E*>(at & ~(uintptr_t)7), exists);
    v[1] = load_half(reinterpret_cast<const E*>((at + 7) & ~(uintptr_t)7), exists);
}

// The four elements, of which the first is `shift` bytes behind the start of the first piece.
__device__ __forceinline__ uint2 of_halves(const uint2 (&v)[2], uint32_t shift) {
    const bool by_word = shift & 4;
    const uint32_t a = by_word ? v[0].y : v[0].x, b = by_word ? v[1].x : v[0].y,
                   c = by_word ? v[1].y : v[1].x;
    const uint32_t bits = (shift & 2) * 8;
    return make_uint2(__funnelshift_r(a, b, bits), __funnelshift_r(b, c, bits));
}

template <int kN_, int kDepth>
struct ShiftingColumns {
    static constexpr Major kMajor = Major::MN;
    static constexpr int kN = kN_, kN8 = kN / 8, kM16 = 2, kRows = 16 * kM16;
    static constexpr int kWarpsM = 1, kWarpsN = 1, kGroups = kClasses, kGroupThreads = 32;
    static constexpr int kThreads = kGroupThreads * kGroups, kSplits = 1, kPer = 1;
    static constexpr int kLoads = kFragments<kMajor, kM16>;

    // The last CTA may have fewer columns, which it gathers.
    template <typename E>
    static __device__ __forceinline__ void accumulate(float (&acc)[1][kM16][kN8][4],
                                                      const Sources<E>& from, int of_class,
                                                      uint32_t) {
        if (from.m >= kRows) {
            accumulate_columns<true>(acc[0], from, of_class);
        } else {
            accumulate_columns<false>(acc[0], from, of_class);
        }
    }

  private:
    template <bool kWhole, typename E>
    static __device__ __forceinline__ void accumulate_columns(float (&acc)[kM16][kN8][4],
                                                              const Sources<E>& from,
                                                              int of_class) {
        constexpr int kPerChunk = kChunk / kStep;
        static_assert(kDepth % kPerChunk == 0);
        const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const int cols = from.m - 4 * g;  // from the lane's first column on
        const int chunks = (from.k + kChunk - 1) / kChunk;
        const int rounds = of_class < chunks ? (chunks - of_class + kClasses - 1) / kClasses : 0;
        // Step 0 of the loop's body begins here for this lane, step j from_step0(j) on.
        int k0 = of_class * kChunk + 8 * q;
        auto from_step0 = [](int j) {
            return j / kPerChunk * kClasses * kChunk + j % kPerChunk * kStep;
        };
        const E* w_row = from.w + (int64_t)k0 * from.w_ld + 4 * g;
        const E* x_row[kN8];
#pragma unroll
        for (int n = 0; n < kN8; n++)
            x_row[n] = from.x + (int64_t)min(n * 8 + g, from.t - 1) * from.x_ld + k0;
        uint2 w[kDepth][kLoads][2];
        uint4 x[kDepth][kN8];
        auto load = [&](int slot, int j) {
            const int by = from_step0(j), rows = from.k - k0 - by;
#pragma unroll
            for (int i = 0; i < kLoads; i++) {
                const E* at = w_row + (int64_t)(by + i) * from.w_ld;
                if constexpr (kWhole) {
                    load_halves(w[slot][i], at, i < rows);
                } else {
                    const uint4 few = gather_chunk(at, i < rows ? min(cols, 4) : 0);
                    w[slot][i][0] = make_uint2(few.x, few.y);
                }
            }
#pragma unroll
            for (int n = 0; n < kN8; n++)
                x[slot][n] = load_fragment<E, Cache::kShare>(x_row[n] + by, rows > 0);
        };
        const auto start = (uint32_t)reinterpret_cast<uintptr_t>(w_row);
        auto step = [&](int slot) {
            uint4 of_w[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; i++) {
                const uint32_t shift = kWhole ? (start + 2 * i * from.w_ld) % 8 : 0;
                const uint2 four = of_halves(w[slot][i], shift);
                of_w[i] = make_uint4(four.x, four.y, 0, 0);
            }
            interleave<kMajor, kM16>(of_w);
#pragma unroll
            for (int n = 0; n < kN8; n++)
                multiply<E, kMajor, true, kM16, kN8>(acc, of_w, x[slot][n], n);
        };
#pragma unroll
        for (int j = 0; j < kDepth; j++) load(j, j);
#pragma unroll 1
        for (int s = kDepth; s < rounds * kPerChunk; s += kDepth) {
#pragma unroll
            for (int j = 0; j < kDepth; j++) {
                step(j);
                load(j, j + kDepth);
            }
            constexpr int kBy = kDepth / kPerChunk * kClasses * kChunk;
            k0 += kBy;
            w_row += (int64_t)kBy * from.w_ld;
#pragma unroll
            for (int n = 0; n < kN8; n++) x_row[n] += kBy;
        }
        const int r0 = rank_step(of_class) * kStep;
        const bool has_rank = r0 < from.r;
        uint4 b[kLoads], s[kN8];
        if (has_rank) {
            const int rank = r0 + 8 * q;
#pragma unroll
            for (int i = 0; i < kLoads; i++) {
                const bool exists = rank + i < from.r && cols > 0;
                const E* at = from.b + (int64_t)(rank + i) * from.b_ld + 4 * g;
                const uint2 four = load_half(at, exists);
                b[i] = make_uint4(four.x, four.y, 0, 0);
            }
            interleave<kMajor, kM16>(b);
            if (threadIdx.x % 32 == 0) wait_for(from.s_flag, from.s_count);
            __syncwarp();
#pragma unroll
            for (int n = 0; n < kN8; n++) {
                const E* row = from.s + (int64_t)min(n * 8 + g, from.t - 1) * from.s_ld;
                s[n] = make_uint4(0, 0, 0, 0);
                if (rank < from.r) s[n] = __ldcg(reinterpret_cast<const uint4*>(row + rank));
            }
        }
#pragma unroll
        for (int j = 0; j < kDepth; j++) step(j);
        if (!has_rank) return;
#pragma unroll
        for (int n = 0; n < kN8; n++) multiply<E, kMajor, true, kM16, kN8>(acc, b, s[n], n);
    }
};
