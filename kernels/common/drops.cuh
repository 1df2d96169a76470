// Whether a kernel drops elements of X: it has a `Dropout` (dropout.cuh), or this.
#pragma once

#include <type_traits>

struct NoDropout {};
template <typename D>
constexpr bool kDrops = !std::is_same_v<D, NoDropout>;

// Its mask, none.
struct NoMask {};
__device__ __forceinline__ NoMask mask_of(const NoDropout&) { return {}; }
