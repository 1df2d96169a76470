// The adapter's gradients on Hopper's own instructions, and before them dS, if it is not there yet:
//
//   dS (T×r)   =    scale · dH B              rounded once, saturated in f16
//   dB (d×r) (=|+=) dHᵀ S      Y dH (T×d), L S  (T×r)
//   dA (r×k) (=|+=) dSᵀ X      Y X  (T×k), L dS (T×r)
//
// for one layer, or for all that share X: with dS beside each other, and dA below, r is that of all.
//
// all accumulated in f32. With `accumulate` the finished sum is added to what the output holds: the same
// bits as an overwrite followed by an addition. dA and dB may be null, and are then left out.
//
// Bound by reading Y, which every tile of kRank columns of L reads once. dH is read for dS too, at the same
// time, so that some of it is found in the L2.
//
// An item is one such tile and 128 columns of Y over all of T, and belongs to one block, so there are no
// float atomics, no partial sums in memory, and the same bits whatever the grid, and in linear.cuh.
// dB's items come first, layer by layer, then dA's. The first blocks, as many as are called projectors,
// make 128 rows of dS each at a time, and the others make items, in turns.
//
// All rows must start at multiples of 16 bytes, which is what TMA takes. What a box has beyond the edge of
// its matrix is read as zeros: rows of Y and L that add nothing, and columns whose products nobody
// stores.
//
// Grid: any, but no more than there are tiles and items: with idle ones, those that are not crowd.
// Block: three warpgroups. Of the first, one thread loads; the other two multiply.
// Shared memory: 224 KiB from a multiple of 1024 bytes on, in stages of 64 columns of dH and rows of B, or
// of 64 rows of Y and L, and their barriers.
// Reads dH, X, S, B and dS; writes dS (if it is made), dB and dA (if they are wanted), every element once.
// If dS is made and used, `flags` must be zeros, and are again when the launch is done.
//
//   projector     |128 rows of dS|128 rows| ...          tells of them, waits for nobody
//   loader        |fill 0|fill 1| ... |wait for empty 0, fill 0| ...                over all items
//   multipliers   |4 k16 of stage 0|4 k16 of stage 1| ... |add|4 k16| ... |add|store| |next item
//
// Both operands of dB and dA are as wgmma takes them from rows of k: 64 columns of Y are m, the columns of
// L are n, and rows of T are k. Every 2048 rows the tensor cores' sums are added to others, in plain f32,
// and start again: a chain of tensor core additions, which truncate, would be further off the longer it
// gets.
//
// full[stage] completes when all its bytes have come. empty[stage] completes when the eight multiplying
// warps are done with the stage, which is one stage behind those whose products are being issued.
//
// Who waits for whom: the loader and the multipliers of a block for each other; items of dA for the flags
// of the rows of dS, as they come to them, provided that all blocks run at the same time, which a
// cooperative launch guarantees or fails.
#include "grads.cuh"
#include "project.cuh"

template <typename E, int kRank>
__device__ __forceinline__ void hopper_grads(const HopperGradsParams& p) {
    using Tile = ProjectTile<kRank, true>;
    using T = GradsTiling<kRank, 128>;
    const uint32_t base = shared_base();
    const int workers = gridDim.x - p.projectors, worker = (int)blockIdx.x - p.projectors;
    const bool projects = worker < 0;
    uint32_t* flags = p.ds_parts > 0 ? p.flags + 1 : nullptr;
    const Projection ds = {p.dh, p.b, p.parts, p.ds_out, flags, p.t, p.outputs, p.r, (int)blockIdx.x,
                           p.projectors};
    if (threadIdx.x == 0) {
        if (projects) {
            project_init<Tile>(base);
        } else {
            grads_init<T>(base);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    // Until here, this may run beside the end of the kernel before.
    wait_for_kernel_before();
    let_next_kernel_start();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < 4) {
        give_registers<40>();
        if (warp == 0 && is_elected()) {
            if (projects) {
                project_load<kRank, true, 64>(ds, base);
            } else {
                grads_load<T>(p, base, worker, workers);
            }
            grads_done(p);
        }
    } else {
        take_registers<232>();
        if (projects) {
            project_multiply<E, kRank, true>(ds, base);
        } else {
            grads_multiply<E, T>(p, base, worker, workers);
        }
    }
}

#define HOPPER_GRADS_KERNEL(rank, type, E)                         \
    extern "C" __global__ void __launch_bounds__(384, 1)           \
        hopper_grads_r##rank##_##type(                             \
            const __grid_constant__ HopperGradsParams params) {    \
        hopper_grads<E, rank>(params);                             \
    }

HOPPER_GRADS_KERNEL(16, bf16, __nv_bfloat16)
HOPPER_GRADS_KERNEL(64, bf16, __nv_bfloat16)
HOPPER_GRADS_KERNEL(128, bf16, __nv_bfloat16)
HOPPER_GRADS_KERNEL(16, f16, __half)
HOPPER_GRADS_KERNEL(64, f16, __half)
HOPPER_GRADS_KERNEL(128, f16, __half)
