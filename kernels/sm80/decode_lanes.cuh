// A main loop of decode.cu, for T <= 16, or T <= 32 with kShifts: every lane loads the fragments it
// multiplies, kDepth steps of 32 along k ahead, into registers. No lane reads what another loaded,
// so there is no barrier. Every CTA loads X for itself.
//
//   step      0      1      2      3      4           kDepth = 4
//   mma     |0     |1     |2     |3     |4
//   load    |4     |5     |6     |7     |8       B, and S when it is there, before the last kDepth
//
// A warp has one class, of all rows of the CTA. Needs K-major weights, rows of B and S at multiples
// of 16 bytes, and r that is a multiple of 8. With kShifts, rows of W0 and X start at any element,
// and k is any. Without, rows of W0 and X start at multiples of 16 bytes, and 8 divides k.
#pragma once

#include "decode_sums.cuh"

enum class Cache { kStream, kShare };  // a weight is read once, X by every CTA

// Eight elements, or zeros.
template <typename E, Cache kCache>
__device__ __forceinline__ uint4 load_fragment(const E* from, bool exists) {
    uint4 v;
#define LOAD(CACHE)                                                                       \
    asm volatile(                                                                         \
        "{\n.reg .pred exists;\nsetp.ne.s32 exists, %5, 0;\n"                             \
        "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"                   \
        "@exists ld.global.nc." CACHE "v4.b32 {%0, %1, %2, %3}, [%4];\n}\n"               \
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)                                  \
        : "l"(from), "r"((int)exists))
    if constexpr (kCache == Cache::kStream) {
        LOAD("L1::no_allocate.L2::128B.");
    } else {
        LOAD("");
    }
#undef LOAD
    return v;
}

// The pieces of 16 bytes that hold eight elements of a row, from `from` on: one, or two where rows
// start at any element. `cols` elements are left of the row, and zeros follow. The last chunks of a
// row are gathered: their second piece may lie behind the matrix. Two pieces come through the L1,
// whatever kCache is: the second is mostly the first of the next lane.
template <typename E, Cache kCache>
__device__ __forceinline__ void load_pieces(uint4 (&v)[1], const E* from, int cols) {
    v[0] = load_fragment<E, kCache>(from, cols > 0);
}
template <typename E, Cache kCache>
__device__ __forceinline__ void load_pieces(uint4 (&v)[2], const E* from, int cols) {
    if (cols >= 16) {
        const auto at = reinterpret_cast<uintptr_t>(from) & ~(uintptr_t)15;
        v[0] = load_fragment<E, Cache::kShare>(reinterpret_cast<const E*>(at), true);
        v[1] = load_fragment<E, Cache::kShare>(reinterpret_cast<const E*>(at) + 8, true);
    } else {
        v[0] = gather_chunk(from, cols);
        v[1] = make_uint4(0, 0, 0, 0);
    }
}

// The eight elements.
template <typename E>
__device__ __forceinline__ uint4 of_pieces(const uint4 (&v)[1], const E*, int) {
    return v[0];
}
template <typename E>
__device__ __forceinline__ uint4 of_pieces(const uint4 (&v)[2], const E* from, int cols) {
    const auto shift = (uint32_t)reinterpret_cast<uintptr_t>(from) % 16;
    return shifted(v[0], v[1], cols >= 16 ? shift : 0);
}

// A weight from the CTA's first row of m on, of which `m` exist.
template <typename E>
struct LaneWeight {
    const E* data;
    int ld, m;
    // Load i of a step whose eight of k begin at k0. A row past the last is the last again: it
    // becomes columns of H that are not stored.
    __device__ __forceinline__ const E* at(int i, int k0) const {
        const int g = threadIdx.x % 32 / 4;
        return data + (int64_t)min(i * 8 + g, m - 1) * ld + k0;
    }
};

template <int kN_, int kM16_, int kDepth_, bool kShifts>
struct Lanes {
    static constexpr Major kMajor = Major::K;
    static constexpr int kN = kN_, kN8 = kN / 8, kM16 = kM16_, kRows = 16 * kM16;
    static constexpr int kLoads = kFragments<kMajor, kM16>;
    static constexpr int kWarpsM = 1, kWarpsN = 1, kGroups = kClasses, kGroupThreads = 32;
    static constexpr int kThreads = kGroupThreads * kGroups, kSplits = 1, kPer = 1;

    template <typename E>
    static __device__ __forceinline__ void accumulate(float (&acc)[1][kM16][kN8][4],
                                                      const Sources<E>& from, int of_class,
                                                      uint32_t) {
        const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const int r0 = rank_step(of_class) * kStep;
        const bool has_rank = r0 < from.r;
        uint4 b[kLoads], s[kN8];
        along_k(acc[0], from, of_class, [&] {
            if (!has_rank) return;
            const LaneWeight<E> weight{from.b, from.b_ld, from.m};
            const int rank = r0 + 8 * q;
#pragma unroll
            for (int i = 0; i < kLoads; i++)
                b[i] = load_fragment<E, Cache::kStream>(weight.at(i, rank), rank < from.r);
            if (threadIdx.x % 32 == 0) wait_for(from.s_flag, from.s_count);
            __syncwarp();
#pragma unroll
            for (int n = 0; n < kN8; n++) {
                const E* row = from.s + (int64_t)min(n * 8 + g, from.t - 1) * from.s_ld;
                s[n] = make_uint4(0, 0, 0, 0);
                if (rank < from.r) s[n] = __ldcg(reinterpret_cast<const uint4*>(row + rank));
            }
        });
        if (!has_rank) return;
#pragma unroll
        for (int n = 0; n < kN8; n++) multiply<E, kMajor, true, kM16, kN8>(acc[0], b, s[n], n);
    }

  private:
    // The chunks of the class. Calls before_last() when no loads are left to begin.
    template <typename E, typename F>
    static __device__ __forceinline__ void along_k(float (&acc)[kM16][kN8][4],
                                                   const Sources<E>& from, int of_class,
                                                   F&& before_last) {
        constexpr int kPerChunk = kChunk / kStep;
        static_assert(kDepth_ % kPerChunk == 0);
        const LaneWeight<E> weight{from.w, from.w_ld, from.m};
        const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const int chunks = (from.k + kChunk - 1) / kChunk;
        const int rounds = of_class < chunks ? (chunks - of_class + kClasses - 1) / kClasses : 0;
        // Step 0 of the loop's body begins here for this lane, step j from_step0(j) on.
        int k0 = of_class * kChunk + 8 * q;
        auto from_step0 = [](int j) {
            return j / kPerChunk * kClasses * kChunk + j % kPerChunk * kStep;
        };
        const E *w_row[kLoads], *x_row[kN8];
#pragma unroll
        for (int i = 0; i < kLoads; i++) w_row[i] = weight.at(i, k0);
#pragma unroll
        for (int n = 0; n < kN8; n++)
            x_row[n] = from.x + (int64_t)min(n * 8 + g, from.t - 1) * from.x_ld + k0;
        constexpr int kPieces = kShifts ? 2 : 1;
        uint4 w[kDepth_][kLoads][kPieces], x[kDepth_][kN8][kPieces];
        auto load = [&](int slot, int j) {
            const int by = from_step0(j), cols = from.k - k0 - by;
#pragma unroll
            for (int i = 0; i < kLoads; i++)
                load_pieces<E, Cache::kStream>(w[slot][i], w_row[i] + by, cols);
#pragma unroll
            for (int n = 0; n < kN8; n++)
                load_pieces<E, Cache::kShare>(x[slot][n], x_row[n] + by, cols);
        };
        // Step j, which was loaded into this slot. Rows of all steps start alike.
        auto step = [&](int j) {
            const int cols = from.k - k0 - from_step0(j);
            uint4 of_w[kLoads];
#pragma unroll
            for (int i = 0; i < kLoads; i++) of_w[i] = of_pieces(w[j][i], w_row[i], cols);
#pragma unroll
            for (int n = 0; n < kN8; n++)
                multiply<E, kMajor, true, kM16, kN8>(acc, of_w, of_pieces(x[j][n], x_row[n], cols),
                                                     n);
        };
#pragma unroll
        for (int j = 0; j < kDepth_; j++) load(j, j);
#pragma unroll 1
        for (int s = kDepth_; s < rounds * kPerChunk; s += kDepth_) {
#pragma unroll
            for (int j = 0; j < kDepth_; j++) {
                step(j);
                load(j, j + kDepth_);
            }
            constexpr int kBy = kDepth_ / kPerChunk * kClasses * kChunk;
            k0 += kBy;
#pragma unroll
            for (int i = 0; i < kLoads; i++) w_row[i] += kBy;
#pragma unroll
            for (int n = 0; n < kN8; n++) x_row[n] += kBy;
        }
        before_last();
#pragma unroll
        for (int j = 0; j < kDepth_; j++) step(j);
    }
};
