// Adds the partial sums of grad.cu in the order of the splits:
//
//   out (=|+=) Σ partials[split]      partials (splits×r×n, f32), out f32
//
// out is r×n as the partial sums are (dA), or transposed, n×r (dB). With `accumulate` the finished
// sum is added to what out holds: the same bits as an overwrite followed by an addition.
//
// Grid: (⌈n/32⌉, ⌈r/32⌉). Block: 32×8 threads for a tile of 32×32, read along n and written along
// the rows of out, through shared memory when rows of out are columns of the tile.
// Reads partials; writes out, every element once.
#include "manifest/sm80/reduce.cuh"

// NOTES: the entry point itself, and not a function that one calls: ptxas would order the loads
// otherwise.
extern "C" __global__ void __launch_bounds__(kTile * kThreadRows)
    reduce(const __grid_constant__ ReduceParams p) {
    __shared__ float tile[kTile][kTile + 1];
    const int n0 = blockIdx.x * kTile, r0 = blockIdx.y * kTile;
    for (int row = threadIdx.y; row < kTile; row += kThreadRows) {
        const int i = r0 + row, j = n0 + threadIdx.x;
        if (i >= p.r || j >= p.n) continue;
        float sum = 0.f;
        for (int split = 0; split < p.splits; split++)
            sum += p.partials[((int64_t)split * p.r + i) * p.n + j];
        tile[row][threadIdx.x] = sum;
    }
    __syncthreads();
    for (int row = threadIdx.y; row < kTile; row += kThreadRows) {
        const int i = p.transpose ? r0 + threadIdx.x : r0 + row;
        const int j = p.transpose ? n0 + row : n0 + threadIdx.x;
        if (i >= p.r || j >= p.n) continue;
        const float sum = p.transpose ? tile[threadIdx.x][row] : tile[row][threadIdx.x];
        float* out = p.out + (p.transpose ? (int64_t)j * p.r + i : (int64_t)i * p.n + j);
        *out = p.accumulate ? *out + sum : sum;
    }
}
