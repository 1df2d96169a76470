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

#include "manifest/sm80/merge.cuh"

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

#include "instances/sm80/merge.cuh"
