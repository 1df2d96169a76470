// Which tiles of linear.cuh a pair of blocks works on, and in which order. Its loaders,
// scouts and multipliers all go through them by themselves. src/plan/hopper.rs chooses the order, and
// its tests go through a copy of it.
#pragma once

#include "grads.cuh"

// What both forms of the product have. Mirrored by cuda::hopper::HopperProduct in Rust.
struct HopperProduct {
    void* s;          // where lhs_ext is written, m×r
    uint32_t* flags;  // a count, then one for every 128 rows of lhs_ext, then one for every warp below
    float* partials;  // what every multiplying warp has made of a tile that another finishes
    int m, n, k, r;   // of all layers: n of the forward and k of the other as Parts counts outputs
    int slices;       // of lhs_ext, to be made here; 0 if it is an input
    int slice_cols;   // columns of tiles that make a slice: one for each, or more if it is the only one
    int group;        // rows of pairs of tiles that are worked on together once there are no slices left
    int makers;       // pairs of blocks that make slices, whole rows of them at a time
    int whole;        // pairs of tiles that are not shared, a multiple of the pairs of blocks, or all
    int projectors;   // pairs of blocks, the first ones, that make lhs_ext for the others
    int streamers;    // pairs of blocks, the last ones, that work on grads and not on tiles
    Parts parts;
};
static_assert(sizeof(HopperProduct) == 136);

// Boxes of 64 rows and so many columns of an output.
struct OutBoxes {
    TensorMap by_64, by_32, by_16;
};

// Where a layer is among those that share X.
// NOTES: nothing to be looked for in kernels of one layer: the loader would take 1 to 2 % longer.
template <bool kShared>
struct HopperLayers : HopperProduct {
    __device__ __forceinline__ int part(int at) const { return kShared ? parts.of(at) : 0; }
    __device__ __forceinline__ int start(int part) const { return kShared ? parts.start[part] : 0; }
    __device__ __forceinline__ int rank_start(int part) const {
        return kShared ? parts.rank_start[part] : 0;
    }
    __device__ __forceinline__ int rank(int part) const { return kShared ? parts.rank[part] : r; }
    __device__ __forceinline__ float scale_of(int rank_col) const {
        return kShared ? parts.scale_of(rank_col) : parts.scale[0];
    }
};

// Mirrored by cuda::hopper in Rust, as ForwardParams and InputGradParams. What is of a layer has it as its
// index.
template <bool kMnMajor, bool kShared>
struct HopperLinearParams;

template <bool kShared>
struct HopperLinearParams<false, kShared> : HopperLayers<kShared> {
    TensorMap of_lhs, of_down, lhs_ext;
    struct {
        TensorMap rhs, rhs_ext;
        OutBoxes out;
    } of[kMaxParts];

    __device__ __forceinline__ const TensorMap& lhs(int) const { return of_lhs; }
    __device__ __forceinline__ const TensorMap& down(int) const { return of_down; }
    __device__ __forceinline__ const TensorMap& rhs(int part) const { return of[part].rhs; }
    __device__ __forceinline__ const TensorMap& rhs_ext(int part) const { return of[part].rhs_ext; }
    __device__ __forceinline__ const OutBoxes& out(int part) const { return of[part].out; }
};
static_assert(sizeof(HopperLinearParams<false, true>) == 3136);

template <bool kShared>
struct HopperLinearParams<true, kShared> : HopperLayers<kShared> {
    TensorMap lhs_ext, of_rhs_ext;
    OutBoxes of_out;
    struct {
        TensorMap lhs, rhs, down;
    } of[kMaxParts];
    HopperGradsParams grads;

    __device__ __forceinline__ const TensorMap& lhs(int part) const { return of[part].lhs; }
    __device__ __forceinline__ const TensorMap& down(int part) const { return of[part].down; }
    __device__ __forceinline__ const TensorMap& rhs(int part) const { return of[part].rhs; }
    __device__ __forceinline__ const TensorMap& rhs_ext(int) const { return of_rhs_ext; }
    __device__ __forceinline__ const OutBoxes& out(int) const { return of_out; }
};
static_assert(sizeof(HopperLinearParams<true, true>) == 3968);

constexpr int kTileM = 128, kTileK = 64, kMultiplyingWarps = 8;

// A block's part of a pair of tiles.
template <int kN>
struct Tile {
    int m0, n0;
    bool makes_slice;  // of lhs_ext, beside its own columns

    // Which it makes.
    __device__ __forceinline__ int slice(const HopperProduct& p) const {
        return p.slices == 1 ? 0 : n0 / kN;
    }
    // It needs nobody else's.
    __device__ __forceinline__ bool is_alone(const HopperProduct& p) const {
        return makes_slice && p.slices == 1;
    }
    // Others need what it makes.
    __device__ __forceinline__ bool tells(const HopperProduct& p) const {
        return makes_slice && (p.slices > 1 || n0 == 0);
    }

    // Columns of lhs_ext that are multiplied with rhs_ext at its end: of one layer, or of all.
    template <bool kShared>
    __device__ __forceinline__ int ranks(const HopperLayers<kShared>& p, bool of_all) const {
        return of_all || is_alone(p) ? p.r : p.rank(p.part(n0));
    }

    // So many steps along k from the first on; after the last of all comes step 0.
    int first, steps;
};

// dividend / divisor, in far fewer cycles than `/` takes. Dividends are below 2^24, and quotients below
// 2^22 or the divisor is 1: they count tiles, and the output of more would not fit any memory.
__device__ __forceinline__ int divide(int dividend, int divisor, int& remainder) {
    int quotient = (int)__fdividef(dividend, divisor);  // off by one at most
    remainder = dividend - quotient * divisor;
    if (remainder < 0) quotient--, remainder += divisor;
    if (remainder >= divisor) quotient++, remainder -= divisor;
    return quotient;
}

// The tiles of a pair of blocks, tiles counted in pairs too: every so many-th of the whole ones, then its
// span of those that are shared, of which all pairs have equally many steps.
//
//   pair 0   |tile 0|tile 3|tile 6        |last steps of 7|
//   pair 1   |tile 1|tile 4|first of 7|tile 8   |last of 9|
//   pair 2   |tile 2|tile 5|first of 9     |tile 10       |
//            |    whole    |            spans             |
//
// A pair leaves what it has made of the first tile in its span to the pair before, and ends with a tile
// that the next pair began with. In spans as before, all go along k together or nearly, so that they find
// in the L2 what others have just read: the first tile begins with step 0, the last ends with the last
// step, and one in between begins where the others are by then.
//
// Pairs that make slices begin with the tiles that do, row by row. All other tiles come in groups of
// rows, column by column, so that lhs and rhs are shared in the L2.
template <int kN, bool kSlices>
struct Tiles {
    const HopperProduct& p;
    int wave;            // whole tiles before
    int begin, end, at;  // of its span, in steps of all tiles that are shared

    __device__ __forceinline__ int rows() const { return (p.m + 2 * kTileM - 1) / (2 * kTileM); }
    __device__ __forceinline__ int cols() const { return (p.n + kN - 1) / kN; }
    __device__ __forceinline__ int steps() const { return (p.k + kTileK - 1) / kTileK; }

    __device__ __forceinline__ int pair() const { return blockIdx.x / 2 - p.projectors; }
    __device__ __forceinline__ int pairs() const {
        return gridDim.x / 2 - p.streamers - p.projectors;
    }

    __device__ __forceinline__ explicit Tiles(const HopperProduct& p) : p(p), wave(0) {
        int longer;  // spans, by one step
        const int span = divide((rows() * cols() - p.whole) * steps(), pairs(), longer);
        begin = at = pair() * span + min(pair(), longer);
        end = at + span + (pair() < longer);
    }

    __device__ __forceinline__ bool in_span() const { return wave * pairs() + pair() >= p.whole; }
    __device__ __forceinline__ bool done() const { return in_span() && at >= end; }

    // If its tile has not all the steps along k: it has the first of all, whose sums are left to the pair
    // before; or the last, which finish what the next pair has left.
    __device__ __forceinline__ bool leaves(const Tile<kN>& tile) const {
        return tile.steps < steps() && at + tile.steps < end;
    }
    __device__ __forceinline__ bool finishes(const Tile<kN>& tile) const {
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
            kSlices ? min(all_slices, wave * p.makers + min(pair(), p.makers)) : 0;
        const bool makes_slice = kSlices && pair() < p.makers && slices_before < all_slices;
        int rest = wave * pairs() + pair() - slices_before;  // tiles that make no slices, before
        int first = 0, count = steps();
        if (in_span()) {
            int before;  // steps of the tile that are in the span before
            rest = p.whole - all_slices + divide(at, steps(), before);
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
        if (makes_slice) {
            row = divide(slices_before, slice_cols, col);
        } else {
            const int group0 = divide(rest, p.group * (cols() - slice_cols), in_group) * p.group;
            col = slice_cols + divide(in_group, min(p.group, rows() - group0), row);
            row += group0;
        }
        const int m0 = (2 * row + (int)cluster_rank()) * kTileM;
        return {m0, col * kN, makes_slice, first, count};
    }
};

// ---------------------------------------------------------------------------------------------
// How what is made of a shared tile changes hands, warp by warp

// threadIdx.x, read where it is needed: what follows from it would otherwise be kept in registers that
// accumulators need.
__device__ __forceinline__ int thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(index));
    return index;
}

// The flag of a multiplying warp, for what it has left.
__device__ __forceinline__ uint32_t* flag_of_warp(const HopperProduct& p, int block, int warp) {
    return &p.flags[1 + (p.m + kTileM - 1) / kTileM + block * kMultiplyingWarps + warp];
}

// Its place in `partials`, of 16 bytes for every lane at a time.
__device__ __forceinline__ float4* partial_of_warp(const HopperProduct& p, int block, int warp,
                                                   int floats, int lane) {
    const int64_t start = (int64_t)(block * kMultiplyingWarps + warp) * 32 * floats;
    return reinterpret_cast<float4*>(p.partials + start) + lane;
}

// Leaves what a warp has made of a tile to the pair of blocks before.
template <int kFloats>
__device__ __forceinline__ void leave_partial(const HopperProduct& p,
                                              const float (&acc)[kFloats]) {
    const int thread = thread_index(), warp = thread / 32 - 4;
    float4* partial = partial_of_warp(p, blockIdx.x, warp, kFloats, thread % 32);
#pragma unroll
    for (int i = 0; i < kFloats / 4; i++)
        partial[i * 32] = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
}

// Adds what the same warp of the next pair has left, long ago as a rule.
template <int kFloats>
__device__ __forceinline__ void add_partial(const HopperProduct& p, float (&acc)[kFloats]) {
    const int thread = thread_index(), warp = thread / 32 - 4, block = blockIdx.x + 2;
    uint32_t* flag = flag_of_warp(p, block, warp);
    const float4* partial = partial_of_warp(p, block, warp, kFloats, thread % 32);
    // NOTES: by a vote, for the compiler to know that whole warps go on together.
    while (__any_sync(~0u, flag_load_acquire(flag) == 0)) {
    }
    if (thread % 32 == 0) *flag = 0;
#pragma unroll
    for (int i = 0; i < kFloats / 4; i++) {
        const float4 v = __ldcg(&partial[i * 32]);
        acc[4 * i] += v.x, acc[4 * i + 1] += v.y, acc[4 * i + 2] += v.z, acc[4 * i + 3] += v.w;
    }
}
