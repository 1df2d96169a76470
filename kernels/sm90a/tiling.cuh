// Where a block of linear.cuh that works on tiles has everything in shared memory.
#pragma once

#include "tiles.cuh"

constexpr int kLhsBytes = kTileM * kTileK * 2;
constexpr int kMaxStages = 5, kBoxBytes = 64 * 32 * 2;
// Where the barriers are in shared memory, whatever else is before.
constexpr int kBarriersAt = 224 << 10;

// The tile 128×kN of a block, which may make slices of kSlice columns of lhs_ext too, if that is not 0.
template <int kN, bool kMnMajor, int kSlice>
struct Tiling {
    static_assert(kN % 16 == 0 && kN <= 256);
    // What lies MN-major comes in boxes of 64 columns.
    static constexpr int kRhsCols = kMnMajor ? (kN + 63) / 64 * 64 : kN;
    static constexpr int kRhsBytes = kRhsCols * kTileK * 2;
    // A slice's part of down lies behind rhs, or where there is no room for it, behind all stages, where
    // the output has its boxes once slices are made.
    static constexpr bool kDownApart = kSlice > 0 && (kMnMajor || kSlice > 16);
    static constexpr int kDownBytes = (kDownApart ? 64 : kSlice) * kTileK * 2;
    static constexpr int kStages = kN > 176 || (kN > 128 && kDownApart) ? 4 : 5;
    static constexpr int kStageBytes = kLhsBytes + kRhsBytes + (kDownApart ? 0 : kDownBytes);
    // The output goes to the TMA by way of boxes of 64×32, as many for each warpgroup as fit. Two of
    // them or one make a part.
    static constexpr int kBoxes = (kBarriersAt - kStages * kStageBytes) / (2 * kBoxBytes) < 4 ? 3 : 4;
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
    static_assert(kStages * kStageBytes + 2 * kBoxes * kBoxBytes <= kBarriersAt);
    static_assert(kStages * (kStageBytes + (kDownApart ? kDownBytes : 0)) <= kBarriersAt);

    // Where down is, given the stage and where its rhs is.
    static __device__ __forceinline__ uint32_t down(uint32_t base, int stage, uint32_t rhs) {
        return kDownApart ? base + kStages * kStageBytes + stage * kDownBytes : rhs + kRhsBytes;
    }
};

__device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * stage;
}

__device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * (kMaxStages + stage);
}

// The scout has seen the flag of a tile; the loader has seen that it has.
__device__ __forceinline__ uint32_t scouted(uint32_t base) { return empty(base, kMaxStages); }
__device__ __forceinline__ uint32_t taken(uint32_t base) { return scouted(base) + 8; }
// The multipliers have made a slice of lhs_ext; the scout has seen that they have.
__device__ __forceinline__ uint32_t sliced(uint32_t base) { return scouted(base) + 16; }
__device__ __forceinline__ uint32_t noticed(uint32_t base) { return scouted(base) + 40; }
// The multipliers have written what they leave of a shared tile.
__device__ __forceinline__ uint32_t left(uint32_t base) { return scouted(base) + 24; }
// The boxes of the output of both blocks are read, and down may come there.
__device__ __forceinline__ uint32_t stored(uint32_t base) { return scouted(base) + 32; }
