// The other main loop of decode.cu: groups of warps each have their classes and a ring of stages in
// shared memory, filled by cp.async. A stage of X serves all rows of the CTA.
//
//   stage i     W kRows×kStageK, X kN×kStageK; behind those along k, B and S, 32 along r each
//   group     |wait i |barrier|load i + kStages - 1|multiply i|wait i + 1| ...
//
// Groups meet when they are done. The first load of S waits until all of it is there, kStages - 1
// stages before it is multiplied.
//
// Needs rows at multiples of 16 bytes.
#pragma once

#include "decode_sums.cuh"

__device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}
__device__ __forceinline__ uint2 load_shared_half(uint32_t from) {
    uint2 v;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n"
                 : "=r"(v.x), "=r"(v.y)
                 : "r"(from)
                 : "memory");
    return v;
}

// A barrier of one group. NOTES: its number is a constant: one in a register reserves all 16.
template <int kThreads, int kGroups>
__device__ __forceinline__ void sync_group(int group) {
    static_assert(kGroups == 2 || kGroups == 4);
    if (group == 0) {
        asm volatile("bar.sync 1, %0;\n" ::"n"(kThreads) : "memory");
    } else if (kGroups == 2 || group == 1) {
        asm volatile("bar.sync 2, %0;\n" ::"n"(kThreads) : "memory");
    } else if (group == 2) {
        asm volatile("bar.sync 3, %0;\n" ::"n"(kThreads) : "memory");
    } else {
        asm volatile("bar.sync 4, %0;\n" ::"n"(kThreads) : "memory");
    }
}

// Rows of kCols elements in shared memory, in chunks of 16 bytes. Eight lanes that load at once
// read rows r and r + 1, four chunks of each; with kAcross rows r, r + 8, r + 16 and r + 24, two
// chunks of each. They are on different banks.
template <int kCols, bool kAcross>
struct StagedRows {
    static constexpr int kChunks = kCols / 8, kPitch = kChunks * 16;

    static constexpr int bytes(int rows) { return rows * kPitch + (kAcross ? rows / 8 * 32 : 0); }

    static __device__ __forceinline__ int at(int row, int chunk) {
        if constexpr (kAcross) return row * kPitch + row / 8 * 32 + chunk * 16;
        if constexpr (kPitch == 128) return row * kPitch + (chunk ^ row % 2 * 4) * 16;
        return row * kPitch + chunk * 16;
    }
};

template <Major kMajor_, int kN_, int kM16_, int kWarpsM_, int kWarpsN_, int kGroups_, int kSplits_,
          int kStageK, int kRingBytes>
struct Staged {
    static constexpr Major kMajor = kMajor_;
    static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kGroups = kGroups_;
    static constexpr int kM16 = kM16_, kRows = 16 * kM16 * kWarpsM;
    static constexpr int kN = kN_, kN8 = kN / 8 / kWarpsN;
    static constexpr int kGroupThreads = 32 * kWarpsM * kWarpsN, kThreads = kGroupThreads * kGroups;
    static constexpr int kSplits = kSplits_, kPer = kClasses / (kGroups * kSplits);
    static_assert(kPer * kGroups * kSplits == kClasses && kN8 * kWarpsN * 8 == kN);
    static_assert(kMajor == Major::K || kM16 == 2 || kM16 == 4);

    using WRows = std::conditional_t<kMajor == Major::K, StagedRows<kStageK, false>,
                                     StagedRows<kRows, true>>;
    using XRows = StagedRows<kStageK, false>;
    static constexpr int kWRows = kMajor == Major::K ? kRows : kStageK;
    static constexpr int kXAt = WRows::bytes(kWRows), kStage = kXAt + XRows::bytes(kN);
    static constexpr int kStages = kRingBytes / (kStage * kGroups);
    static constexpr int kStageBytes = kStages * kStage * kGroups;
    static_assert(kStages >= 2 && kStage % 16 == 0);

    template <typename E>
    static __device__ __forceinline__ void accumulate(float (&acc)[kPer][kM16][kN8][4],
                                                      const Sources<E>& from, int of_class,
                                                      uint32_t shared) {
        constexpr int kPerChunk = kChunk / kStageK, kRound = kPer * kPerChunk;
        const int group = threadIdx.x / kGroupThreads, thread = threadIdx.x % kGroupThreads;
        const int warp_m = thread / 32 % kWarpsM, warp_n = thread / 32 / kWarpsM;
        const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
        const uint32_t ring = shared + group * kStages * kStage;
        const int chunks = (from.k + kChunk - 1) / kChunk;
        // Stages along k, and steps along r, of the group whose first class this is.
        auto stages_along_k = [&](int of_class) {
            return of_class < chunks ? (chunks - of_class + kClasses - 1) / kClasses * kRound : 0;
        };
        auto steps_along_r = [&](int of_class) {
            int steps = 0;
#pragma unroll
            for (int c = 0; c < kPer; c++) steps += rank_step(of_class + c) * kStep < from.r;
            return steps;
        };
        const int along_k = stages_along_k(of_class);
        const bool has_rank = steps_along_r(of_class) > 0;
        auto k_of = [&](int i) {
            return (i / kRound * kClasses + of_class) * kChunk + i % kRound * kStageK;
        };

        // Stage i: along k, then the steps along r behind these classes, in their order.
        auto load = [&](int slot, int i) {
            const E *w = from.w, *x = from.x;
            int w_ld = from.w_ld, x_ld = from.x_ld, k0 = k_of(i);
            int cols = min(from.k - k0, kStageK);
            if (i >= along_k) {
                if (i == along_k && has_rank) {
                    if (thread < 32) wait_for(from.s_flag, from.s_count);
                    sync_group<kGroupThreads, kGroups>(group);
                }
                int r0 = from.r, before = i - along_k;
#pragma unroll
                for (int c = 0; c < kPer; c++) {
                    const int own = rank_step(of_class + c) * kStep;
                    if (own < from.r && before-- == 0) r0 = own;
                }
                w = from.b, x = from.s, w_ld = from.b_ld, x_ld = from.s_ld;
                k0 = r0 < from.r ? r0 : 0, cols = min(from.r - r0, kStep);
            }
            const uint32_t to = ring + slot * kStage;
            if constexpr (kMajor == Major::K) {
                load_rows<WRows, kWRows>(to, w + k0, w_ld, from.m, cols);
            } else {
                load_rows<WRows, kWRows>(to, w + (int64_t)k0 * w_ld, w_ld, cols, from.m);
            }
            load_rows<XRows, kN>(to + kXAt, x + k0, x_ld, from.t, cols);
            cp_async_commit();
        };
        // 32 along k of the stage at `at`.
        auto multiply_step = [&](float(&sums)[kM16][kN8][4], uint32_t at, int half) {
            uint4 wf[kFragments<kMajor, kM16>];
            if constexpr (kMajor == Major::K) {
#pragma unroll
                for (int i = 0; i < 2 * kM16; i++) {
                    const int row = warp_m * kM16 * 16 + i * 8 + g;
                    wf[i] = load_shared(at + WRows::at(row, half * 4 + q));
                }
            } else {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const int row = half * kStep + 8 * q + j;
                    if constexpr (kM16 == 4) {
                        wf[j] = load_shared(at + WRows::at(row, warp_m * 8 + g));
                    } else {
                        const int chunk = warp_m * 4 + g / 2;
                        const uint2 v = load_shared_half(at + WRows::at(row, chunk) + g % 2 * 8);
                        wf[j] = make_uint4(v.x, v.y, 0, 0);
                    }
                }
                interleave<kMajor, kM16>(wf);
            }
#pragma unroll
            for (int n = 0; n < kN8; n++) {
                const int token = (warp_n * kN8 + n) * 8 + g;
                multiply<E, kMajor, false, kM16, kN8>(
                    sums, wf, load_shared(at + kXAt + XRows::at(token, half * 4 + q)), n);
            }
        };

        int i = 0, slot = 0;  // of the stage to multiply next
        auto next = [&] {
            cp_async_wait<kStages - 2>();
            sync_group<kGroupThreads, kGroups>(group);
            load(slot == 0 ? kStages - 1 : slot - 1, i + kStages - 1);
        };
        auto done = [&] {
            slot = slot == kStages - 1 ? 0 : slot + 1;
            i++;
        };
#pragma unroll 1
        for (int j = 0; j < kStages - 1; j++) load(j, j);
#pragma unroll 1
        while (i < along_k) {
#pragma unroll
            for (int u = 0; u < kRound; u++) {
                next();
#pragma unroll
                for (int half = 0; half < kStageK / kStep; half++)
                    multiply_step(acc[u / kPerChunk], ring + slot * kStage, half);
                done();
            }
        }
        if (has_rank) {
            // kStages - 1 steps along r are under way. One more has room, more do not.
            if constexpr (kPer == kStages) {
                sync_group<kGroupThreads, kGroups>(group);
                load(slot == 0 ? kStages - 1 : slot - 1, i + kStages - 1);
            }
            if constexpr (kPer <= kStages) {
                cp_async_wait<0>();
                sync_group<kGroupThreads, kGroups>(group);
            }
#pragma unroll
            for (int c = 0; c < kPer; c++) {
                if (rank_step(of_class + c) * kStep >= from.r) continue;
                if constexpr (kPer > kStages) next();
                multiply_step(acc[c], ring + slot * kStage, 0);
                done();
            }
        }
        cp_async_wait<0>();
        // NOTES: all groups pass their barriers equally often. Otherwise compute-sanitizer's
        // racecheck reports the groups' later exchange through shared memory as races, although a
        // barrier of all threads stands between.
        auto barriers = [&](int of_class) {
            const int along_r = steps_along_r(of_class);
            const int behind_k = 1 + (kPer == kStages) + (kPer > kStages ? along_r : 1);
            return stages_along_k(of_class) + (along_r > 0 ? behind_k : 0);
        };
        int most = 0;
#pragma unroll
        for (int other = 0; other < kGroups; other++)
            most = max(most, barriers(of_class + (other - group) * kPer));
#pragma unroll 1
        for (int passed = barriers(of_class); passed < most; passed++)
            sync_group<kGroupThreads, kGroups>(group);
    }

  private:
    // kAll rows, of which `rows` exist, with `cols` elements each: zeros behind them.
    template <typename Rows, int kAll, typename E>
    static __device__ __forceinline__ void load_rows(uint32_t to, const E* data, int ld, int rows,
                                                     int cols) {
        constexpr int kPieces = kAll * Rows::kChunks, kBy = kGroupThreads / Rows::kChunks;
        static_assert(kBy % 8 == 0);
        const int thread = threadIdx.x % kGroupThreads;
        const int row = thread / Rows::kChunks, chunk = thread % Rows::kChunks;
        const int bytes = max(0, min(16, 2 * cols - chunk * 16));
        to += Rows::at(row, chunk);
#pragma unroll
        for (int l = 0; l < (kPieces + kGroupThreads - 1) / kGroupThreads; l++) {
            if (kPieces % kGroupThreads && row + l * kBy >= kAll) break;
            const E* from = data + (int64_t)(row + l * kBy) * ld + chunk * 8;
            cp_async(to + Rows::at(l * kBy, 0), from, row + l * kBy < rows ? bytes : 0);
        }
    }
};
