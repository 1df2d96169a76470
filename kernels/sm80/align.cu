// Copies matrices of 16-bit elements whose rows may start anywhere, several in one launch:
//
//   to[i, j] = from[i, j], and zeros from `cols` on up to a multiple of 8
//
// Rows of `to` start at multiples of 16 bytes.
//
// Callers: passes with an adapter on every GPU from 8.0 on, before their other launches: of X, A
// and W0 if k is not a multiple of 8, and of each dH whose d is not.
//
// Bound by memory: 4 bytes an element, or less where the copy stays in the L2.
//
// Grid: 1-D, the CTAs of every matrix one behind the other, each for kCols columns of kRows rows.
// Block: kThreads. Loads only 16-byte pieces that hold elements of `from`, none past its last
// element. Writes every element of `to` once; `to` must overlap nothing.
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
    const int col = cta % in_row * kCols + threadIdx.x * 8, row0 = cta / in_row * kRows;
    if (col >= copy.cols) return;
    const bool is_whole = col + 16 <= copy.cols;
    auto from = [&](int row) { return element<E>(copy.from, row0 + row, col); };
    auto each_row = [&](auto&& f) {
#pragma unroll
        for (int row = 0; row < kRows; row++)
            if (row0 + row < copy.rows) f(row);
    };
    // The pieces of all rows are under way at once.
    uint4 pieces[kRows][2] = {};
    each_row([&](int row) {
        const auto at = reinterpret_cast<uintptr_t>(from(row)) & ~(uintptr_t)15;
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (is_whole) pieces[row][i] = load_once(reinterpret_cast<const uint4*>(at) + i);
    });
    each_row([&](int row) {
        const auto shift = (uint32_t)reinterpret_cast<uintptr_t>(from(row)) % 16;
        const uint4 chunk = is_whole ? shifted(pieces[row][0], pieces[row][1], shift)
                                     : gather_chunk(from(row), copy.cols - col);
        *reinterpret_cast<uint4*>(element<E>(copy.to, row0 + row, col)) = chunk;
    });
}

#include "instances/sm80/align.cuh"
