// archs: 90a
//
// The forward pass for few tokens, which is bound by reading W0: project.cu's product and linear.cu's in
// one launch.
//
//   S (T×r) = s·X Aᵀ               rounded once
//   H (T×d) = X W0ᵀ + S Bᵀ         rounded once
//
// accumulated in f32, T <= kN. With r = 0 it is the frozen layer.
//
// The weights are the tall operand here, so they are m of a wgmma, and the tokens n: Hᵀ = W0 Xᵀ + B Sᵀ.
// Every row of W0 is read once, from end to end. So the sums that make a column of H go along k in the
// same order whatever T is, and a token's H has the same bits in any batch.
//
// All rows must start at multiples of 16 bytes, which is what TMA takes; what a box has beyond the edge
// of its matrix is read as zeros and not written.
//
// Grid: pairs of blocks (clusters). The first ones make S, down_rows columns a pair, and the others H.
// Block: three warpgroups. Of the first, one thread loads; the other two multiply.
// Where a pair shares the same rows of its weight (`split`, and always for S), its first block goes
// along the first half of k, the other along the rest, and each makes half of the tokens from the sums of
// both. Where it does not, its blocks have rows of their own, and load half of X each, into both, if
// there are tokens enough to make that worth it.
// NOTES: rows beyond X are not loaded. Filling a row with zeros takes the TMA longer than loading one, and
// whatever is in shared memory there, only columns of Hᵀ have it that nobody stores.
// Shared memory: stages of kN×64 elements of X and rows×64 of a weight; then what the warpgroups and the
// blocks of a pair hand over, and the output on its way to memory.
// Reads X, W0, A, B, S; writes S and H, every element once. `flags` must be zeros, and are again when
// the launch is done.
//
//   loader        |ask the L2 for W0|wait for the kernel before|fill 0|fill 1| ... |wait for S|fill B, S|
//   multipliers                                         |4 k16 of stage 0|4 k16 of 1| ... |S·Bᵀ|sum|store
//
// Of up to 64 rows, which a pair always shares, the two warpgroups take steps in turns, each with sums of
// its own, which the first adds up; of more, each has 64 rows. full[stage] completes when all its bytes
// have come. empty[stage] completes when the warps that read it are done with it, those of both blocks
// where they share X. Warpgroups that take turns have stages of their own, so the number of stages is even:
// whoever skips a phase of a barrier cannot tell whether the next has completed.
//
// Before the kernel before is done, nothing of what it may have written is read, and nothing is written:
// the L2 is only asked to have W0 or A at hand. So launches may overlap.
//
// Who waits for whom: within a pair, for each other. Those that make H, for those that make S. They do
// not wait for anybody else, and are the first blocks of the grid, so that they are started first,
// however many run at once. The last to have seen all of S clears the flag.
#include "hopper_wgmma.cuh"

// Mirrored by cuda::hopper_decode::HopperDecodeParams in Rust.
struct HopperDecodeParams {
    TensorMap w0, a, b;  // in boxes of 64 columns and as many rows as a block works on
    TensorMap x, s;      // in boxes of 64 columns and x_rows and t rows
    void *h, *s_out;
    uint32_t* flags;  // how many have seen all of S, and how many blocks have made their part of it
    int t, k, d, r;
    int s_cols;      // elements from one row of S to the next: S may be columns of a matrix
    float scale;
    int x_rows;      // t, or where the blocks of a pair load half of x each, half of it, a multiple of 8
    int split;       // the blocks of a pair share rows of W0 and have half of k each
    int rows;        // of W0 that a pair, or a block, works on at a time: 128 at most, over 64 unless split
    int rounds;      // so often; 1 if split
    int stages;      // that are in flight; an even number of them for up to 64 rows
    int ahead;       // steps for which the L2 is asked before the kernel before is done
    int down_pairs;  // the pairs that make S; 0 if r is
    int down_rows;   // of A for each of them: 64 at most
    int down_stages;
};
static_assert(sizeof(HopperDecodeParams) == 768);

constexpr int kStep = 64;  // along k
constexpr int kMaxStages = 40;
constexpr int kBarriersAt = 222 << 10;

// A multiplying thread's sums come in chunks of four: two rows, eight apart, of two tokens, of every
// eight. Behind the stages is the place for those that the peer hands over, then for those that the other
// warpgroup does, then for the output in rows of as many elements as a block's tiles have.
template <int kN>
struct Chunks {
    static constexpr int kAll = kN / 8, kFirstHalf = (kAll + 1) / 2, kBytes = 128 * 16;
    // With which no two rows of the output are in one bank.
    static constexpr int kPitch64 = 64 * 2 + 16, kPitch128 = 128 * 2 + 16;
    static constexpr int kMost = kFirstHalf * (3 * kBytes + 8 * kPitch64);
    static_assert(kMost >= kFirstHalf * (2 * kBytes + 8 * kPitch128) && kMost >= kN * kPitch128);
    // As in plan::hopper_decode, which has as many stages as fit before.
    static constexpr int kAt = kBarriersAt - kMost;
};

__device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
    return base + kBarriersAt + 8 * stage;
}
__device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
    return full(base, kMaxStages + stage);
}
// All that the peer hands over is there.
__device__ __forceinline__ uint32_t received(uint32_t base) { return full(base, 2 * kMaxStages); }

// What a block works on.
struct Work {
    bool makes_s, split;
    int rank;                 // of the block in its pair
    int rows;                 // of the weight, at a time
    int row0, row_stride;     // the first of them, and from one round to the next
    int rounds;
    int first, steps;         // along k
    int ext_first, ext_stride, exts;  // steps of 64 along r: the first, from one to the next, their count
    int stages;

    __device__ __forceinline__ explicit Work(const HopperDecodeParams& p) {
        const int pair = blockIdx.x / 2, h_pairs = gridDim.x / 2 - p.down_pairs;
        rank = (int)cluster_rank();
        makes_s = pair < p.down_pairs;
        split = makes_s || p.split;
        rows = makes_s ? p.down_rows : p.rows;
        const int unit = makes_s ? pair : split ? pair - p.down_pairs : 2 * (pair - p.down_pairs) + rank;
        row0 = unit * rows;
        row_stride = (split ? h_pairs : 2 * h_pairs) * rows;
        rounds = makes_s ? 1 : p.rounds;
        const int all = (p.k + kStep - 1) / kStep, half = (all + 1) / 2;
        first = split && rank == 1 ? half : 0;
        steps = !split ? all : rank == 0 ? half : all - half;
        // The second block has no more steps along k than the first, and so begins along r.
        const int all_exts = makes_s ? 0 : (p.r + kStep - 1) / kStep;
        ext_first = split ? 1 - rank : 0;
        ext_stride = split ? 2 : 1;
        exts = (all_exts - ext_first + ext_stride - 1) / ext_stride;
        stages = makes_s ? p.down_stages : p.stages;
    }

    // The blocks of a pair load X for both.
    template <int kN>
    __device__ __forceinline__ bool shares_x() const {
        return kN >= 32 && !split;
    }
    // The warpgroups take steps in turns.
    __device__ __forceinline__ bool alternates() const { return rows <= 64; }
    template <int kN>
    __device__ __forceinline__ int stage_bytes() const {
        return (kN + rows) * kStep * 2;
    }
};

// By one thread, which is_elected().
__device__ __forceinline__ void ask_ahead(const HopperDecodeParams& p, const Work& work) {
    for (int i = 0; i < min(p.ahead, work.steps); i++)
        tma_prefetch(work.makes_s ? p.a : p.w0, work.row0, (work.first + i) * kStep);
}

// By one thread, which is_elected().
template <int kN>
__device__ __forceinline__ void load(const HopperDecodeParams& p, const Work& work, uint32_t base) {
    constexpr int kXBytes = kN * kStep * 2;
    const TensorMap& weight = work.makes_s ? p.a : p.w0;
    wait_for_kernel_before();
    let_next_kernel_start();
    RingOf ring(work.stages);
    // For so many rows of X or S, beside those of the weight.
    auto next_stage = [&](int tokens) {
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        mbarrier_arrive_expect(full(base, ring.stage), (tokens + work.rows) * kStep * 2);
        return base + ring.stage * work.stage_bytes<kN>();
    };
    const int x_boxes = (p.t + p.x_rows - 1) / p.x_rows;
    bool has_s = false;
    for (int round = 0; round < work.rounds; round++) {
        const int row0 = work.row0 + round * work.row_stride;
        for (int i = 0; i < work.steps; i++) {
            const uint32_t to = next_stage(x_boxes * p.x_rows), barrier = full(base, ring.stage);
            const int k0 = (work.first + i) * kStep;
            tma_load_once(to + kXBytes, weight, row0, k0, barrier);
            if (work.shares_x<kN>()) {
                const int x0 = work.rank * p.x_rows;
                tma_load_pair(to + x0 * kStep * 2, p.x, x0, k0, barrier);
            } else {
                for (int x0 = 0; x0 < p.t; x0 += p.x_rows)
                    tma_load(to + x0 * kStep * 2, p.x, x0, k0, barrier);
            }
            ring.advance(1);
        }
        for (int i = 0; i < work.exts; i++) {
            const uint32_t to = next_stage(p.t), barrier = full(base, ring.stage);
            const int r0 = (work.ext_first + i * work.ext_stride) * kStep;
            tma_load(to + kXBytes, p.b, row0, r0, barrier);
            if (!has_s) {
                while (flag_load_acquire(&p.flags[1]) < 2 * p.down_pairs) {
                }
                fence_global_before_tma();
                has_s = true;
            }
            tma_load(to, p.s, 0, r0, barrier);
            ring.advance(1);
        }
    }
    if (has_s) {
        const bool both = !work.split || p.r > kStep;  // blocks of a pair
        const uint32_t last = (gridDim.x / 2 - p.down_pairs) * (both ? 2 : 1) - 1;
        if (count_round(&p.flags[0], last) == last) p.flags[1] = 0;
    }
}

// By the two warpgroups behind the first.
template <typename E, int kN>
__device__ __forceinline__ void multiply(const HopperDecodeParams& p, const Work& work, uint32_t base) {
    constexpr int kXBytes = kN * kStep * 2;
    constexpr int kChunks = Chunks<kN>::kAll, kFirstHalf = Chunks<kN>::kFirstHalf;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const bool alternates = work.alternates(), shares_x = work.shares_x<kN>();
    const int stride = alternates ? 2 : 1, my_rows = alternates ? 0 : group * 64;
    // A block may have nothing to load, and so to wait for.
    wait_for_kernel_before();
    // Of the chunks, those from one on, up to another, are this block's to finish.
    const int mine = work.split && work.rank == 1 ? kFirstHalf : 0;
    const int mine_end = work.split && work.rank == 0 ? kFirstHalf : kChunks;
    auto is_mine = [&](int chunk) { return chunk >= mine && chunk < mine_end; };

    constexpr int kChunkBytes = Chunks<kN>::kBytes;
    const uint32_t from_peer = base + Chunks<kN>::kAt;
    const uint32_t from_other = from_peer + (work.split ? 2 * kFirstHalf * kChunkBytes : 0);
    const uint32_t out_at = from_other + (alternates ? kFirstHalf * kChunkBytes : 0);
    const int out_pitch = alternates ? Chunks<kN>::kPitch64 : Chunks<kN>::kPitch128;
    auto chunk_at = [&](uint32_t region, int chunk) {
        return region + chunk * kChunkBytes + thread * 16;
    };

    RingOf ring(work.stages);
    auto release = [&](int stage) {
        if (shares_x) {
            if (lane < 2) mbarrier_arrive_remote(empty(base, stage), lane);
        } else if (lane == 0) {
            mbarrier_arrive(empty(base, stage));
        }
    };
    const int all_steps = work.steps + work.exts;
    int step = alternates ? group : 0;
    ring.advance(step);
    for (int round = 0; round < work.rounds; round++) {
        const int row0 = work.row0 + round * work.row_stride;
        float acc[kN / 2] = {};
        int previous = -1;
        for (; step < all_steps; step += stride) {
            mbarrier_wait(full(base, ring.stage), ring.phase);
            const uint32_t stage = base + ring.stage * work.stage_bytes<kN>();
            const uint64_t x = wgmma_descriptor(stage, false);
            const uint64_t weight = wgmma_descriptor(stage + kXBytes + my_rows * kStep * 2, false);
            wgmma_fence();
#pragma unroll
            for (int k16 = 0; k16 < kStep / 16; k16++)
                wgmma<E, kN, 0, false, false>(acc, weight + k16 * 2, x + k16 * 2, 1);
            wgmma_commit();
            wgmma_wait<1>();
            if (previous >= 0) release(previous);
            previous = ring.stage;
            ring.advance(stride);
        }
        step -= all_steps;
        wgmma_wait<0>();
        if (previous >= 0) release(previous);

        // What is the peer's to finish goes there, and what is the first warpgroup's, to that one.
        if (work.split) {
            cluster_wait();
            const int theirs = kChunks - (mine_end - mine);
            if (thread == 0 && group == 0 && mine < mine_end)
                mbarrier_arrive_expect(received(base), (mine_end - mine) * 2 * kChunkBytes);
            const uint32_t barrier = address_in_block(received(base), work.rank ^ 1);
            const uint32_t to = address_in_block(from_peer, work.rank ^ 1);
#pragma unroll
            for (int i = 0; i < kChunks; i++) {
                const int at = group * theirs + (i < kFirstHalf ? i : i - kFirstHalf);
                if (!is_mine(i)) store_async(chunk_at(to, at), &acc[4 * i], barrier);
            }
        }
        if (alternates) {
            if (group == 1) {
#pragma unroll
                for (int i = 0; i < kChunks; i++)
                    if (is_mine(i)) store_shared(chunk_at(from_other, i - mine), &acc[4 * i]);
            }
            named_barrier<256>(1);
        }
        if (!alternates || group == 0) {
            if (work.split && mine < mine_end) mbarrier_wait(received(base), 0);
            const float scale = work.makes_s ? p.scale : 1.f;
#pragma unroll
            for (int i = 0; i < kChunks; i++) {
                if (!is_mine(i)) continue;
                float v[4] = {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
                if (alternates) add_shared(v, chunk_at(from_other, i - mine));
                if (work.split) {
                    const int of_first = i - mine, of_second = mine_end - mine + i - mine;
                    float theirs[4] = {};
                    if (alternates || group == 0) add_shared(theirs, chunk_at(from_peer, of_first));
                    if (alternates || group == 1) add_shared(theirs, chunk_at(from_peer, of_second));
#pragma unroll
                    for (int j = 0; j < 4; j++) v[j] += theirs[j];
                }
                // Lane i gives row i of the transposed: a token's eight rows, then those eight on.
                const int token = (i - mine) * 8 + lane % 8;
                const int row = my_rows + warp * 16 + lane / 8 % 2 * 8;
                stmatrix_x2_transposed(out_at + token * out_pitch + row * 2,
                                       pack<E>(v[0] * scale, v[1] * scale),
                                       pack<E>(v[2] * scale, v[3] * scale));
            }
            const int finishers = alternates ? 128 : 256;
            finishers == 128 ? named_barrier<128>(2) : named_barrier<256>(1);
            const int cols = work.makes_s ? p.r : p.d, rows = min(work.rows, cols - row0);
            const int out_cols = work.makes_s ? p.s_cols : p.d;
            const int eights = rows / 8, tokens = min(p.t, mine_end * 8) - mine * 8;
            // Elements have 16 bits.
            auto* out = static_cast<uint16_t*>(work.makes_s ? p.s_out : p.h) + row0;
            for (int i = alternates ? thread : group * 128 + thread; i < eights * tokens; i += finishers) {
                const int token = i / eights, row = i % eights * 8;
                const uint4 v = load_shared(out_at + token * out_pitch + row * 2);
                *reinterpret_cast<uint4*>(out + (int64_t)(mine * 8 + token) * out_cols + row) = v;
            }
            if (work.makes_s) {
                named_barrier<128>(2);
                if (thread == 0) flag_add_release(&p.flags[1]);
            }
        }
        // Before the next round's take their place.
        if (round + 1 < work.rounds) named_barrier<256>(1);
    }
}

template <typename E, int kN>
__device__ __forceinline__ void hopper_decode(const HopperDecodeParams& p) {
    const uint32_t base = shared_base();
    const Work work(p);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    if (warp == 0) {
        if (is_elected()) {
            prefetch_map(work.makes_s ? p.a : p.w0);
            prefetch_map(p.x);
        }
        const int readers = (work.alternates() ? 4 : 8) * (work.shares_x<kN>() ? 2 : 1);
        for (int stage = lane; stage < work.stages; stage += 32) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), readers);
        }
        if (lane == 0) mbarrier_init(received(base), 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    // The peer's barriers are there when it has arrived too. Where only its sums come from it, those wait
    // for that who send them.
    cluster_arrive();
    if (warp == 0 && is_elected()) ask_ahead(p, work);
    __syncwarp();
    if (work.shares_x<kN>()) cluster_wait();
    if (warp == 0 && is_elected()) load<kN>(p, work, base);
    if (warp >= 4) multiply<E, kN>(p, work, base);
    if (work.split ? warp < 4 : !work.shares_x<kN>()) cluster_wait();
    // A block stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#define HOPPER_DECODE_KERNEL(n, type, E)                                                  \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)        \
        hopper_decode_n##n##_##type(const __grid_constant__ HopperDecodeParams params) {  \
        hopper_decode<E, n>(params);                                                      \
    }

HOPPER_DECODE_KERNEL(8, bf16, __nv_bfloat16)
HOPPER_DECODE_KERNEL(16, bf16, __nv_bfloat16)
HOPPER_DECODE_KERNEL(32, bf16, __nv_bfloat16)
HOPPER_DECODE_KERNEL(64, bf16, __nv_bfloat16)
HOPPER_DECODE_KERNEL(128, bf16, __nv_bfloat16)
HOPPER_DECODE_KERNEL(8, f16, __half)
HOPPER_DECODE_KERNEL(16, f16, __half)
HOPPER_DECODE_KERNEL(32, f16, __half)
HOPPER_DECODE_KERNEL(64, f16, __half)
HOPPER_DECODE_KERNEL(128, f16, __half)
