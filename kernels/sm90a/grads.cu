// dA and dB, and before them dS if it is not there yet:
//
//   dS (T×r)   =    scale · dH B              rounded once, saturated in f16
//   dB (d×r) (=|+=) dHᵀ S      Y dH (T×d), L S  (T×r)
//   dA (r×k) (=|+=) dSᵀ X      Y X  (T×k), L dS (T×r)
//
// of one projection or of all that share X (their dS side by side, one dA of all ranks). dA and dB
// are summed in f32, and f32 or rounded once to the 16 bits of the operands (`rounds`).
// With dropout, elements of X are dropped in dA (common/dropout.cuh).
// With `accumulate` the finished sum is added to the output in f32: the bits of an overwrite and
// an addition. dA and dB may be null, and are then left out.
//
// Needs: rows at multiples of 16 bytes; 225 KiB of shared memory; where dS is computed and used,
// flags that are zero, and are zero again after the launch, and a cooperative launch. Where there
// are splits, `arrivals` that are zero, and are again, and `partials` with any content. Writes
// every element of an output once.
//
// An item is kItemCols columns of Y times kRank columns of L over all of T, by one CTA: no float
// atomics, no partial sums in memory, the same bits whatever the grid, and in the other kernels.
// With dropout an item of dA is of one split of T, as random numbers make it long. Each warp writes
// its sums to its own place in `partials` and counts itself in `arrivals`; the last of all splits
// adds them in the order of T and stores. The splits depend on T alone, and so do the bits.
// Bound by reading Y once for each tile of ranks; dH is read for dS at about the same time and
// partly found in the L2.
//
// Grid: the first `proj_ctas` CTAs compute dS, 128 rows at a time (projection.cuh). Items go to the
// others in turns, dB's first. No more CTAs than tiles and items: idle ones would pack the busy
// ones onto fewer SMs.
// CTA: a producer thread in the first of three warpgroups; the other two consume.
//
//   projection   |128 rows of dS|128 rows| ...          publishes them, waits for nothing
//   producer     |fill 0|fill 1| ... |wait for empty 0, fill 0| ...                over all items
//   consumers    |4 k16 of stage 0|4 k16 of stage 1| ... |add|4 k16| ... |add|store| |next item|
//
// PDL: where dS is of the kernel before, the launch begins beside the end of that. What else is
// loaded is complete: the kernel before triggers behind its own wait. Items of dB wait for nothing;
// the first dA of a CTA waits behind its first loads of X, and then triggers. There are items of dA
// in every launch, so that it ends after the kernel before. What does not come by TMA, and so
// through the L1, waits too: dA and dB to accumulate, the state of a dropout.
//
// Deadlock freedom: items of dA wait for flags of dS, which projection CTAs publish without
// waiting; all CTAs run at the same time (a cooperative launch guarantees it, or fails). Splits
// wait for none.
#include "gradients.cuh"

template <typename E, int kRank, typename D = NoDropout>
__device__ __forceinline__ void hopper_grads(const HopperGradsParams& p, const D& dropout = {}) {
    using DsTile = ProjectionTile<kRank, Major::MN, 64>;
    using T = GradTile<kRank, kItemCols, kDrops<D>>;
    const uint32_t base = shared_base();
    const int workers = gridDim.x - p.proj_ctas, worker = (int)blockIdx.x - p.proj_ctas;
    const bool projects = worker < 0;
    const Projection ds = {
        p.dh, p.b,       p.parts, p.ds_out,        p.ds_flag_count > 0 ? p.flags : nullptr,
        p.t,  p.outputs, p.r,     (int)blockIdx.x, p.proj_ctas};
    if (threadIdx.x == 0) {
        if (projects) {
            DsTile::Stages::init(base, 8);
        } else {
            T::Stages::init(base, T::kWarps);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    const int warp = warp_index();
    if (warp < 4) {
        setmaxnreg_dec<40>();
        if (warp == 0 && elect_one()) {
            if (projects) {
                DsTile::produce(ds, base);
            } else {
                grads_produce<T, true>(p, base, worker, workers);
            }
            grads_done(p);
        }
    } else {
        setmaxnreg_inc<232>();
        if (p.accumulate || kDrops<D>) pdl_wait();
        if (projects) {
            DsTile::template consume<E>(ds, base);
        } else {
            grads_consume<E, T>(p, base, worker, workers, dropout);
        }
    }
}

#include "instances/sm90a/grads.cuh"
