// The shared memory of a CTA of linear.cuh that computes output tiles.
//
//   |stage 0: lhs 128×64, rhs kN×64[, A or B: slice×64]|stage 1| ... |output boxes|barriers|
//
// A or B MN-major, or of 64 columns, does not fit into the stages: it lies behind all of them,
// where the output boxes are once all slices of S are computed.
#pragma once

#include "linear_tiles.cuh"
#include "manifest/sm90a/linear_layout.cuh"

constexpr int kBoxBytes = 64 * 32 * 2;
static_assert(8 * (2 * kMaxStages + 6) <= kBarrierBytes);

// Tiles of 128×kN, with slices of kSlice columns of S, or 0.
template <int kN, Major kRhs, int kSlice>
struct LinearLayout {
    static_assert(kN % 16 == 0 && kN <= 256);
    using Lhs = SmemTile<Major::K, kTileM>;
    using Rhs = SmemTile<kRhs, kN>;
    using ProjWeight = SmemTile<kRhs, (kSlice > 0 ? kSlice : 16)>;
    // MN-major, rhs comes in whole boxes of 64 columns.
    static constexpr int kRhsCols = Rhs::kBytes / (kTileK * 2);
    static constexpr bool kProjWeightApart = kSlice > 0 && (kRhs == Major::MN || kSlice > 16);
    static constexpr int kProjWeightBytes = kSlice > 0 ? ProjWeight::kBytes : 0;
    static constexpr int kStages = kN > 176 || (kN > 128 && kProjWeightApart) ? 4 : 5;
    static constexpr int kStageBytes =
        Lhs::kBytes + Rhs::kBytes + (kProjWeightApart ? 0 : kProjWeightBytes);
    using Stages = ::Stages<kStages, kStageBytes, kBarriersAt, kMaxStages>;

    // The output goes to the TMA through boxes of 64×32, as many for each warpgroup as fit. One or
    // two of them make a part.
    static constexpr int kBoxesAt = kStages * kStageBytes;
    static constexpr int kBoxes = (kBarriersAt - kBoxesAt) / (2 * kBoxBytes) < 4 ? 3 : 4;
    static constexpr int kParts = kBoxes == 4 ? (kN + 63) / 64 : (kN + 95) / 96 + (kN + 31) / 96;
    static constexpr __device__ int part_col(int part) {
        return kBoxes == 4 ? part * 64 : part / 2 * 96 + part % 2 * 64;
    }
    static constexpr __device__ int part_cols(int part) {
        const int cols = kBoxes == 3 && part % 2 == 1 ? 32 : 64, rest = kN - part_col(part);
        return rest < cols ? rest : cols;
    }
    // Two boxes make one of 64×64 where that comes out even.
    static constexpr bool kWideBoxes = kBoxes == 4 && kN % 64 == 0;
    static_assert(kBoxesAt + 2 * kBoxes * kBoxBytes <= kBarriersAt, "no room for the output");
    static_assert(kStages * (kStageBytes + (kProjWeightApart ? kProjWeightBytes : 0)) <=
                  kBarriersAt);

    // Where A or B of a stage is, given where its rhs is.
    static __device__ __forceinline__ uint32_t proj_weight(uint32_t base, int stage, uint32_t rhs) {
        return kProjWeightApart ? base + kBoxesAt + stage * kProjWeightBytes : rhs + Rhs::kBytes;
    }
};

// Barriers behind the barriers of the stages.
struct LinearBarriers {
    uint32_t flag_seen, flag_taken;  // flag warp → producer: S of a tile is there; and back
    uint32_t slice_stored,
        slice_stored_seen;     // consumers → flag warp: a slice is written; and back
    uint32_t partial_written;  // consumers → partial warp
    uint32_t output_stored;    // consumers of both CTAs → producer: the output boxes are free

    __device__ __forceinline__ explicit LinearBarriers(uint32_t base)
        : flag_seen(base + kBarriersAt + 8 * 2 * kMaxStages),
          flag_taken(flag_seen + 8),
          slice_stored(flag_seen + 16),
          slice_stored_seen(flag_seen + 40),
          partial_written(flag_seen + 24),
          output_stored(flag_seen + 32) {}

    // By one thread.
    __device__ __forceinline__ void init() const {
        mbarrier_init(flag_seen, 1);
        mbarrier_init(flag_taken, 1);
        mbarrier_init(slice_stored, kConsumerWarps);
        mbarrier_init(partial_written, kConsumerWarps);
        mbarrier_init(output_stored, 4);
        mbarrier_init(slice_stored_seen, 1);
    }
};
