// The small vocabulary that every kernel of this path is written in.
//
//   Operand       a matrix in global memory, and whether its rows allow 16-byte accesses
//   Major         which of an operand's two indices is contiguous in memory (operand_tile.cuh)
//   Segment       a stretch of the inner dimension: an lhs, an rhs, and how long they are
//   TileProduct   acc += lhs · rhsᵀ for one CTA's tile, over a list of segments
//   TileSums      acc: added up, dropped, handed out (tile_sums.cuh)
//
// Indices follow one convention: a tile of the product has m rows and n columns and sums over k.
//
// The pipeline: kStages buffers in shared memory, filled by cp.async, kStages steps ahead. A step
// is kK of k, and a warp's slice of it at least two k16, the k of an mma. With kStages = 4 and two
// k16:
//
//   step               s                              s+1
//   mma       |k16 0      |k16 1            |k16 0      |k16 1            |
//   ldmatrix  |s, k16 1   | s+1, k16 0      |s+1, k16 1 | s+2, k16 0      |   one k16 ahead
//   barrier               ^ s+1 is there                ^ s+2 is there
//   cp.async              |         s+4     |           |         s+5     |   into the stage of s
//
// The one barrier of a step stands before its last k16. Before it every thread waits for its own
// copies of the next stage, so that behind it the next stage is there; and every warp has the last
// fragments of this stage in registers, so that behind it this stage is free. Every step commits
// one group of copies, an empty one where nothing is left to load: the wait counts steps.
//
// Operands that are shifted go through registers (OperandTile::Shifted), all along a step and
// between the mma, into the stage that the step before has freed: kStages - 1 steps ahead. So do
// the copies of an lhs beside a shifted rhs, at the start of the step.
//
// Sums along k are in the order of k, k16 by k16, whatever the tile; warps along k sum their slices
// of all steps apart.
#pragma once

#include "operand_tile.cuh"
#include "tile_sums.cuh"

// The operands of a product of which whole steps are shifted (OperandTile::Shifted), because their
// rows do not start at multiples of 16 bytes. Elsewhere such rows are gathered.
enum class Shifts { None, Rhs, Both };

// What a product does before it loads a segment, if that is nothing.
struct BeforeNone {
    __device__ __forceinline__ void operator()(int) const {}
};

// What a product does with X before it multiplies it, if that is nothing.
struct KeepAll {};

// kM×kN of acc += lhs · rhsᵀ by kWarpsM·kWarpsN·kWarpsK warps. Warps along k each take a slice of
// every step. Shifted steps are kDepth ahead in registers.
template <typename E, int kM, int kN, int kK, int kWarpsM, int kWarpsN, int kWarpsK, Major kLhs,
          Major kRhs, int kStages, Shifts kShifts = Shifts::None, int kDepth = 1>
struct TileProduct : TileSums<E, kM, kN, kWarpsM, kWarpsN, kWarpsK> {
    using Sums = TileSums<E, kM, kN, kWarpsM, kWarpsN, kWarpsK>;
    using Sums::acc, Sums::kThreads, Sums::kWarpM, Sums::kWarpN, Sums::kM16, Sums::kN16;
    using Sums::warp_m, Sums::warp_n, Sums::warp_k;
    static constexpr int kK16 = kK / 16 / kWarpsK;
    using Lhs = OperandTile<E, kLhs, kM, kK>;
    using Rhs = OperandTile<E, kRhs, kN, kK>;
    using LhsStream = typename Lhs::template Stream<kThreads>;
    using RhsStream = typename Rhs::template Stream<kThreads>;
    static constexpr int kLhsPasses = kShifts == Shifts::Both ? LhsStream::P::kPasses : 0;
    static constexpr int kPasses = kLhsPasses + RhsStream::P::kPasses;
    using LhsShifted = typename Lhs::template Shifted<kThreads, kDepth>;
    using RhsShifted = typename Rhs::template Shifted<kThreads, kDepth>;
    static constexpr int kStageBytes = Lhs::kBytes + Rhs::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
    static_assert(kK16 * 16 * kWarpsK == kK);
    static_assert(Sums::kReduceBytes <= kSharedBytes && Sums::kStagedBytes <= kSharedBytes);
    // `fragment` steps through chunks by exclusive or: a warp must start at a group of them.
    static_assert(kLhs == Major::K || kWarpM % 64 == 0 || kM16 == 1);
    static_assert(kRhs == Major::K || kWarpN % 64 == 0 || kWarpN == 32 || kN16 == 1);

    // The whole sum for the tile at (m0, n0) of an output of m×n: over `count` segments, one after
    // the other in one pipeline. before(i) is called before anything of segment i is loaded, by all
    // threads. `drop` is one of two: drop(stage, step) is called for each step when its stage has
    // arrived; drop(lhs, step, k16) for a warp's fragments of 16 columns, before they are
    // multiplied: acc is then the sum of all before. With kAdds, the sum is added to acc.
    // Afterwards shared memory is free.
    template <bool kAdds = false, int kMost, typename F = BeforeNone, typename D = KeepAll>
    __device__ __forceinline__ void run(unsigned char* shared, const Segment (&segments)[kMost],
                                        int count, int m, int n, int m0, int n0,
                                        const F& before = F(), const D& drop = D()) {
        constexpr bool kDropsLhs = std::is_invocable_v<D, uint32_t(&)[kM16][4], int, int>;
        constexpr bool kDropsStages = !kDropsLhs && !std::is_same_v<D, KeepAll>;
        const uint32_t stages = shared_address(shared);
        // What is loaded next: the segment, and from where on along its k.
        int at = 0, k0 = 0;
        // A segment that is alone is not indexed by a variable, so that it can stay in registers.
        auto segment = [&]() -> const Segment& { return segments[kMost > 1 ? at : 0]; };
        auto end_segment = [&] {
            if (k0 >= segment().k) at++, k0 = 0;
        };
        auto load = [&](uint32_t stage) {
            if (at == count) return;
            if (k0 == 0) before(at);
            const Segment& s = segment();
            Lhs::template load<kThreads>(stage, s.lhs, m, s.k, m0, k0);
            Rhs::template load<kThreads>(stage + Lhs::kBytes, s.rhs, n, s.k, n0, k0);
            k0 += kK;
            end_segment();
        };

        // Shifted rows: whole steps of every segment but that of S, which this launch may write and
        // which does not go through the L1.
        [[maybe_unused]] std::conditional_t<kShifts == Shifts::Both, LhsShifted, LhsStream> lhs;
        [[maybe_unused]] RhsShifted rhs;
        [[maybe_unused]] int to_store = 0, to_fetch = 0;
        // Pass i of the next step of them.
        auto fetch = [&](int slot, int i) {
            if constexpr (kLhsPasses > 0)
                if (i < kLhsPasses) lhs.fetch(slot, i, to_fetch > 0);
            if (i >= kLhsPasses) rhs.fetch(slot, i - kLhsPasses, to_fetch > 0);
            if (i < kPasses - 1) return;
            to_fetch--, rhs.advance();
            if constexpr (kLhsPasses > 0) lhs.advance();
        };
        // The copies of an lhs that is not shifted.
        auto load_lhs = [&](uint32_t stage) {
            if constexpr (kLhsPasses == 0) lhs.load(stage);
        };
        auto store_and_fetch = [&](uint32_t stage, int slot, int i) {
            if constexpr (kLhsPasses > 0)
                if (i < kLhsPasses) lhs.store(stage, slot, i);
            if (i >= kLhsPasses) rhs.store(stage + Lhs::kBytes, slot, i - kLhsPasses);
            fetch(slot, i);
            if (i < kPasses - 1) return;
            to_store--, k0 += kK;
            end_segment();
        };
        auto rotate = [&] {
            rhs.rotate();
            if constexpr (kLhsPasses > 0) lhs.rotate();
        };
        // Whether the next step is one of them.
        auto is_shifted = [&] {
            if (kShifts == Shifts::None || at == count) return false;
            if (k0 == 0 && (at == 0 || at < count - 1)) {
                const Segment& s = segment();
                const bool serves_lhs = kShifts == Shifts::Both ? LhsShifted::serves(s.lhs)
                                                                : LhsStream::serves(s.lhs, m);
                const bool serves = serves_lhs && RhsShifted::serves(s.rhs);
                to_store = to_fetch = serves ? RhsShifted::steps(s.k) : 0;
                if (to_store > 0) {
                    before(at);
                    if constexpr (kShifts == Shifts::Both) {
                        lhs = LhsShifted(s.lhs, m, m0);
                    } else {
                        lhs = LhsStream(s.lhs, m, m0, 0);
                    }
                    rhs = RhsShifted(s.rhs, n, n0);
#pragma unroll
                    for (int slot = 0; slot < kDepth; slot++)
#pragma unroll
                        for (int i = 0; i < kPasses; i++) fetch(slot, i);
                }
            }
            return to_store > 0;
        };

        const int warp_k0 = warp_k() * kK16 * 16;
        uint32_t lhs_lane = Lhs::template lane_offset<true>(warp_m() * kWarpM, warp_k0);
        uint32_t rhs_lane =
            Lhs::kBytes + Rhs::template lane_offset<false>(warp_n() * kWarpN, warp_k0);
        pin_register(lhs_lane);
        pin_register(rhs_lane);
        uint32_t a[2][kM16][4], b[2][kN16][4];
        // The `index`-th ldmatrix of a k16, in the order in which its mma need them.
        auto fragment = [&](uint32_t stage, int k16, int index) {
            if (index == 0)
                Lhs::fragment(a[k16 % 2][0], stage, lhs_lane, 0, k16);
            else if (index <= kN16)
                Rhs::fragment(b[k16 % 2][index - 1], stage, rhs_lane, index - 1, k16);
            else
                Lhs::fragment(a[k16 % 2][index - kN16], stage, lhs_lane, index - kN16, k16);
        };

        // Multiplies the stage `read`, and loads the first fragments of the stage `next`. Calls
        // copies(slot) before each mma and behind the last of a k16: in kFreeSlot the stage `read`
        // is free.
        //
        // NOTES: the mma are volatile, so that ldmatrix and copies stay between them, where they
        // are written: two mma to an ldmatrix, and the copies late, behind all of them. ptxas
        // otherwise moves the ldmatrix of a k16 to its start, and tensor cores wait: 808 µs, not
        // 683, for 8192×4096² in tiles of 128×256 on an H200. Rows of mma alternate their
        // direction, so that an mma has a fragment in common with the one before.
        constexpr int kMmas = kM16 * kN16 * 2, kSlots = kK16 * (kMmas + 1);
        constexpr int kFreeSlot = kSlots - (kMmas + 1) + (kMmas < 24 ? kMmas : 24);
        [[maybe_unused]] int steps_done = 0;
        auto step = [&](uint32_t read, uint32_t next, auto&& copies) {
            constexpr int kFragments = kM16 + kN16;
            static_assert(kK16 % 2 == 0, "fragments alternate: a step must end where it began");
#pragma unroll
            for (int k16 = 0; k16 < kK16; k16++) {
                const bool is_last = k16 + 1 == kK16;
                if (is_last) {
                    cp_async_wait<kStages - 2>();
                    __syncthreads();
                    if constexpr (kDropsStages) {
                        drop(next, steps_done + 1);
                        __syncthreads();
                    }
                }
                if constexpr (kDropsLhs) drop(a[k16 % 2], steps_done, k16);
#pragma unroll
                for (int q = 0; q <= kMmas; q++) {
                    // The last step reads a stage that was not filled; its fragments are not used.
                    if (q % 2 == 0 && q / 2 < kFragments)
                        fragment(is_last ? next : read, is_last ? 0 : k16 + 1, q / 2);
                    copies(k16 * (kMmas + 1) + q);
                    if (q == kMmas) break;
                    const int i = q / (kN16 * 2), in_row = q % (kN16 * 2);
                    const int j = i % 2 ? kN16 * 2 - 1 - in_row : in_row;
                    mma_in_place<E>(acc[i][j], a[k16 % 2][i], b[k16 % 2][j / 2][j % 2 * 2],
                                    b[k16 % 2][j / 2][j % 2 * 2 + 1]);
                }
                if (kShifts == Shifts::None && is_last) cp_async_commit();
            }
            if constexpr (kDropsLhs || kDropsStages) steps_done++;
        };

#pragma unroll
        for (int i = 0; i < kM16; i++)
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (!kAdds) acc[i][j][c] = 0.f;
        constexpr int kAhead = kShifts == Shifts::None ? kStages : kStages - 1;
        for (int ahead = 0; ahead < kAhead; ahead++) {
            const uint32_t stage = stages + ahead * kStageBytes;
            if (is_shifted()) {
                load_lhs(stage);
#pragma unroll
                for (int i = 0; i < kPasses; i++) store_and_fetch(stage, 0, i);
                rotate();
            } else {
                load(stage);
            }
            cp_async_commit();
        }
        cp_async_wait<kAhead - 1>();
        __syncthreads();
        if constexpr (kDropsStages) {
            drop(stages, 0);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < kM16 + kN16; i++) fragment(stages, 0, i);

        int steps = 0;
        for (int i = 0; i < count; i++) steps += (segments[i].k + kK - 1) / kK;
        const uint32_t end = stages + kSharedBytes;
        uint32_t read = stages;
        auto single_step = [&](auto&& copies) {
            const uint32_t next = read + kStageBytes == end ? stages : read + kStageBytes;
            step(read, next, copies);
            read = next;
        };
        // What is left to load is fewer steps than are left to multiply, so that after the steps
        // without checks there is always one more.
        for (; steps > 0; steps--) {
            if (kShifts == Shifts::None && at < count && LhsStream::serves(segment().lhs, m) &&
                RhsStream::serves(segment().rhs, n)) {
                if (k0 == 0) before(at);
                const Segment& s = segment();
                LhsStream lhs(s.lhs, m, m0, k0);
                RhsStream rhs(s.rhs, n, n0, k0);
                auto copies = [&](uint32_t stage, int slot) {
                    if (slot != kFreeSlot) return;
                    lhs.load(stage);
                    rhs.load(stage + Lhs::kBytes);
                };
                int whole = (s.k - k0) / kK;
                k0 += whole * kK, steps -= whole;
                for (; whole > 0; whole--) {
                    // NOTES: unrolled over the stages, whose addresses are then constants. The
                    // instructions that compute them take issue slots of mma: 683 µs, not 636.
                    if (read == stages)
                        for (; whole >= kStages; whole -= kStages)
#pragma unroll
                            for (int i = 0; i < kStages; i++) {
                                const uint32_t stage = stages + i * kStageBytes;
                                step(stage, i + 1 < kStages ? stage + kStageBytes : stages,
                                     [&](int slot) { copies(stage, slot); });
                            }
                    if (whole == 0) break;
                    single_step([&](int slot) { copies(read, slot); });
                }
                end_segment();
            }
            [[maybe_unused]] auto free = [&] {
                return (read == stages ? end : read) - kStageBytes;
            };
            if constexpr (kShifts == Shifts::None) {
                single_step([&](int slot) {
                    if (slot == kFreeSlot) load(read);
                });
            } else if (is_shifted()) {
#pragma unroll
                for (int from = 0; from < kDepth && to_store > 0; from++) {
                    if (from > 0) steps--;
                    single_step([&, stage = free()](int slot) {
                        if (slot == 0) load_lhs(stage), cp_async_commit();
#pragma unroll
                        for (int i = 0; i < kPasses; i++)
                            if (slot == i * kSlots / kPasses) store_and_fetch(stage, from, i);
                    });
                }
            } else {
                single_step([&, stage = free()](int slot) {
                    if (slot > 0) return;
                    load(stage);
                    cp_async_commit();
                });
            }
        }
        cp_async_wait<0>();
        __syncthreads();
    }
};
