// Copies matrices of 16-bit elements whose rows may start anywhere, several in one launch:
//
//   to[i, j] = from[i, j], and zeros from `cols` on up to a multiple of 8
//
// Rows of `to` start at multiples of 16 bytes.
//
// Callers: both passes of linear.cuh, of what they read often. That is X and A, if k is not a
// multiple of 8, and each dH whose d is not.
//
// Bound by memory: 4 bytes an element. A thread copies 16 bytes at a time, so that the loads of few
// tokens are all under way at once.
//
// Grid: the CTAs of a row of all matrices × any number. A CTA takes every gridDim.y-th row. Block:
// kThreads. Loads only 16-byte pieces that hold elements of `from`, none past its last element.
// Writes every element of `to` once; `to` must overlap nothing.
#include "operand_tile.cuh"

#include "manifest/sm80/align.cuh"

__device__ __forceinline__ void align_rows(const AlignParams& p) {
    using E = unsigned short;
    int cta = blockIdx.x, i = 0;
    for (; cta >= p.copies[i].ctas; i++) cta -= p.copies[i].ctas;
    const AlignedCopy& copy = p.copies[i];
    const int col = cta * kCols + threadIdx.x * 8;
    if (col >= copy.cols) return;
    for (int row = blockIdx.y; row < copy.rows; row += gridDim.y) {
        const E* from = element<E>(copy.from, row, col);
        uint4 chunk;
        if (col + 16 <= copy.cols) {
            const auto at = reinterpret_cast<uintptr_t>(from);
            const auto* piece = reinterpret_cast<const uint4*>(at & ~(uintptr_t)15);
            chunk = shifted(__ldg(piece), __ldg(piece + 1), at % 16);
        } else {
            chunk = gather_chunk(from, copy.cols - col);
        }
        *reinterpret_cast<uint4*>(element<E>(copy.to, row, col)) = chunk;
    }
}

#include "instances/sm80/align.cuh"
