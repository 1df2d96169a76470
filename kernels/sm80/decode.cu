// Both passes of one layer for few tokens (T <= kN <= 32), weight-bandwidth bound, in one launch:
//
//   forward      S  (T×r) = s·X Aᵀ            rounded once, saturated in f16
//                H  (T×d) = X W0ᵀ + S Bᵀ      rounded once
//   input grad   dS (T×r) = s·dH B            rounded once, saturated in f16
//                dX (T×k) = dH W0 + dS A      rounded once
//                dA (r×k) (=|+=) dSᵀ X,  dB (d×r) (=|+=) dHᵀ S
//
// in f32 sums, r <= 256; dA and dB are f32, or rounded once to the 16 bits of the operands. r = 0
// is the frozen layer; without row tiles it is S alone, or dS, dA and dB. The parameters have the
// names of the forward. In the input gradient, x is dH, w0 is W0ᵀ, a is Bᵀ, b is Aᵀ, s is dS and h
// is dX, d and k are exchanged, and weights are MN-major.
//
// The weights are m of an mma, the tokens n: Hᵀ = W0 Xᵀ + B Sᵀ. Weights are read once. Sums have
// one order, whatever T, the tile and the splits are (decode_sums.cuh): a token has the same bits
// in every batch.
//
// Needs: flags that are zero, and are zero again after the launch; partials if there are splits.
// Rows of A, B, S, W0 and X start at multiples of 16 bytes; with kByShiftingLanes, rows of W0 and X
// start at any element, in the input gradient rows of W0 alone, and B has zeros behind its columns
// up to a multiple of 4. Rows of H start at any element. Writes every element once.
//
// Grid: CTAs that compute S (projection.cuh); row tiles × splits for H; in the input gradient 64
// columns of dA or dB each; idle CTAs that fill the GPU (plan/sm80/linear.rs). Of the CTAs of a
// tile with splits, the last to arrive adds and stores.
//
//   CTAs of S   |k of A, X|add|publish|
//   CTAs of H   |k of W0, X ... | ... |wait for S| the last loads |B, S|add|store|
//   of dA, dB                             |dH, S: dB|X, wait for dS, dA|
//
// Deadlock freedom: CTAs wait only for S, whose CTAs wait for none and come first in the grid: they
// start first, however many CTAs run at once.
#include "decode_columns.cuh"
#include "decode_lanes.cuh"
#include "decode_staged.cuh"
#include "projection.cuh"

#include "manifest/sm80/decode.cuh"

// The CTAs that compute S, and the CTAs that compute H.
template <Major kMajor, int kN, int kRows, int kSplits, int kLoads>
struct DecodeShape {
    static_assert(kRows == 64 || kRows == 32);
    static constexpr int kStageK = kRows == 64 || kN == 16 ? 64 : 32;
    static constexpr int kShared = kSharedBytes;
    using Type =
        Staged<kMajor, kN, 2, kRows / 32, 2, kRows == 64 ? 2 : 4, kSplits, kStageK, kShared>;
};
template <int kN, int kRows, bool kShifts>
struct LanesShape {
    static_assert(kRows == 16 || kRows == 32);
    static constexpr int kShared = kLanesSharedBytes;
    static constexpr int kDepth = kRows == 16 || (kShifts && kN <= 16) ? 4 : 2;
    using Type = Lanes<kN, kRows / 16, kDepth, kShifts>;
};
template <int kN, int kRows>
struct DecodeShape<Major::K, kN, kRows, 1, kByLanes> : LanesShape<kN, kRows, false> {};
template <int kN, int kRows>
struct DecodeShape<Major::K, kN, kRows, 1, kByShiftingLanes> : LanesShape<kN, kRows, true> {};
template <int kN>
struct DecodeShape<Major::MN, kN, 32, 1, kByShiftingLanes> {
    static constexpr int kShared = kLanesSharedBytes;
    using Type = ShiftingColumns<kN, kN == 16 ? 4 : 2>;
};

// By each that waited for S, when it has read it.
__device__ __forceinline__ void s_seen(const DecodeParams& p) {
    waited(p.flags, p.waiters, p.flags + 1, 1);
}

// 64 columns of dA (r×d) = dSᵀ X, or 64 rows of dB (k×r) = dHᵀ S, the names of the forward.
template <typename E, int kN, int kThreads>
__device__ __forceinline__ void gradient(const DecodeParams& p, int tile, float* shared) {
    const bool of_a = tile >= p.db_tiles;
    const int col0 = (of_a ? tile - p.db_tiles : tile) * 64, cols = of_a ? p.d : p.k;
    const Operand &y = of_a ? p.y : p.x, &l = of_a ? p.s : p.saved_s;
    float *ys = shared, *ls = shared + kN * 64;  // t×64 each
    for (int e = threadIdx.x; e < p.t * 8; e += kThreads) {
        float v[8];
        load_chunk<E>(v, y, e / 8, col0 + e % 8 * 8, cols);
        auto* to = reinterpret_cast<float4*>(ys + e * 8);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
    if (of_a && threadIdx.x < 32) wait_for(p.flags + 1, p.rank_tiles);
    for (int r0 = 0; r0 < p.r; r0 += 64) {
        const int width = min(64, (p.r - r0 + 3) / 4 * 4);
        __syncthreads();
        for (int token = threadIdx.x / 16; token < p.t; token += kThreads / 16)
            for (int rank = threadIdx.x % 16; rank < width; rank += 16) {
                const auto* from =
                    reinterpret_cast<const unsigned short*>(element<E>(l, token, r0 + rank));
                const unsigned short bits = r0 + rank < p.r ? __ldcg(from) : 0;
                ls[token * 64 + rank] = widen(reinterpret_cast<const E&>(bits));
            }
        __syncthreads();
        for (int i = threadIdx.x; i < 16 * width; i += kThreads) {
            const int col = i % 64, rank = i / 64 * 4;
            if (col0 + col >= cols) continue;
            float sum[4] = {};
#pragma unroll 4
            for (int t = 0; t < p.t; t++) {
                const float v = ys[t * 64 + col];
                const float4 u = *reinterpret_cast<const float4*>(ls + t * 64 + rank);
                sum[0] += v * u.x, sum[1] += v * u.y, sum[2] += v * u.z, sum[3] += v * u.w;
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = r0 + rank + j;
                if (row >= p.r) break;
                const int64_t at = of_a ? (int64_t)row * p.d + col0 + col
                                        : (int64_t)(col0 + col) * p.r + row;
                auto store = [&](auto* out) {
                    round_to(out[at], p.accumulate ? widen(out[at]) + sum[j] : sum[j]);
                };
                void* out = of_a ? p.da : p.db;
                if (p.rounds) {
                    store(static_cast<E*>(out));
                } else {
                    store(static_cast<float*>(out));
                }
            }
        }
    }
    if (of_a && threadIdx.x == 0) s_seen(p);
}

template <typename E, Major kMajor, int kN, int kRows, int kSplits, int kLoads>
__device__ __forceinline__ void decode(const DecodeParams& p) {
    using Shape = DecodeShape<kMajor, kN, kRows, kSplits, kLoads>;
    using Main = typename Shape::Type;
    constexpr int kShared = Shape::kShared;
    static_assert(Main::kThreads == kThreads && GroupSums<Main>::kBytes <= kShared);
    static_assert(kMajor == Major::K || kN * 128 * 4 <= kShared);
    static_assert(kN <= kProjRows, "S has one row of tiles");
    extern __shared__ __align__(128) float shared[];
    if ((int)blockIdx.x >= p.ctas) return;
    if ((int)blockIdx.x < p.proj_ctas) {
        const ProjectionParams proj{p.x, p.a, p.s, p.partials, p.flags + 2, p.k, p.r, p.scale, 0};
        project<E, kMajor, kShared, true>(proj, p.t, blockIdx.x,
                                          reinterpret_cast<unsigned char*>(shared),
                                          [&](int) { return p.flags + 1; });
        return;
    }
    const int unit = blockIdx.x - p.proj_ctas, tile = unit / kSplits, split = unit % kSplits;
    const int row = tile * kRows;
    if constexpr (kMajor == Major::MN) {
        if (tile >= p.row_tiles) {
            gradient<E, kN, kThreads>(p, unit - p.row_tiles * kSplits, shared);
            return;
        }
    }
    // A weight from a row of m on.
    auto from_row = [&](const Operand& op) {
        return kMajor == Major::K ? element<E>(op, row, 0) : element<E>(op, 0, row);
    };
    const Sources<E> from{from_row(p.w0), static_cast<const E*>(p.x.data), from_row(p.b),
                          static_cast<const E*>(p.s.data),
                          p.w0.ld, p.x.ld, p.b.ld, p.s.ld,
                          p.d - row, p.t, p.k, p.r,
                          p.flags + 1, (uint32_t)p.rank_tiles};
    prefetch_b<kMajor, kThreads>(from, kRows);
    const OutColumns<E> out{element<E>(p.h, 0, row), p.h.ld, p.d - row, p.t};
    float* partials = p.partials + p.proj_partials + (int64_t)tile * kSplits * kN * kRows;
    const int group = threadIdx.x / Main::kGroupThreads;
    const int of_class = (split * Main::kGroups + group) * Main::kPer;
    float acc[Main::kPer][Main::kM16][Main::kN8][4] = {};
    Main::template accumulate<E>(acc, from, of_class, shared_address(shared));
    store_sums<E, Main>(acc, shared, partials, p.flags + 2 + p.rank_tiles + tile, split, out);
    if (threadIdx.x % Main::kGroupThreads == 0) {
        bool has_waited = false;
#pragma unroll
        for (int c = 0; c < Main::kPer; c++)
            has_waited = has_waited || rank_step(of_class + c) * kStep < p.r;
        if (has_waited) s_seen(p);
    }
}

#include "instances/sm80/decode.cuh"
