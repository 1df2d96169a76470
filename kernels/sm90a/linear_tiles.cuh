// Which tiles of linear.cuh a cluster works on, and in which order: the tile scheduler. The
// producer, the flag warp and the consumers each walk it on their own. src/plan/sm90a/linear
// chooses the order; its tests walk a copy.
#pragma once

#include "gradients.cuh"
#include "manifest/sm90a/linear_tiles.cuh"

// Where a projection lies in its group.
// NOTES: kernels of one projection look nothing up: the producer would take 1 to 2 % longer.
template <typename Params, bool kShared>
struct HopperLayers : Params {
    __device__ __forceinline__ int part(int at) const { return kShared ? this->parts.of(at) : 0; }
    __device__ __forceinline__ int start(int part) const {
        return kShared ? this->parts.start[part] : 0;
    }
    __device__ __forceinline__ int rank_start(int part) const {
        return kShared ? this->parts.rank_start[part] : 0;
    }
    __device__ __forceinline__ int rank(int part) const {
        return kShared ? this->parts.rank[part] : this->r;
    }
    __device__ __forceinline__ float scale_of(int rank_col) const {
        return kShared ? this->parts.scale_of(rank_col) : this->parts.scale[0];
    }
};

// The parameters of a pass. X and A of the forward serve all projections, as A and dX of the input
// gradient do.
template <Major kRhs, bool kShared>
struct HopperLinearParams;

template <bool kShared>
struct HopperLinearParams<Major::K, kShared> : HopperLayers<ForwardParams, kShared> {
    __device__ __forceinline__ const TensorMap& lhs(int) const { return this->of_lhs; }
    __device__ __forceinline__ const TensorMap& proj_weight(int) const {
        return this->of_proj_weight;
    }
    __device__ __forceinline__ const TensorMap& rhs(int part) const { return this->of[part].rhs; }
    __device__ __forceinline__ const TensorMap& up_weight(int part) const {
        return this->of[part].up_weight;
    }
    __device__ __forceinline__ const OutBoxes& out(int part) const { return this->of[part].out; }
};
static_assert(sizeof(HopperLinearParams<Major::K, true>) == sizeof(ForwardParams));

template <bool kShared>
struct HopperLinearParams<Major::MN, kShared> : HopperLayers<InputGradParams, kShared> {
    __device__ __forceinline__ const TensorMap& lhs(int part) const { return this->of[part].lhs; }
    __device__ __forceinline__ const TensorMap& proj_weight(int part) const {
        return this->of[part].proj_weight;
    }
    __device__ __forceinline__ const TensorMap& rhs(int part) const { return this->of[part].rhs; }
    __device__ __forceinline__ const TensorMap& up_weight(int) const { return this->of_up_weight; }
    __device__ __forceinline__ const OutBoxes& out(int) const { return this->of_out; }
};
static_assert(sizeof(HopperLinearParams<Major::MN, true>) == sizeof(InputGradParams));

// A CTA's part of a cluster's tile pair.
template <int kN>
struct Tile {
    int m0, n0;
    bool projects;     // computes a slice of S beside its own columns
    int first, steps;  // along k: so many from the first on; step 0 follows the last

    // The slice it computes.
    __device__ __forceinline__ int slice(const HopperProduct& p) const {
        return p.slices == 1 ? 0 : n0 / kN;
    }
    // Its slice is all of S, in registers: it needs no other tile's.
    __device__ __forceinline__ bool has_all_of_s(const HopperProduct& p) const {
        return projects && p.slices == 1;
    }
    // Other tiles need its slice.
    __device__ __forceinline__ bool publishes(const HopperProduct& p) const {
        return projects && (p.slices > 1 || n0 == 0);
    }
    // Columns of S that its last steps multiply: of one projection, or `of_all`.
    template <typename Params>
    __device__ __forceinline__ int ranks(const Params& p, bool of_all) const {
        return of_all || has_all_of_s(p) ? p.r : p.rank(p.part(n0));
    }
};

// dividend / divisor, in far fewer cycles than `/`. Dividends are below 2^24, and quotients below
// 2^22 or the divisor is 1: they count tiles, and the output of more would not fit any memory.
__device__ __forceinline__ int divide(int dividend, int divisor, int& remainder) {
    int quotient = (int)__fdividef(dividend, divisor);  // off by one at most
    remainder = dividend - quotient * divisor;
    if (remainder < 0) quotient--, remainder += divisor;
    if (remainder >= divisor) quotient++, remainder -= divisor;
    return quotient;
}

// A cluster's tiles, in pairs one above the other: every clusters()-th of the full ones, then its
// span of the tail wave, which is split along K so that all clusters have equally many steps
// (stream-K).
//
//   cluster 0   |tile 0|tile 3|first of 9     |tile 10       |
//   cluster 1   |tile 1|tile 4|first of 7|tile 8   |last of 9|
//   cluster 2   |tile 2|tile 5|tile 6        |last steps of 7|
//               |  full tiles |            spans             |
//
// A cluster writes a partial tile of the first tile in its span for the next cluster, which reduces
// it: clusters wait for those before them in the grid.
// In spans too, all clusters go along k nearly together, so that they find in the L2 what others
// have just read: the first tile begins with step 0, the last ends with the last step, and one in
// between begins where the others are by then.
//
// Clusters that compute slices of S begin with the tiles that do, row by row. All other tiles come
// in groups of rows, column by column, so that lhs and rhs are shared in the L2.
template <int kN, bool kSlices>
struct TileScheduler {
    const HopperProduct& p;
    int wave;            // full tiles done
    int begin, end, at;  // of its span, in steps of all tiles of the tail wave

    __device__ __forceinline__ int rows() const { return (p.m + 2 * kTileM - 1) / (2 * kTileM); }
    __device__ __forceinline__ int cols() const { return (p.n + kN - 1) / kN; }
    __device__ __forceinline__ int steps() const { return (p.k + kTileK - 1) / kTileK; }

    __device__ __forceinline__ int cluster() const { return blockIdx.x / 2 - p.proj_clusters; }
    __device__ __forceinline__ int clusters() const {
        return gridDim.x / 2 - p.grad_clusters - p.proj_clusters;
    }

    __device__ __forceinline__ explicit TileScheduler(const HopperProduct& p) : p(p), wave(0) {
        int longer;  // spans, by one step
        const int span = divide((rows() * cols() - p.full_tiles) * steps(), clusters(), longer);
        const int index = clusters() - 1 - cluster();
        begin = at = index * span + min(index, longer);
        end = at + span + (index < longer);
    }

    __device__ __forceinline__ bool in_span() const {
        return wave * clusters() + cluster() >= p.full_tiles;
    }
    __device__ __forceinline__ bool done() const { return in_span() && at >= end; }

    // A tile with some of the steps along k: with the first of all, its sums go to the next cluster
    // as a partial tile; with the last, it adds the partial tile of the cluster before.
    __device__ __forceinline__ bool writes_partial(const Tile<kN>& tile) const {
        return tile.steps < steps() && at + tile.steps < end;
    }
    __device__ __forceinline__ bool reduces_partial(const Tile<kN>& tile) const {
        return tile.steps < steps() && at + tile.steps == end;
    }

    __device__ __forceinline__ void advance(const Tile<kN>& tile) {
        if (!in_span()) {
            wave++;
        } else {
            at += tile.steps;
        }
    }

    __device__ __forceinline__ Tile<kN> tile() const {
        const int slice_cols = kSlices ? p.slice_cols : 0, all_slices = rows() * slice_cols;
        const int slices_before =
            kSlices ? min(all_slices, wave * p.slice_clusters + min(cluster(), p.slice_clusters))
                    : 0;
        const bool projects = kSlices && cluster() < p.slice_clusters && slices_before < all_slices;
        int rest = wave * clusters() + cluster() - slices_before;  // tiles without a slice, before
        int first = 0, count = steps();
        if (in_span()) {
            int before;  // steps of the tile in the span before
            rest = p.full_tiles - all_slices + divide(at, steps(), before);
            if (before > 0) {
                count -= before;
            } else if (at + steps() > end) {
                count = end - at;
                first = steps() - count;
            } else {
                divide(at - begin, steps(), first);
            }
        }
        int in_group, row, col;
        if (projects) {
            row = divide(slices_before, slice_cols, col);
        } else {
            const int group0 = divide(rest, p.group * (cols() - slice_cols), in_group) * p.group;
            col = slice_cols + divide(in_group, min(p.group, rows() - group0), row);
            row += group0;
        }
        const int m0 = (2 * row + (int)cluster_rank()) * kTileM;
        return {m0, col * kN, projects, first, count};
    }
};

// ---- Partial tiles (stream-K), warp by warp ---------------------------------------------------

// The flag of a consumer warp's part of a partial tile.
__device__ __forceinline__ uint32_t* partial_flag(const HopperProduct& p, int cta, int warp) {
    return &p.flags[1 + (p.m + kTileM - 1) / kTileM + cta * kConsumerWarps + warp];
}

// Its place in `partials`: 16 bytes of every lane at a time.
__device__ __forceinline__ float4* partial_of_warp(const HopperProduct& p, int cta, int warp,
                                                   int floats, int lane) {
    const int64_t start = (int64_t)(cta * kConsumerWarps + warp) * 32 * floats;
    return reinterpret_cast<float4*>(p.partials + start) + lane;
}

// Writes a warp's partial sums, for the same warp of the next cluster.
template <int kFloats>
__device__ __forceinline__ void write_partial(const HopperProduct& p, const float (&acc)[kFloats]) {
    const int thread = reread_thread_index(), warp = thread / 32 - 4;
    float4* partial = partial_of_warp(p, blockIdx.x, warp, kFloats, thread % 32);
#pragma unroll
    for (int i = 0; i < kFloats / 4; i++)
        partial[i * 32] = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
}

// Adds the partial sums of the same warp of the cluster before, mostly written long ago.
template <int kFloats>
__device__ __forceinline__ void reduce_partial(const HopperProduct& p, float (&acc)[kFloats]) {
    const int thread = reread_thread_index(), warp = thread / 32 - 4, cta = blockIdx.x - 2;
    uint32_t* flag = partial_flag(p, cta, warp);
    const float4* partial = partial_of_warp(p, cta, warp, kFloats, thread % 32);
    // NOTES: a vote, so that the compiler knows that whole warps go on together.
    while (__any_sync(~0u, GridFlags::load_acquire(flag) == 0)) {
    }
    if (thread % 32 == 0) *flag = 0;
#pragma unroll
    for (int i = 0; i < kFloats / 4; i++) {
        const float4 v = __ldcg(&partial[i * 32]);
        acc[4 * i] += v.x, acc[4 * i + 1] += v.y, acc[4 * i + 2] += v.z, acc[4 * i + 3] += v.w;
    }
}
