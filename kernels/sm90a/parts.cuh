// Layers that share an input, in one launch, as parts of one product:
//
//   [H_0 H_1 ..] = X [W0_0; W0_1; ..]ᵀ + ..     parts of n: a tile is one layer's
//   dX = [dH_0 dH_1 ..] [W0_0; W0_1; ..] + ..   parts of what is summed over: a step is one layer's
//   S  = [S_0 S_1 ..],  dS = [dS_0 dS_1 ..]     parts of r, by columns
//
// The matrices of a layer are where they are, with a descriptor each. A part begins with a tile or a step
// of its own. In B, as a matrix of all outputs and all ranks, the layers' are blocks on the diagonal: at a
// column before the first of its own or after the last, the TMA reads zeros.
// NOTES: so a zero may meet a number of another layer in S or dH. If that is not finite, the sum is not.
#pragma once

#include "wgmma.cuh"

constexpr int kMaxParts = 4;

// Mirrored by cuda::hopper::Parts in Rust. Of the layers that there are not, the starts are INT_MAX.
struct Parts {
    int start[kMaxParts];       // among the outputs of all layers, counted in whole tiles or steps
    int rank_start[kMaxParts];  // among the columns of S
    int rank[kMaxParts];        // the count of those
    float scale[kMaxParts];     // of those

    // Whose an output is.
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
