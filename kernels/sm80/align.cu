// Copies matrices of 16-bit elements whose rows may start anywhere, several in one launch:
//
//   to[i, j] = from[i, j], and zeros from `cols` on up to a multiple of 8
//
// Rows of `to` start at multiples of 16 bytes.
//
// Callers: all passes on every GPU from 8.0 on, before their other launches: of X, A and W0 if k is
// not a multiple of 8, and of each dH whose d is not.
//
// Bound by memory: 4 bytes an element, or less where the copy stays in the L2.
//
// Grid: 1-D, the CTAs of every matrix one behind the other, each for kCols columns of a row. NOTES:
// of one row, not four: 16.8 µs, not 18.9, for 4095² on an H200.
//
// Loads only 16-byte pieces that hold elements of `from`, none past its last element. Writes every
// element of `to` once; `to` must overlap nothing.
#include "operand_tile.cuh"

#include "manifest/sm80/align.cuh"

// A piece of 16 bytes. NOTES: its line is the first to leave the L2, which then keeps more of the
// copy: with a kernel that reads the copy, 21.1 µs, not 23.0, for 4095² on an H200.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
    uint4 v;
    asm("ld.global.nc.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %5;\n"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(from), "l"(policy));
    return v;
}

__device__ __forceinline__ void align_rows(const AlignParams& p) {
    using E = unsigned short;
    int cta = blockIdx.x, i = 0;
    for (; cta >= p.copies[i].ctas; i++) cta -= p.copies[i].ctas;
    const AlignedCopy& copy = p.copies[i];
    const int in_row = (copy.cols + kCols - 1) / kCols;
    const int row = cta / in_row, col = cta % in_row * kCols + threadIdx.x * 8;
    if (col >= copy.cols) return;
    const E* from = element<E>(copy.from, row, col);
    uint4 v;
    if (col + 16 <= copy.cols) {
        const auto at = reinterpret_cast<uintptr_t>(from);
        const auto* pieces = reinterpret_cast<const uint4*>(at & ~(uintptr_t)15);
        v = shifted(load_once(pieces), load_once(pieces + 1), (uint32_t)at % 16);
    } else {
        v = gather_chunk(from, copy.cols - col);
    }
    *reinterpret_cast<uint4*>(element<E>(copy.to, row, col)) = v;
}

#include "instances/sm80/align.cuh"
