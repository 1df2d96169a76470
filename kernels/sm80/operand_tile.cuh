// One operand of a product: its rows in global memory, and its tile in shared memory.
//
//   load_chunk, store_chunk    eight elements of a row, the unit of every access to memory
//   OperandTile                kMN×kK elements of an operand, swizzled for ldmatrix
//   OperandTile::Stream        whole steps of aligned rows by cp.async, without checks
//   OperandTile::Shifted       whole steps of rows that start at any element, through registers
//   OperandTile::load          any part of any matrix, zeros beyond it
//
// An operand is "K-major" if k is contiguous (x in x·W0ᵀ), and "MN-major" if m or n is.
#pragma once

#include "manifest/sm80/tile.cuh"
#include "mma.cuh"

enum class Major { K, MN };

// ---------------------------------------------------------------------------------------------
// Instructions

// Copies 16 bytes; from `bytes` on, they are zeros instead.
__device__ __forceinline__ void cp_async(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t to, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

// 16 bytes, if they exist, in their place among the instructions.
__device__ __forceinline__ void load_piece(uint4& v, const uint4* from, bool exists) {
    asm volatile(
        "{\n.reg .pred exists;\nsetp.ne.s32 exists, %5, 0;\n"
        "@exists ld.global.nc.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n}\n"
        : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
        : "l"(from), "r"((int)exists));
}

// The 16 bytes from `shift` on, an even number, of two pieces.
__device__ __forceinline__ uint4 shifted(const uint4& v, const uint4& next, uint32_t shift) {
    uint32_t w[8] = {v.x, v.y, v.z, v.w, next.x, next.y, next.z, next.w};
    if (shift & 8)
#pragma unroll
        for (int i = 0; i < 6; i++) w[i] = w[i + 2];
    if (shift & 4)
#pragma unroll
        for (int i = 0; i < 5; i++) w[i] = w[i + 1];
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = __funnelshift_r(w[i], w[i + 1], (shift & 2) * 8);
    return make_uint4(w[0], w[1], w[2], w[3]);
}

// ---------------------------------------------------------------------------------------------
// Eight elements of a row, the unit of every access to memory

template <typename E>
__device__ __forceinline__ E* element(const Operand& op, int row, int col) {
    return static_cast<E*>(op.data) + (int64_t)row * op.ld + col;
}

// Eight elements from (row, col) on; columns from `cols` on are zeros.
template <typename E>
__device__ __forceinline__ void load_chunk(float (&v)[8], const Operand& op, int row, int col,
                                           int cols) {
    const E* from = element<E>(op, row, col);
    if (op.vectors && col + 8 <= cols) {
        alignas(16) E chunk[8];
#pragma unroll
        for (int i = 0; i < (int)sizeof(chunk) / 16; i++)
            reinterpret_cast<uint4*>(chunk)[i] = reinterpret_cast<const uint4*>(from)[i];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = widen(chunk[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = col + i < cols ? widen(from[i]) : 0.f;
    }
}

// The bits of eight elements of a row that starts anywhere; from `valid` on, they are zeros.
template <typename E>
__device__ __forceinline__ uint4 gather_chunk(const E* from, int valid) {
    const auto* bits = reinterpret_cast<const unsigned short*>(from);
    uint32_t pairs[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t low = 2 * j < valid ? bits[2 * j] : 0;
        const uint32_t high = 2 * j + 1 < valid ? bits[2 * j + 1] : 0;
        pairs[j] = low | high << 16;
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Rounds and stores eight elements from (row, col) on, those within rows×cols. With kSaturate, an
// f16 saturates.
template <typename E, bool kSaturate = false>
__device__ __forceinline__ void store_chunk(const Operand& op, int row, int col, int rows,
                                            int cols, const float (&v)[8]) {
    if (row >= rows) return;
    E* to = element<E>(op, row, col);
    alignas(16) E chunk[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if constexpr (kSaturate) {
            round_saturated_to(chunk[i], v[i]);
        } else {
            round_to(chunk[i], v[i]);
        }
    }
    if (op.vectors && col + 8 <= cols) {
#pragma unroll
        for (int i = 0; i < (int)sizeof(chunk) / 16; i++)
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(chunk)[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (col + i < cols) to[i] = chunk[i];
    }
}

// Stores eight rounded elements from (row, col) on, those within rows×cols. Needs aligned rows.
template <typename E>
__device__ __forceinline__ void store_rounded(const Operand& op, int row, int col, int rows,
                                              int cols, const uint4& chunk) {
    if (row >= rows) return;
    E* to = element<E>(op, row, col);
    if (col + 8 <= cols) {
        *reinterpret_cast<uint4*>(to) = chunk;
        return;
    }
    const uint32_t pairs[] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const auto bits = (unsigned short)(pairs[i / 2] >> i % 2 * 16);
        if (col + i < cols) to[i] = reinterpret_cast<const E&>(bits);
    }
}

// ---------------------------------------------------------------------------------------------
// One operand's tile in shared memory

// kMN×kK elements, stored as it lies in global memory (rows of k if K-major, rows of m or n if
// MN-major), in chunks of 16 bytes. Chunks are XOR-swizzled by row so that the eight rows an
// ldmatrix reads, and the rows a cp.async writes, fall on different banks.
template <typename E, Major kMajor, int kMN, int kK>
struct OperandTile {
    static constexpr int kRows = kMajor == Major::K ? kMN : kK;
    static constexpr int kCols = kMajor == Major::K ? kK : kMN;
    static constexpr int kChunksPerRow = kCols / 8;
    static constexpr int kRowBytes = kCols * 2;
    static constexpr int kBytes = kRows * kRowBytes;
    static_assert(kChunksPerRow == 2 || kChunksPerRow == 4 || kChunksPerRow % 8 == 0);

    // Rows narrower than the 128 bytes of all banks share a line: the swizzle counts lines.
    static __device__ __forceinline__ int swizzle(int row, int chunk) {
        if constexpr (kChunksPerRow >= 8) {
            return chunk ^ (row & 7);
        } else {
            constexpr int kRowsPerLine = 8 / kChunksPerRow;
            return chunk ^ ((row / kRowsPerLine) & (kChunksPerRow - 1));
        }
    }

    // Drops elements of a tile of X, from (row0, col0) on, by all threads.
    template <int kThreads, typename Mask>
    static __device__ __forceinline__ void drop(const Mask& mask, uint32_t tile, int row0,
                                                int col0) {
        static_assert(kCols % 32 == 0);
        constexpr int kBlocks = kCols / 32;
        for (int i = threadIdx.x; i < kRows * kBlocks; i += kThreads) {
            const int row = i / kBlocks, chunk = i % kBlocks * 4;
            drop_32(mask, row0 + row, {mask, col0 + chunk * 8}, [&](int at) {
                return tile + row * kRowBytes + swizzle(row, chunk + at) * 16;
            });
        }
    }

    // A pass of all threads moves whole groups of eight rows, which the swizzle repeats after: from
    // pass to pass a thread's addresses differ by constants.
    template <int kThreads>
    struct Passes {
        static constexpr int kPassRows = kThreads / kChunksPerRow, kPasses = kRows / kPassRows;
        static constexpr int kPassBytes = kPassRows * kRowBytes;
        static_assert(kPassRows % 8 == 0 && kRows % kPassRows == 0);
        static __device__ __forceinline__ int row() { return threadIdx.x / kChunksPerRow; }
        static __device__ __forceinline__ int chunk() { return threadIdx.x % kChunksPerRow; }
        static __device__ __forceinline__ uint32_t to() {
            return row() * kRowBytes + swizzle(row(), chunk()) * 16;
        }
    };

    // One tile after the other along k, whole steps of a matrix with aligned rows: the loads of the
    // main loop, without checks. Rows of a K-major tile beyond the matrix are copies of rows of it,
    // and 16-byte chunks of an MN-major one of its last chunk: their sums are never stored.
    // NOTES: of half of its rows or more, in turns. With copies of the last alone, all CTAs ask a
    // few slices of the L2 for the same lines: 66 µs, not 31, for 16 tokens of 4095² on an H200.
    template <int kThreads>
    struct Stream {
        using P = Passes<kThreads>;
        const unsigned char* from;
        uint32_t to, row_bytes;
        // From `from`; MN-major passes are a constant apart.
        uint32_t offsets[kMajor == Major::K ? P::kPasses : 1];

        // Offsets within a tile are 32 bits.
        static __device__ __forceinline__ bool serves(const Operand& op, int mn) {
            static_assert(kRows <= 256);
            return op.vectors && op.ld < 1 << 23 && (kMajor == Major::K || mn % 8 == 0);
        }

        Stream() = default;
        __device__ __forceinline__ Stream(const Operand& op, int mn, int mn0, int k0) {
            row_bytes = op.ld * 2;
            if constexpr (kMajor == Major::K) {
                from = reinterpret_cast<const unsigned char*>(element<E>(op, mn0, k0));
                const int rows = mn - mn0, turn = 1 << (31 - __clz(rows));
#pragma unroll
                for (int i = 0; i < P::kPasses; i++) {
                    const int row = P::row() + i * P::kPassRows;
                    offsets[i] =
                        (row < rows ? row : (row & (turn - 1))) * row_bytes + P::chunk() * 16;
                }
            } else {
                const int col = min(mn0 + P::chunk() * 8, mn - 8);
                from = reinterpret_cast<const unsigned char*>(element<E>(op, k0 + P::row(), col));
                offsets[0] = P::kPassRows * row_bytes;
            }
            to = P::to();
            pin_register(to);
        }

        __device__ __forceinline__ void load(uint32_t tile) {
#pragma unroll
            for (int i = 0; i < P::kPasses; i++) {
                const uint32_t offset = kMajor == Major::K ? offsets[i] : i * offsets[0];
                cp_async(tile + to + i * P::kPassBytes, from + offset, 16);
            }
            from += kMajor == Major::K ? kK * 2 : kK * row_bytes;
        }
    };

    // The same for rows that start at any element. The two pieces of 16 bytes that hold a chunk go
    // to registers kDepth steps ahead, each step to a slot; shifted, they go to shared memory.
    template <int kThreads, int kDepth>
    struct Shifted {
        using P = Passes<kThreads>;
        static constexpr int kPasses = P::kPasses;
        const unsigned char* from;  // of the step to fetch next
        uint32_t row_bytes;
        uint32_t offsets[kPasses];
        uint4 pieces[kDepth][kPasses][2];

        // A chunk's second piece may begin behind the end of its row, but never behind the last
        // row.
        static __device__ __forceinline__ bool serves(const Operand& op) {
            return op.ld >= 16 && op.ld < 1 << 23;
        }
        // Whole steps, so that pieces lie within the matrix.
        static __device__ __forceinline__ int steps(int k) { return max(0, k - 8) / kK; }

        Shifted() = default;
        __device__ __forceinline__ Shifted(const Operand& op, int mn, int mn0) {
            row_bytes = op.ld * 2;
            from = reinterpret_cast<const unsigned char*>(
                kMajor == Major::K ? element<E>(op, mn0, 0) : element<E>(op, 0, mn0));
#pragma unroll
            for (int i = 0; i < kPasses; i++) {
                const int row = P::row() + i * P::kPassRows, col = P::chunk() * 8;
                offsets[i] = kMajor == Major::K
                                 ? min(row, mn - 1 - mn0) * row_bytes + col * 2
                                 : row * row_bytes + min(col, mn - 1 - mn0) * 2;
            }
        }

        // A pass of the next step, if there is one.
        __device__ __forceinline__ void fetch(int slot, int pass, bool exists) {
            const auto at = reinterpret_cast<uintptr_t>(from + offsets[pass]);
            const auto* piece = reinterpret_cast<const uint4*>(at & ~(uintptr_t)15);
            load_piece(pieces[slot][pass][0], piece, exists);
            load_piece(pieces[slot][pass][1], piece + 1, exists);
        }
        __device__ __forceinline__ void advance() {
            from += kMajor == Major::K ? kK * 2 : kK * row_bytes;
        }
        // The rows of all steps start alike: 8 divides kK.
        __device__ __forceinline__ void store(uint32_t tile, int slot, int pass) const {
            static_assert(kK % 8 == 0);
            const auto shift = (uint32_t)reinterpret_cast<uintptr_t>(from + offsets[pass]) % 16;
            store_shared(tile + P::to() + pass * P::kPassBytes,
                         shifted(pieces[slot][pass][0], pieces[slot][pass][1], shift));
        }
        // Moves every slot one down, slot 0 to the last.
        __device__ __forceinline__ void rotate() {
#pragma unroll
            for (int slot = 0; slot + 1 < kDepth; slot++)
#pragma unroll
                for (int pass = 0; pass < kPasses; pass++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint4 piece = pieces[slot][pass][i];
                        pieces[slot][pass][i] = pieces[slot + 1][pass][i];
                        pieces[slot + 1][pass][i] = piece;
                    }
        }
    };

    // Fills the tile from (mn0, k0) on, anywhere in any matrix, with zeros beyond mn×k. Unaligned
    // rows are gathered element by element, visible after the step's barrier like the others.
    template <int kThreads>
    static __device__ __forceinline__ void load(uint32_t tile, const Operand& op, int mn, int k,
                                                int mn0, int k0) {
        using P = Passes<kThreads>;
        const int rows = kMajor == Major::K ? mn : k, cols = kMajor == Major::K ? k : mn;
        const int row = (kMajor == Major::K ? mn0 : k0) + P::row();
        const int col = (kMajor == Major::K ? k0 : mn0) + P::chunk() * 8;
        const int in_row = min(max(cols - col, 0), 8);
        const E* from = element<E>(op, row, col);
        const int64_t pass = (int64_t)op.ld * P::kPassRows;
        if (op.vectors) {
#pragma unroll
            for (int i = 0; i < P::kPasses; i++) {
                const int valid = row + i * P::kPassRows < rows ? in_row : 0;
                cp_async(tile + P::to() + i * P::kPassBytes, valid > 0 ? from + i * pass : op.data,
                         valid * 2);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < P::kPasses; i++) {
                const int valid = row + i * P::kPassRows < rows ? in_row : 0;
                store_shared(tile + P::to() + i * P::kPassBytes,
                             gather_chunk(from + i * pass, valid));
            }
        }
    }

    // Which row and chunk of a 16×16 block this lane points ldmatrix at. The four 8×8 matrices
    // come in the order of mma's registers: for an lhs (m, k), (m+8, k), (m, k+8), (m+8, k+8);
    // for an rhs (n, k), (n, k+8), (n+8, k), (n+8, k+8).
    template <bool kLhs>
    static __device__ __forceinline__ uint32_t lane_offset(int mn0, int k0) {
        const int lane = threadIdx.x % 32;
        constexpr bool kRowsFirst = kLhs == (kMajor == Major::K);
        const int row = kRowsFirst ? lane % 16 : lane % 8 + lane / 16 * 8;
        const int chunk = kRowsFirst ? lane / 16 : lane / 8 % 2;
        const int tile_row = row + (kMajor == Major::K ? mn0 : k0);
        const int tile_chunk = chunk + (kMajor == Major::K ? k0 : mn0) / 8;
        return tile_row * kRowBytes + swizzle(tile_row, tile_chunk) * 16;
    }

    // The fragments of the 16×16 block `mn16` along m or n and `k16` along k, counted from where
    // `lane_offset` points. Sixteen rows on, the swizzle is the same; chunks within a group of
    // eight differ by an exclusive or.
    static __device__ __forceinline__ void fragment(uint32_t (&r)[4], uint32_t tile,
                                                    uint32_t lane_offset, int mn16, int k16) {
        const int rows16 = kMajor == Major::K ? mn16 : k16;
        const int chunk = 2 * (kMajor == Major::K ? k16 : mn16);
        const uint32_t in_row = (lane_offset ^ (chunk % 8 * 16)) + chunk / 8 * 128;
        ldmatrix_x4<kMajor == Major::MN>(r, tile + in_row + rows16 * 16 * kRowBytes);
    }
};
