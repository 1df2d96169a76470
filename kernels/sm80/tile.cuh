// The small vocabulary that every kernel of this path is written in.
//
//   Operand       a matrix in global memory, and whether its rows allow 16-byte accesses
//   Major         which of an operand's two indices is contiguous in memory
//   Segment       a stretch of the inner dimension: an lhs, an rhs, and how long they are
//   TileProduct   acc += lhs · rhsᵀ for one CTA's tile, over a list of segments
//
// Indices follow one convention: a tile of the product has m rows and n columns and sums over k.
// An operand is "K-major" if k is contiguous (x in x·W0ᵀ), and "MN-major" if m or n is.
//
// The pipeline: kStages buffers in shared memory, filled by cp.async, kStages steps ahead. A step is
// kK of k, and a warp's slice of it at least two k16, the k of an mma. With kStages = 4 and two k16:
//
//   step               s                              s+1
//   mma       |k16 0      |k16 1            |k16 0      |k16 1            |
//   ldmatrix  |s, k16 1   | s+1, k16 0      |s+1, k16 1 | s+2, k16 0      |   one k16 ahead
//   barrier               ^ s+1 is there                ^ s+2 is there
//   cp.async              |         s+4     |           |         s+5     |   into the stage of s
//
// The one barrier of a step stands before its last k16. Before it every thread waits for its own
// copies of the next stage, so that behind it the next stage is there; and every warp has the last
// fragments of this stage in registers, so that behind it this stage is free. Every step commits
// one group of copies, an empty one where nothing is left to load: the wait counts steps.
//
// Sums along k are in the order of k, k16 by k16, whatever the tile; warps along k sum their slices
// of all steps apart.
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

// 16 bytes, in their place among the instructions.
__device__ __forceinline__ uint4 load_piece(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
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
    // main loop, without checks. Rows of a K-major tile beyond the matrix are copies of its last
    // row, and 16-byte chunks of an MN-major one of its last chunk: their sums are never stored.
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

        __device__ __forceinline__ Stream(const Operand& op, int mn, int mn0, int k0) {
            row_bytes = op.ld * 2;
            if constexpr (kMajor == Major::K) {
                from = reinterpret_cast<const unsigned char*>(element<E>(op, mn0, k0));
#pragma unroll
                for (int i = 0; i < P::kPasses; i++)
                    offsets[i] = min(P::row() + i * P::kPassRows, mn - 1 - mn0) * row_bytes +
                                 P::chunk() * 16;
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

    // The same for rows that start at any element. The two pieces of 16 bytes that hold a chunk go to
    // registers a step ahead; shifted, they go to shared memory.
    template <int kThreads>
    struct Shifted {
        using P = Passes<kThreads>;
        const unsigned char* from;
        uint32_t row_bytes;
        uint32_t offsets[P::kPasses];
        uint4 pieces[P::kPasses][2];

        // A chunk's second piece may begin behind the end of its row, but never behind the last row.
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
            for (int i = 0; i < P::kPasses; i++) {
                const int row = P::row() + i * P::kPassRows, col = P::chunk() * 8;
                offsets[i] = kMajor == Major::K
                                 ? min(row, mn - 1 - mn0) * row_bytes + col * 2
                                 : row * row_bytes + min(col, mn - 1 - mn0) * 2;
            }
        }

        // What the next store() stores.
        __device__ __forceinline__ void fetch() {
#pragma unroll
            for (int i = 0; i < P::kPasses; i++) {
                const auto at = reinterpret_cast<uintptr_t>(from + offsets[i]);
                const auto* piece = reinterpret_cast<const uint4*>(at & ~(uintptr_t)15);
                pieces[i][0] = load_piece(piece);
                pieces[i][1] = load_piece(piece + 1);
            }
        }
        __device__ __forceinline__ void store(uint32_t tile) {
#pragma unroll
            for (int i = 0; i < P::kPasses; i++) {
                const auto shift = (uint32_t)reinterpret_cast<uintptr_t>(from + offsets[i]) % 16;
                store_shared(tile + P::to() + i * P::kPassBytes,
                             shifted(pieces[i][0], pieces[i][1], shift));
            }
            from += kMajor == Major::K ? kK * 2 : kK * row_bytes;
        }
    };

    // Fills the tile from (mn0, k0) on, anywhere in any matrix; what lies beyond mn×k becomes
    // zeros.
    // Where rows are not aligned, elements are gathered one by one; they are visible after the
    // step's barrier all the same.
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
                const auto* bits = reinterpret_cast<const unsigned short*>(from + i * pass);
                uint32_t pairs[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const uint32_t low = 2 * j < valid ? bits[2 * j] : 0;
                    const uint32_t high = 2 * j + 1 < valid ? bits[2 * j + 1] : 0;
                    pairs[j] = low | high << 16;
                }
                store_shared(tile + P::to() + i * P::kPassBytes,
                             make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
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

// ---------------------------------------------------------------------------------------------
// The product of two tiles

// What a product does before it loads a segment, if that is nothing.
struct BeforeNone {
    __device__ __forceinline__ void operator()(int) const {}
};

// kM×kN of acc += lhs · rhsᵀ by kWarpsM·kWarpsN·kWarpsK warps. Warps along k each take a slice of
// every step and hold a partial sum; `reduce_warps_k` adds them in a fixed order.
template <typename E, int kM, int kN, int kK, int kWarpsM, int kWarpsN, int kWarpsK, Major kLhs,
          Major kRhs, int kStages, bool kAligned = true>
struct TileProduct {
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
    static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
    static constexpr int kM16 = kWarpM / 16, kN16 = kWarpN / 16, kK16 = kK / 16 / kWarpsK;
    using Lhs = OperandTile<E, kLhs, kM, kK>;
    using Rhs = OperandTile<E, kRhs, kN, kK>;
    using LhsStream = typename Lhs::template Stream<kThreads>;
    using RhsStream = typename Rhs::template Stream<kThreads>;
    using LhsShifted = typename Lhs::template Shifted<kThreads>;
    using RhsShifted = typename Rhs::template Shifted<kThreads>;
    static constexpr int kStageBytes = Lhs::kBytes + Rhs::kBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
    // A warp's staging area in `for_each_chunk`; the padding keeps its rows off each other's banks.
    static constexpr int kStagingPitch = kWarpN + 8;
    static constexpr int kStagingBytes = 16 * kStagingPitch * 4;
    static constexpr int kPartialFloats = kM16 * kN16 * 8 * 32;
    static_assert(kM16 * 16 == kWarpM && kN16 * 16 == kWarpN && kK16 * 16 * kWarpsK == kK);
    static_assert(kWarpsM * kWarpsN * kStagingBytes <= kSharedBytes);
    static_assert(kWarpsM * kWarpsN * (kWarpsK - 1) * kPartialFloats * 4 <= kSharedBytes);
    // `fragment` steps through chunks by exclusive or: a warp must start at a group of them.
    static_assert(kLhs == Major::K || kWarpM % 64 == 0 || kM16 == 1);
    static_assert(kRhs == Major::K || kWarpN % 64 == 0 || kWarpN == 32 || kN16 == 1);

    float acc[kM16][kN16 * 2][4];

    static __device__ __forceinline__ int warp() { return threadIdx.x / 32; }
    static __device__ __forceinline__ int warp_m() { return warp() % kWarpsM; }
    static __device__ __forceinline__ int warp_n() { return warp() / kWarpsM % kWarpsN; }
    static __device__ __forceinline__ int warp_k() { return warp() / (kWarpsM * kWarpsN); }

    // The whole sum for the tile at (m0, n0) of an output of m×n: over `count` segments, one after
    // the other in one pipeline. before(i) is called before anything of segment i is loaded, by all
    // threads. Afterwards shared memory is free.
    template <int kMost, typename F = BeforeNone>
    __device__ __forceinline__ void run(unsigned char* shared, const Segment (&segments)[kMost],
                                        int count, int m, int n, int m0, int n0,
                                        const F& before = F()) {
        const uint32_t stages = shared_address(shared);
        // What is loaded next: the segment, and from where on along its k.
        int at = 0, k0 = 0;
        // A segment that is alone is not indexed by a variable, so that it can stay in registers.
        auto segment = [&]() -> const Segment& { return segments[kMost > 1 ? at : 0]; };
        auto end_segment = [&] {
            if (k0 >= segment().k) at++, k0 = 0;
        };
        auto load = [&](uint32_t stage) {
            if (at == count) return;
            if (k0 == 0) before(at);
            const Segment& s = segment();
            Lhs::template load<kThreads>(stage, s.lhs, m, s.k, m0, k0);
            Rhs::template load<kThreads>(stage + Lhs::kBytes, s.rhs, n, s.k, n0, k0);
            k0 += kK;
            end_segment();
        };

        // Rows at any element: whole steps of every segment but that of S, which this launch may
        // write and which does not go through the L1.
        [[maybe_unused]] LhsShifted lhs;
        [[maybe_unused]] RhsShifted rhs;
        [[maybe_unused]] int whole_left = 0;
        auto fetch = [&] { lhs.fetch(), rhs.fetch(); };
        auto shift_or_load = [&](uint32_t stage) {
            if constexpr (!kAligned) {
                if (at < count && k0 == 0 && (at == 0 || at < count - 1)) {
                    const Segment& s = segment();
                    const bool serves = LhsShifted::serves(s.lhs) && RhsShifted::serves(s.rhs);
                    whole_left = serves ? LhsShifted::steps(s.k) : 0;
                    lhs = LhsShifted(s.lhs, m, m0), rhs = RhsShifted(s.rhs, n, n0);
                    if (whole_left > 0) fetch();
                }
                if (whole_left > 0) {
                    lhs.store(stage), rhs.store(stage + Lhs::kBytes);
                    k0 += kK;
                    if (--whole_left > 0) fetch();
                    return;
                }
            }
            load(stage);
        };

        const int warp_k0 = warp_k() * kK16 * 16;
        uint32_t lhs_lane = Lhs::template lane_offset<true>(warp_m() * kWarpM, warp_k0);
        uint32_t rhs_lane =
            Lhs::kBytes + Rhs::template lane_offset<false>(warp_n() * kWarpN, warp_k0);
        pin_register(lhs_lane);
        pin_register(rhs_lane);
        uint32_t a[2][kM16][4], b[2][kN16][4];
        // The `index`-th ldmatrix of a k16, in the order in which its mma need them.
        auto fragment = [&](uint32_t stage, int k16, int index) {
            if (index == 0)
                Lhs::fragment(a[k16 % 2][0], stage, lhs_lane, 0, k16);
            else if (index <= kN16)
                Rhs::fragment(b[k16 % 2][index - 1], stage, rhs_lane, index - 1, k16);
            else
                Lhs::fragment(a[k16 % 2][index - kN16], stage, lhs_lane, index - kN16, k16);
        };

        // Multiplies the stage `read`, which copies() then fills again, and loads the first
        // fragments of the stage `next`.
        //
        // NOTES: the mma are volatile, so that ldmatrix and copies stay between them, where they
        // are written: two mma to an ldmatrix, and the copies late, behind all of them. ptxas
        // otherwise moves the ldmatrix of a k16 to its start, and tensor cores wait: 808 µs, not
        // 683, for 8192×4096² in tiles of 128×256 on an H200. Rows of mma alternate their
        // direction, so that an mma has a fragment in common with the one before.
        auto step = [&](uint32_t read, uint32_t next, auto&& copies) {
            constexpr int kMmas = kM16 * kN16 * 2, kFragments = kM16 + kN16;
            constexpr int kCopiesAt = kMmas < 24 ? kMmas : 24;
            static_assert(kK16 % 2 == 0, "fragments alternate: a step must end where it began");
#pragma unroll
            for (int k16 = 0; k16 < kK16; k16++) {
                const bool is_last = k16 + 1 == kK16;
                if (is_last) {
                    cp_async_wait<kStages - 2>();
                    __syncthreads();
                }
#pragma unroll
                for (int q = 0; q <= kMmas; q++) {
                    // The last step reads a stage that was not filled; its fragments are not used.
                    if (q % 2 == 0 && q / 2 < kFragments)
                        fragment(is_last ? next : read, is_last ? 0 : k16 + 1, q / 2);
                    if (is_last && q == kCopiesAt) copies();
                    if (q == kMmas) break;
                    const int i = q / (kN16 * 2), in_row = q % (kN16 * 2);
                    const int j = i % 2 ? kN16 * 2 - 1 - in_row : in_row;
                    mma_in_place<E>(acc[i][j], a[k16 % 2][i], b[k16 % 2][j / 2][j % 2 * 2],
                                    b[k16 % 2][j / 2][j % 2 * 2 + 1]);
                }
                if (is_last) cp_async_commit();
            }
        };

#pragma unroll
        for (int i = 0; i < kM16; i++)
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) acc[i][j][c] = 0.f;
        for (int ahead = 0; ahead < kStages; ahead++) {
            shift_or_load(stages + ahead * kStageBytes);
            cp_async_commit();
        }
        cp_async_wait<kStages - 1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kM16 + kN16; i++) fragment(stages, 0, i);

        int steps = 0;
        for (int i = 0; i < count; i++) steps += (segments[i].k + kK - 1) / kK;
        const uint32_t end = stages + kSharedBytes;
        uint32_t read = stages;
        auto single_step = [&](auto&& copies) {
            const uint32_t next = read + kStageBytes == end ? stages : read + kStageBytes;
            step(read, next, [&] { copies(read); });
            read = next;
        };
        // What is left to load is fewer steps than are left to multiply, so that after the steps
        // without checks there is always one more.
        for (; steps > 0; steps--) {
            if (kAligned && at < count && LhsStream::serves(segment().lhs, m) &&
                RhsStream::serves(segment().rhs, n)) {
                if (k0 == 0) before(at);
                const Segment& s = segment();
                LhsStream lhs(s.lhs, m, m0, k0);
                RhsStream rhs(s.rhs, n, n0, k0);
                auto copies = [&](uint32_t stage) {
                    lhs.load(stage);
                    rhs.load(stage + Lhs::kBytes);
                };
                int whole = (s.k - k0) / kK;
                k0 += whole * kK, steps -= whole;
                for (; whole > 0; whole--) {
                    // NOTES: unrolled over the stages, whose addresses are then constants. The
                    // instructions that compute them take issue slots of mma: 683 µs, not 636.
                    if (read == stages)
                        for (; whole >= kStages; whole -= kStages)
#pragma unroll
                            for (int i = 0; i < kStages; i++) {
                                const uint32_t stage = stages + i * kStageBytes;
                                step(stage, i + 1 < kStages ? stage + kStageBytes : stages,
                                     [&] { copies(stage); });
                            }
                    if (whole == 0) break;
                    single_step(copies);
                }
                end_segment();
            }
            single_step(shift_or_load);
        }
        cp_async_wait<0>();
        __syncthreads();
    }

    // Adds the partial sums of the warps along k, the first one's first. Afterwards only the warps
    // with warp_k() == 0 hold the sum.
    __device__ __forceinline__ void reduce_warps_k(unsigned char* shared) {
        float* partials = reinterpret_cast<float*>(shared) + threadIdx.x % 32;
        const int warps_mn = kWarpsM * kWarpsN, warp_mn = warp() % warps_mn;
        auto each = [&](int warp_k, auto&& f) {
            float* p = partials + ((warp_k - 1) * warps_mn + warp_mn) * kPartialFloats;
#pragma unroll
            for (int i = 0; i < kM16; i++)
#pragma unroll
                for (int j = 0; j < kN16 * 2; j++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        f(p[((i * kN16 * 2 + j) * 4 + c) * 32], acc[i][j][c]);
        };
        if (warp_k() > 0) each(warp_k(), [](float& p, float& acc) { p = acc; });
        __syncthreads();
        if (warp_k() == 0)
            for (int w = 1; w < kWarpsK; w++) each(w, [](float& p, float& acc) { acc += p; });
        __syncthreads();
    }

    // Calls f(row, col, values) for every eight neighbouring columns of the warp's part of the
    // tile, rows and columns counted from the tile's corner. Goes through shared memory so that
    // neighbouring lanes get neighbouring columns.
    template <typename F>
    __device__ __forceinline__ void for_each_chunk(unsigned char* shared, F&& f) const {
        const int lane = threadIdx.x % 32;
        const int warp_mn = warp() % (kWarpsM * kWarpsN);
        float* staging = reinterpret_cast<float*>(shared + warp_mn * kStagingBytes);
#pragma unroll
        for (int i = 0; i < kM16; i++) {
            __syncwarp();
#pragma unroll
            for (int j = 0; j < kN16 * 2; j++) {
                float* to = staging + lane / 4 * kStagingPitch + j * 8 + lane % 4 * 2;
                *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
                *reinterpret_cast<float2*>(to + 8 * kStagingPitch) =
                    make_float2(acc[i][j][2], acc[i][j][3]);
            }
            __syncwarp();
            constexpr int kChunksPerRow = kWarpN / 8;
#pragma unroll
            for (int index = lane; index < 16 * kChunksPerRow; index += 32) {
                const int row = index / kChunksPerRow, col = index % kChunksPerRow * 8;
                float v[8];
                const float* from = staging + row * kStagingPitch + col;
                *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(from);
                *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(from + 4);
                f(warp_m() * kWarpM + i * 16 + row, warp_n() * kWarpN + col, v);
            }
        }
    }
};
