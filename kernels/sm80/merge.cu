// The adapter folded into the weight, out = W + scale · B A:
//
//   W and out d×k, B (d×r), A (r×k). W and out may be the same memory: a thread reads eight
//   elements of W before it writes those elements of out, and no other thread touches them.
//
// Bound by reading W and writing out, each once. B A is accumulated in f32, added to W in f32, and
// rounded once.
//
// Grid: ⌈d/64⌉ · ⌈k/128⌉, along k first. Block: 4 warps, 2 along d × 2 along k, 32×64 each.
// Shared memory: 2 stages of (64 + 128)×32 elements, 24 KiB.
#include "tile.cuh"

// Mirrored by cuda::params::MergeParams in Rust.
struct MergeParams {
    Operand w, b, a, out;
    int d, k, r;
    float scale;
};
static_assert(sizeof(MergeParams) == 80);

constexpr int kTileD = 64, kTileK = 128, kStepR = 32, kStages = 2;

template <typename E>
__device__ __forceinline__ void merge(const MergeParams& p) {
    using Product =
        TileProduct<E, kTileD, kTileK, kStepR, 2, 2, 1, Major::K, Major::MN, kStages>;
    extern __shared__ __align__(128) unsigned char shared[];
    const int tiles_k = (p.k + kTileK - 1) / kTileK;
    const int d0 = blockIdx.x / tiles_k * kTileD, k0 = blockIdx.x % tiles_k * kTileK;

    Product product;
    const Segment whole[] = {{p.b, p.a, p.r}};
    product.run(shared, whole, 1, p.d, p.k, d0, k0);
    product.for_each_chunk(shared, [&](int row, int col, const float(&update)[8]) {
        if (d0 + row >= p.d) return;
        float w[8];
        load_chunk<E>(w, p.w, d0 + row, k0 + col, p.k);
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] += p.scale * update[i];
        store_chunk<E>(p.out, d0 + row, k0 + col, p.d, p.k, w);
    });
}

#define MERGE_KERNEL(name, E)                                     \
    extern "C" __global__ void __launch_bounds__(128)             \
        name(const __grid_constant__ MergeParams params) {        \
        merge<E>(params);                                         \
    }

MERGE_KERNEL(merge_bf16, __nv_bfloat16)
MERGE_KERNEL(merge_f16, __half)
