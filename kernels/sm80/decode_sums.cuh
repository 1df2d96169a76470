// The sums of decode.cu: their order, their fragments, and how the sums of warps become a tile.
//
// Order, the same for every T, tile and split: k is dealt out in chunks of 64 to 8 classes in
// turns; a class sums its chunks in order; step j of 32 along r comes behind the class with
// rank_step() = j; then a binary tree over the classes, neighbours first.
//
// Within 32 along k, a lane's eight neighbours are its registers of two k16. Both operands permute
// k alike, so 16 bytes of a row are a fragment, and no ldmatrix is needed:
//
//   lane (g, q) of 8×4   row g or token g, k = 8q .. 8q+7  ->  a k16 of pairs 0, 1, one of pairs 2, 3
#pragma once

#include "grid_flags.cuh"
#include "tile.cuh"

constexpr int kClasses = 8, kChunk = 64, kStep = 32;

// Which step along r comes behind a class: the bits of the classes reversed, from the last one on,
// so that few steps are far apart.
__device__ __forceinline__ constexpr int rank_step(int of_class) {
    const int v = kClasses - 1 - of_class;
    return (v & 1) << 2 | (v & 2) | v >> 2;
}

// What the sums of a CTA's tile run over: W (m×k) and X (t×k), then B (m×r) and S (t×r). Weights
// start at the tile's first row of m, of which `m` exist.
template <typename E>
struct Sources {
    const E *w, *x, *b, *s;
    int w_ld, x_ld, b_ld, s_ld;
    int m, t, k, r;          // r = 0: no adapter
    const uint32_t* s_flag;  // S is there when this is s_count
    uint32_t s_count;
};

// ---------------------------------------------------------------------------------------------
// Prefetch

// B of a CTA's rows into the L2: the sums wait for it, at their end.
template <Major kMajor, int kThreads, typename E>
__device__ __forceinline__ void prefetch_b(const Sources<E>& from, int rows) {
    constexpr int kLine = 64;
    const int along_r = kMajor == Major::K ? (from.r + kLine - 1) / kLine : from.r;
    const int lines = along_r * (kMajor == Major::K ? min(rows, from.m) : 1);
    for (int e = threadIdx.x; e < lines; e += kThreads) {
        const int row = kMajor == Major::K ? e / along_r : e;
        const int col = kMajor == Major::K ? e % along_r * kLine : 0;
        asm volatile("prefetch.global.L2 [%0];\n" ::"l"(from.b + (int64_t)row * from.b_ld + col));
    }
}

// ---------------------------------------------------------------------------------------------
// Fragments

// Loads of 16 bytes that make the fragments of kM16 tiles of m and 32 of k. K-major: rows g and
// g + 8 of each tile. MN-major: rows k = 8q .. 8q+7, of each 2·kM16 neighbours along m from
// 2·kM16·g on. Tile i has 2·kM16·g + 2i as its row g, and the next as its row g + 8.
template <Major kMajor, int kM16>
constexpr int kFragments = kMajor == Major::K ? 2 * kM16 : 8;

__device__ __forceinline__ uint32_t& word(uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Rows k, k + 1 of neighbouring columns -> pairs along k of the even columns, and of the odd ones.
template <Major kMajor, int kM16, int kLoads>
__device__ __forceinline__ void interleave(uint4 (&w)[kLoads]) {
    if constexpr (kMajor == Major::MN) {
#pragma unroll
        for (int j = 0; j < kLoads; j += 2)
#pragma unroll
            for (int i = 0; i < kM16; i++) {
                const uint32_t even = word(w[j], i), odd = word(w[j + 1], i);
                word(w[j], i) = __byte_perm(even, odd, 0x5410);
                word(w[j + 1], i) = __byte_perm(even, odd, 0x7632);
            }
    }
}

// acc[i][n] += 32 of k of kM16 tiles of m and of eight tokens.
template <typename E, Major kMajor, bool kInPlace, int kM16, int kN8>
__device__ __forceinline__ void multiply(float (&acc)[kM16][kN8][4],
                                         const uint4 (&w)[kFragments<kMajor, kM16>],
                                         const uint4& x, int n) {
    auto k16 = [&](int i, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                   uint32_t b1) {
        const uint32_t a[4] = {a0, a1, a2, a3};
        if constexpr (kInPlace) {
            mma_in_place<E>(acc[i][n], a, b0, b1);
        } else {
            mma<E>(acc[i][n], a, b0, b1);
        }
    };
    if constexpr (kMajor == Major::K) {
#pragma unroll
        for (int i = 0; i < kM16; i++)
            k16(i, w[2 * i].x, w[2 * i + 1].x, w[2 * i].y, w[2 * i + 1].y, x.x, x.y);
#pragma unroll
        for (int i = 0; i < kM16; i++)
            k16(i, w[2 * i].z, w[2 * i + 1].z, w[2 * i].w, w[2 * i + 1].w, x.z, x.w);
    } else {
#pragma unroll
        for (int i = 0; i < kM16; i++)
            k16(i, word(w[0], i), word(w[1], i), word(w[2], i), word(w[3], i), x.x, x.y);
#pragma unroll
        for (int i = 0; i < kM16; i++)
            k16(i, word(w[4], i), word(w[5], i), word(w[6], i), word(w[7], i), x.z, x.w);
    }
}

// ---------------------------------------------------------------------------------------------
// From the sums of warps to a tile

// f(0) + .. + f(kCount - 1), a binary tree, neighbours first.
template <int kCount, typename F>
__device__ __forceinline__ float2 tree(F&& f, int at = 0) {
    if constexpr (kCount == 1) {
        return f(at);
    } else {
        const float2 a = tree<kCount / 2>(f, at), b = tree<kCount / 2>(f, at + kCount / 2);
        return make_float2(a.x + b.x, a.y + b.y);
    }
}

// An output of t rows, of which a CTA writes `cols` from `data` on.
template <typename E>
struct OutColumns {
    E* data;
    int ld, cols, t;

    __device__ __forceinline__ void store(int token, int col, float2 v) const {
        if (token >= t || col >= cols) return;
        E* to = data + (int64_t)token * ld + col;
        const uint32_t two = pack<E>(v.x, v.y);
        if (col + 1 < cols && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
            *reinterpret_cast<uint32_t*>(to) = two;
        } else {
            auto* halves = reinterpret_cast<unsigned short*>(to);
            halves[0] = (unsigned short)two;
            if (col + 1 < cols) halves[1] = (unsigned short)(two >> 16);
        }
    }
};

// Sums of groups of warps in shared memory, kGroups / 2 tiles of kN tokens × kRows.
template <typename Shape>
struct GroupSums {
    static constexpr int kPitch = Shape::kRows + 4, kTile = Shape::kN * kPitch;
    static constexpr int kBytes = Shape::kGroups / 2 * kTile * 4;
};

// Adds the sums of all classes in the order of the tree, and stores the tile. Of kSplits CTAs, each
// with some of the classes, the last to arrive does, from `partials`: kSplits tiles.
template <typename E, typename Shape>
__device__ __forceinline__ void store_sums(
    float (&acc)[Shape::kPer][Shape::kM16][Shape::kN8][4], float* shared, float* partials,
    uint32_t* arrivals, int split, const OutColumns<E>& out) {
    using Sums = GroupSums<Shape>;
    constexpr int kM16 = Shape::kM16, kN8 = Shape::kN8, kSplits = Shape::kSplits;
    constexpr int kTile = Shape::kN * Shape::kRows;
    const int group = threadIdx.x / Shape::kGroupThreads;
    const int warp = threadIdx.x % Shape::kGroupThreads / 32;
    const int warp_m = warp % Shape::kWarpsM, warp_n = warp / Shape::kWarpsM;
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int by = 1; by < Shape::kPer; by *= 2)
#pragma unroll
        for (int of = 0; of < Shape::kPer; of += 2 * by)
#pragma unroll
            for (int i = 0; i < kM16; i++)
#pragma unroll
                for (int n = 0; n < kN8; n++)
#pragma unroll
                    for (int c = 0; c < 4; c++) acc[of][i][n][c] += acc[of + by][i][n][c];

    float* to = shared + group / 2 * Sums::kTile + (warp_n * kN8 * 8 + 2 * q) * Sums::kPitch +
                warp_m * kM16 * 16;
    auto put = [&](bool adds) {
#pragma unroll
        for (int n = 0; n < kN8; n++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                if constexpr (Shape::kMajor == Major::K) {
#pragma unroll
                    for (int i = 0; i < kM16; i++)
#pragma unroll
                        for (int high = 0; high < 2; high++) {
                            float* at = to + (n * 8 + c) * Sums::kPitch + i * 16 + high * 8 + g;
                            const float v = acc[0][i][n][high * 2 + c];
                            *at = adds ? v + *at : v;
                        }
                } else {
#pragma unroll
                    for (int i = 0; i < kM16; i += 2) {
                        auto* at = reinterpret_cast<float4*>(to + (n * 8 + c) * Sums::kPitch +
                                                             2 * kM16 * g + 2 * i);
                        float4 v = make_float4(acc[0][i][n][c], acc[0][i][n][2 + c],
                                               acc[0][i + 1][n][c], acc[0][i + 1][n][2 + c]);
                        if (adds) {
                            const float4 w = *at;
                            v.x += w.x, v.y += w.y, v.z += w.z, v.w += w.w;
                        }
                        *at = v;
                    }
                }
    };
    __syncthreads();  // the stages are dead
    if (group % 2 == 1) put(false);
    __syncthreads();
    if (group % 2 == 0) put(true);
    __syncthreads();
    constexpr int kPairs = Shape::kRows / 2;
    const int pairs = min(out.t, Shape::kN) * kPairs;
    for (int e = threadIdx.x; e < pairs; e += Shape::kThreads) {
        const int token = e / kPairs, row = e % kPairs * 2;
        const float2 v = tree<Shape::kGroups / 2>([&](int i) {
            const float* from = shared + i * Sums::kTile + token * Sums::kPitch + row;
            return *reinterpret_cast<const float2*>(from);
        });
        if constexpr (kSplits == 1) {
            out.store(token, row, v);
        } else {
            __stcg(reinterpret_cast<float2*>(partials + split * kTile) + e, v);
        }
    }
    if constexpr (kSplits > 1) {
        if (!is_last_to_arrive(arrivals, kSplits)) return;
        for (int e = threadIdx.x; e < pairs; e += Shape::kThreads) {
            const float2 v = tree<kSplits>([&](int i) {
                return __ldcg(reinterpret_cast<const float2*>(partials + i * kTile) + e);
            });
            out.store(e / kPairs, e % kPairs * 2, v);
        }
    }
}
