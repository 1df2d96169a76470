// Operands of wgmma in shared memory, as TMA boxes with a swizzle.
//
//   Major::K    one box of kSize rows, each 64 elements of k: 128 bytes, swizzled by eight rows.
//   Major::MN   boxes of kBoxCols columns of m or n and kK rows of k, one after another. The
//               swizzle is as wide as a box's row: 128, 64 or 32 bytes.
#pragma once

#include "ptx.cuh"

enum class Major { K, MN };

template <Major kMajor_, int kSize, int kK_ = 64, int kBoxCols = 64>
struct SmemTile {
    static constexpr Major kMajor = kMajor_;
    static constexpr int kK = kK_;
    static constexpr bool kIsK = kMajor == Major::K;
    static_assert(!kIsK || (kK == 64 && kSize % 8 == 0),
                  "K-major tiles are whole eights of 128 bytes");
    static_assert(kIsK || kK % 16 == 0, "a wgmma takes 16 rows of k");
    static_assert(kBoxCols == 64 || kBoxCols == 32 || kBoxCols == 16, "no swizzle is as wide");

    static constexpr int kBoxes = kIsK ? 1 : (kSize + kBoxCols - 1) / kBoxCols;
    static constexpr int kBoxBytes = (kIsK ? kSize * 64 : kK * kBoxCols) * 2;
    static constexpr int kBytes = kBoxes * kBoxBytes;
    // From 16 columns of k to the next, in a descriptor, whose address counts 16 bytes.
    static constexpr int kStepK16 = (kIsK ? 16 : 16 * kBoxCols) * 2 / 16;

    // The descriptor of the operand at this address, with boxes `box_bytes` apart.
    static __device__ __forceinline__ uint64_t descriptor(uint32_t address,
                                                          int box_bytes = kBoxBytes) {
        constexpr uint64_t kEightRows = kBoxCols * 2 * 8;
        constexpr uint64_t kSwizzle = kBoxCols == 64 ? 1 : kBoxCols == 32 ? 2 : 3;
        const uint64_t leading = kIsK ? 1 : box_bytes / 16;
        return (address & 0x3ffff) / 16 | leading << 16 | kEightRows / 16 << 32 | kSwizzle << 62;
    }

    // From (mn0, k0) of its matrix.
    static __device__ __forceinline__ void load(uint32_t to, const TensorMap& map, int mn0, int k0,
                                                uint32_t full) {
        if constexpr (kIsK) {
            tma_load(to, map, mn0, k0, full);
        } else {
#pragma unroll
            for (int i = 0; i < kBoxes; i++)
                tma_load(to + i * kBoxBytes, map, k0, mn0 + i * kBoxCols, full);
        }
    }

    // The half of this CTA, into both CTAs of the cluster; its peer loads the other half. Boxes of
    // the tensor map are as high as half of the tile.
    static __device__ __forceinline__ void load_half_multicast(uint32_t to, const TensorMap& map,
                                                               int mn0, int k0, int rank,
                                                               uint32_t full) {
        if constexpr (kIsK) {
            tma_load_multicast(to + rank * (kBytes / 2), map, mn0 + rank * (kSize / 2), k0, full);
        } else {
#pragma unroll
            for (int i = 0; i < kBoxes; i++)
                tma_load_multicast(to + i * kBoxBytes + rank * (kBoxBytes / 2), map,
                                   k0 + rank * (kK / 2), mn0 + i * kBoxCols, full);
        }
    }
};
