// Projections that share X, as parts of one GEMM:
//
//   [H_0 H_1 ..] = X [W0_0; W0_1; ..]ᵀ + ..     parts of n: a tile belongs to one projection
//   dX = [dH_0 dH_1 ..] [W0_0; W0_1; ..] + ..   parts of the inner dimension: so does a step
//   S  = [S_0 S_1 ..],  dS = [dS_0 dS_1 ..]     parts of r, by columns
//
// Each projection's matrices stay where they are, with tensor maps of their own. A part begins with
// a tile or a step of its own. B of all outputs and all ranks is block diagonal: columns outside of
// a projection's own are zeros, by the TMA's bounds.
// NOTES: so a zero may meet a number of another projection in S or dH. If that is not finite, the
// sum is not.
#pragma once

#include "manifest/common/limits.cuh"
#include "manifest/sm90a/parts.cuh"
#include "wgmma.cuh"

constexpr int kMaxParts = kMaxProjections;

struct Parts : LayerParts {
    // The projection of an output.
    __device__ __forceinline__ int of(int at) const {
        return (at >= start[1]) + (at >= start[2]) + (at >= start[3]);
    }

    // The scale of a column of S or dS. Eight from a multiple of 8 on have the same.
    __device__ __forceinline__ float scale_of(int rank_col) const {
        float v = scale[0];
#pragma unroll
        for (int i = 1; i < kMaxParts; i++) v = rank_col >= rank_start[i] ? scale[i] : v;
        return v;
    }
};
static_assert(sizeof(Parts) == sizeof(LayerParts));
