// Both passes for few tokens, which are bound by reading W0, in one launch each.
//
//   forward      S  (T×r) = s·X Aᵀ            rounded once, saturated in f16
//                H  (T×d) = X W0ᵀ + S Bᵀ      rounded once
//   input grad   dS (T×r) = s·dH B            rounded once, saturated in f16
//                dX (T×k) = dH W0 + dS A      rounded once
//                dA (r×k) (=|+=) dSᵀ X,  dB (d×r) (=|+=) dHᵀ S
//
// accumulated in f32, T <= kN. With r = 0 it is the frozen layer, H or dX alone: there are no
// pairs for S, and `flags` and `grads` are not read. Without pairs for H, it is S alone.
//
// The names here are those of the forward. In the input gradient, x is dH, w0 is W0ᵀ, a is Bᵀ, b is Aᵀ, s is dS
// and h is dX, d and k are each other, and weights lie MN-major: rows of theirs are columns in memory, which
// come in whole boxes of 64.
//
// The weights are the tall operand here, so they are m of a wgmma, and the tokens n: Hᵀ = W0 Xᵀ + B Sᵀ.
// Every row of W0 is read once, from end to end. So the sums that make a column of H go along k in the
// same order whatever T is, and a token's H has the same bits in any batch.
//
// All rows must start at multiples of 16 bytes, which is what TMA takes; what a box has beyond the edge
// of its matrix is read as zeros and not written.
//
// Grid: pairs of blocks (clusters). The first ones make S, down_rows columns of down_tokens tokens a
// pair, and the others H.
// Block: two warpgroups that multiply, in the input gradient a third that makes dA and dB, and a warp of
// which one thread loads. Items of dA and dB, 64 columns of dH or X and 16 or 32 ranks, go to the blocks that
// make H in turns, and are made while those wait for W0.
// Where a pair shares the same rows of its weight (`split`, and always for S), its first block goes
// along the first half of k, the other along the rest, and each makes half of the tokens from the sums of
// both. Where it does not, its blocks have rows of their own, and load half of X each, into both, if
// there are tokens enough to make that worth it.
// NOTES: rows beyond X are not loaded. Filling a row with zeros takes the TMA longer than loading one, and
// whatever is in shared memory there, only columns of Hᵀ have it that nobody stores.
// Shared memory: barriers; stages of so many tokens × 64 elements of X and rows×64 of a weight; then what
// the warpgroups and the blocks of a pair hand over, and the output on its way to memory; then a step of dA or
// dB. All of a multiprocessor's, or half.
// Reads X, W0, A, B, S, and for dA and dB their operands; writes S and H, dA and dB, every element once.
// `flags` must be zeros, and are again when the launch is done, if there are pairs for H.
//
//   loader        |ask the L2 for W0|wait for the kernel before|fill 0|fill 1| ... |wait for S|fill B, S|
//   multipliers                                         |4 k16 of stage 0|4 k16 of 1| ... |S·Bᵀ|sum|store
//   gradients                        |wait for it   |fill|product|store| ... |fill|wait for S|product|store|
//
// Of up to 64 rows, which a pair always shares, the two warpgroups take steps in turns, each with sums of
// its own, which one of them adds up; or half of the tokens each. Of more, each has 64 rows. full[stage]
// completes when all its bytes have come. empty[stage] completes when the warps that read it are done with
// it, those of both blocks where they share X. Warpgroups that take turns have stages of their own, so the
// number of stages is even: whoever skips a phase of a barrier cannot tell whether the next has completed.
//
// Before the kernel before is done, nothing of what it may have written is read, and nothing is written:
// the L2 is only asked to have W0, or A and X, at hand. So launches may overlap. Blocks that take half of a
// multiprocessor let the next launch start when it is time for its blocks to ask for W0: the memory would
// idle while the last sums are handed over and stored, and until the first loads of the next arrive.
//
// Who waits for whom: within a pair, for each other. Those that make H or dA, for those that make S, who do not
// wait for anybody else, and are the first blocks of the grid, so that they are started first, however many
// run at once. The last to have seen all of S clears the flag.
#include "grads.cuh"

// Mirrored by cuda::hopper_decode::HopperDecodeParams in Rust.
struct HopperDecodeParams {
    TensorMap w0, a, b;  // in boxes of 64 columns and as many rows as a block works on; MN-major, of 64×64
    TensorMap x, s;      // in boxes of 64 columns and x_rows and t rows
    TensorMap down_x;    // X in boxes of 64 columns and down_tokens rows
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
    int ahead;       // steps for which the L2 is asked for W0 before the kernel before is done
    int next_at;     // the step at whose loads the next kernel may start
    int down_pairs;  // the pairs that make S; 0 if r is
    int down_ranks;  // in so many parts of its columns
    int down_rows;   // of A for each of those: 64 at most
    int down_tile;   // tokens that a stage of theirs has room for: 32 or kN
    int down_tokens; // of X for each pair: as many at most
    int down_stages;
    int down_ahead;  // steps for which the L2 is asked for A and X, before the same
    int grads_at;    // where grads_beside's step is in shared memory, in the input gradient
    int h_cols;      // row stride of H in elements, a multiple of 8
};
static_assert(sizeof(HopperDecodeParams) == 896);

// Mirrored in the same place.
struct HopperDecodeBackwardParams {
    HopperDecodeParams product;
    HopperGradsParams grads;
};
static_assert(sizeof(HopperDecodeBackwardParams) == 2496);

constexpr int kStep = 64;  // along k
constexpr int kMaxStages = 40;
constexpr int kStagesAt = 1024;  // in shared memory, behind the barriers
static_assert(8 * (2 * kMaxStages + 2) <= kStagesAt);

// Of one of the chunks of four in which a warpgroup's sums come: a thread's are of two rows, eight apart,
// and of two tokens of every eight.
constexpr int kChunkBytes = 128 * 16;

__device__ __forceinline__ uint32_t full(uint32_t base, int stage) { return base + 8 * stage; }
__device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
    return full(base, kMaxStages + stage);
}
// All sums that others hand over are there.
__device__ __forceinline__ uint32_t received(uint32_t base) { return full(base, 2 * kMaxStages); }
// What is needed of a step of dA or dB.
__device__ __forceinline__ uint32_t grads_full(uint32_t base) { return received(base) + 8; }

// What each of the two multiplying warpgroups has of a block's work. A block that has half of k ends up
// with the same sums by steps and by tokens: those of its even steps, and of its odd ones, and their sum.
enum class Share {
    kRows,    // 64 each
    kSteps,   // every other one
    kTokens,  // half of them each
};

// What a block works on.
struct Work {
    bool makes_s, split;
    bool shares_x;            // the blocks of a pair load X for both
    int tile;                 // tokens that a stage has room for
    int token0, tokens;
    int rank;                 // of the block in its pair
    int rows;                 // of the weight, at a time
    int loaded_rows;          // of those, as boxes have them
    int row0, row_stride;     // the first of them, and from one round to the next
    int rounds;
    int first, steps;         // along k
    int ext_first, ext_stride, exts;  // steps of 64 along r: the first, from one to the next, their count
    int stages;

    __device__ __forceinline__ Work(const HopperDecodeParams& p, int tile_t, bool mn_major) {
        const int pair = blockIdx.x / 2, h_pairs = gridDim.x / 2 - p.down_pairs;
        rank = (int)cluster_rank();
        makes_s = pair < p.down_pairs;
        split = makes_s || p.split;
        shares_x = !split && tile_t >= 32;
        tile = makes_s ? p.down_tile : tile_t;
        token0 = makes_s ? pair / p.down_ranks * p.down_tokens : 0;
        tokens = min(makes_s ? p.down_tokens : p.t, p.t - token0);
        rows = makes_s ? p.down_rows : p.rows;
        loaded_rows = mn_major ? (rows + 63) / 64 * 64 : rows;
        const int unit = makes_s ? pair % p.down_ranks
                         : split ? pair - p.down_pairs
                                 : 2 * (pair - p.down_pairs) + rank;
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

    __device__ __forceinline__ Share share() const {
        return rows > 64 ? Share::kRows : tile == 64 && !makes_s ? Share::kTokens : Share::kSteps;
    }
    __device__ __forceinline__ int stage_bytes() const { return (tile + loaded_rows) * kStep * 2; }
    __device__ __forceinline__ uint32_t stage_at(uint32_t base, int stage) const {
        return base + kStagesAt + stage * stage_bytes();
    }
    // In a stage.
    __device__ __forceinline__ int weight_at() const { return tile * kStep * 2; }
};

// Calls of(row, col, place) for the boxes of a step of a weight: where each is in its matrix, and in shared
// memory from the first one on.
template <bool kMnMajor, typename Of>
__device__ __forceinline__ void each_box(const Work& work, int row0, int k0, Of&& of) {
    if constexpr (kMnMajor) {
        of(k0, row0, 0);
        if (work.loaded_rows > 64) of(k0, row0 + 64, 64 * kStep * 2);
    } else {
        of(row0, k0, 0);
    }
}

// By one thread, which is_elected().
template <bool kMnMajor, bool kMakesS>
__device__ __forceinline__ void ask_ahead(const HopperDecodeParams& p, const Work& work) {
    const int steps = min(kMakesS ? p.down_ahead : p.ahead, work.steps);
    for (int i = 0; i < steps; i++) {
        const int k0 = (work.first + i) * kStep;
        each_box<kMnMajor>(work, work.row0, k0, [&](int row, int col, int) {
            tma_prefetch(kMakesS ? p.a : p.w0, row, col);
        });
        if (kMakesS) tma_prefetch(p.down_x, work.token0, k0);
    }
}

// By one thread, until all of S is there to be loaded.
__device__ __forceinline__ bool wait_for_s(const HopperDecodeParams& p) {
    while (flag_load_acquire(&p.flags[1]) < 2 * p.down_pairs) {
    }
    fence_global_before_tma();
    return true;
}

// By each thread that has waited for S, when it does not look at its flag again.
template <bool kMnMajor>
__device__ __forceinline__ void flag_done(const HopperDecodeParams& p) {
    // Of a pair, the loaders of the blocks that have steps along r, and those who make dA and dB.
    const int of_pair = (!p.split || p.r > kStep ? 2 : 1) + (kMnMajor ? 2 : 0);
    const uint32_t last = (gridDim.x / 2 - p.down_pairs) * of_pair - 1;
    if (count_round(&p.flags[0], last) == last) p.flags[1] = 0;
}

// By one thread, which is_elected().
// NOTES: with all that does not depend on the step known to the compiler, or a step takes longer to be asked
// for than to come.
template <bool kMnMajor, bool kMakesS>
__device__ __forceinline__ void load(const HopperDecodeParams& p, const Work& work, uint32_t base) {
    const TensorMap &weight = kMakesS ? p.a : p.w0, &x = kMakesS ? p.down_x : p.x;
    const bool shares_x = !kMakesS && work.shares_x;
    // Rows of X that come to a stage.
    const int tokens = kMakesS ? p.down_tokens : shares_x ? 2 * p.x_rows : p.t;
    // So many rows of X or S, beside those of the weight.
    auto expect = [&](int stage, int rows) {
        mbarrier_arrive_expect(full(base, stage), (rows + work.loaded_rows) * kStep * 2);
    };
    // Of the stages that no loads have to wait for, while this one waits for the kernel before.
    const int early = min(work.stages, work.steps);
    for (int stage = 0; stage < early; stage++) expect(stage, tokens);
    wait_for_kernel_before();
    if (kMakesS) let_next_kernel_start();
    RingOf ring(work.stages);
    auto next_stage = [&](int rows) {
        // A stage that was never filled counts as released.
        mbarrier_wait(empty(base, ring.stage), ring.phase ^ 1);
        expect(ring.stage, rows);
    };
    bool has_s = false;
    for (int round = 0; round < work.rounds; round++) {
        const int row0 = work.row0 + round * work.row_stride;
        for (int i = 0; i < work.steps; i++) {
            const int step = round * work.steps + i, k0 = (work.first + i) * kStep;
            if (step >= early) next_stage(tokens);
            if (!kMakesS && step == p.next_at) let_next_kernel_start();
            const uint32_t to = work.stage_at(base, ring.stage), barrier = full(base, ring.stage);
            each_box<kMnMajor>(work, row0, k0, [&](int row, int col, int place) {
                tma_load_once(to + work.weight_at() + place, weight, row, col, barrier);
            });
            if (shares_x) {
                const int x0 = work.rank * p.x_rows;
                tma_load_pair(to + x0 * kStep * 2, x, x0, k0, barrier);
            } else {
                tma_load(to, x, work.token0, k0, barrier);
            }
            ring.advance(1);
        }
        for (int i = 0; !kMakesS && i < work.exts; i++) {
            next_stage(p.t);
            const uint32_t to = work.stage_at(base, ring.stage), barrier = full(base, ring.stage);
            const int r0 = (work.ext_first + i * work.ext_stride) * kStep;
            each_box<kMnMajor>(work, row0, r0, [&](int row, int col, int place) {
                tma_load(to + work.weight_at() + place, p.b, row, col, barrier);
            });
            if (!has_s) has_s = wait_for_s(p);
            tma_load(to, p.s, 0, r0, barrier);
            ring.advance(1);
        }
    }
    if (has_s) flag_done<kMnMajor>(p);
}

// From one 16 along k to the next, in a descriptor.
template <bool kMnMajor>
constexpr int kWeightStep = (kMnMajor ? 16 * 64 * 2 : 16 * 2) / 16;

// By the first two warpgroups.
template <typename E, int kTile, bool kMnMajor, Share kShare>
__device__ __forceinline__ void multiply(const HopperDecodeParams& p, const Work& work, uint32_t base) {
    constexpr bool kByRows = kShare == Share::kRows;
    constexpr int kTokens = kShare == Share::kTokens ? kTile / 2 : kTile;  // of a warpgroup
    constexpr int kSets = kShare == Share::kTokens ? 2 : 1;                // of sums
    constexpr int kStride = kShare == Share::kSteps ? 2 : 1;
    constexpr int kChunks = kTokens / 8;
    constexpr int kAll = kTile / 8, kFirstHalf = (kAll + 1) / 2;  // of the block, and of its first half
    constexpr int kPitch = (kByRows ? 128 : 64) * 2 + 16;         // with which no two rows are in one bank
    // Places for sums that are handed over: the peer's warpgroups', then that of the block's other one.
    constexpr int kFromPeer = kShare == Share::kTokens ? 1 : 2;
    constexpr int kPlaces = kShare == Share::kSteps ? 3 : kFromPeer;
    const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int chunk0 = kShare == Share::kTokens ? group * kChunks : 0;
    const int my_rows = kByRows ? group * 64 : 0;
    // A block may have nothing to load, and so to wait for.
    wait_for_kernel_before();
    // Of the chunks, those from one on, up to another, are this block's to finish, by a warpgroup, or both.
    const int mine = work.split && work.rank == 1 ? kFirstHalf : 0;
    const int mine_end = work.split && work.rank == 0 ? kFirstHalf : kAll;
    const int theirs = work.split && work.rank == 0 ? kFirstHalf : 0;
    auto is_mine = [&](int chunk) { return chunk >= mine && chunk < mine_end; };
    const bool finishes = kByRows || group == work.rank;
    constexpr int kFinishers = kByRows ? 256 : 128;

    // Behind the stages. As in plan::hopper_decode, which has as many stages as leave room for it.
    const uint32_t handover = work.stage_at(base, work.stages);
    const uint32_t out_at = handover + (work.split ? kPlaces * kFirstHalf * kChunkBytes : 0);
    auto place = [&](uint32_t of_block, int of, int chunk) {
        return of_block + (of * kFirstHalf + chunk) * kChunkBytes + thread * 16;
    };

    RingOf ring(work.stages);
    int previous = -1;
    auto release_previous = [&] {
        if (previous < 0) return;
        if (work.shares_x) {
            if (lane < 2) mbarrier_arrive_remote(empty(base, previous), lane);
        } else if (lane == 0) {
            mbarrier_arrive(empty(base, previous));
        }
        previous = -1;
    };
    auto take_step = [&](float(&sums)[kTokens / 2]) {
        mbarrier_wait(full(base, ring.stage), ring.phase);
        const uint32_t stage = work.stage_at(base, ring.stage);
        const uint64_t x = wgmma_descriptor(stage + chunk0 * 8 * kStep * 2, false);
        const uint64_t weight = wgmma_descriptor(stage + (kTile + my_rows) * kStep * 2, kMnMajor);
        wgmma_fence();
#pragma unroll
        for (int k16 = 0; k16 < kStep / 16; k16++)
            wgmma<E, kTokens, 0, kMnMajor, false>(sums, weight + k16 * kWeightStep<kMnMajor>, x + k16 * 2, 1);
        wgmma_commit();
        wgmma_wait<1>();
        release_previous();
        previous = ring.stage;
        ring.advance(kStride);
    };
    const int all_steps = work.steps + work.exts;
    if (kStride == 2) ring.advance(group);
    for (int round = 0; round < work.rounds; round++) {
        const int row0 = work.row0 + round * work.row_stride;
        float acc[kSets][kTokens / 2] = {};
#pragma unroll 1
        for (int step = kStride == 2 ? group : 0; step < all_steps; step += kSets * kStride) {
            take_step(acc[0]);
            if (kSets == 2 && step + 1 < all_steps) take_step(acc[kSets - 1]);
        }
        wgmma_wait<0>();
        release_previous();
        float(&sums)[kTokens / 2] = acc[0];
        if constexpr (kSets == 2) {
#pragma unroll
            for (int i = 0; i < kTokens / 2; i++) sums[i] += acc[1][i];
        }

        // Sums go to who finishes them.
        if (work.split) {
            cluster_wait();
            if (thread == 0 && (kByRows ? group == 0 : finishes) && mine < mine_end)
                mbarrier_arrive_expect(received(base), (mine_end - mine) * kPlaces * kChunkBytes);
            auto hand_over = [&](int block, int of, int chunk, const float* sums) {
                store_async(place(address_in_block(handover, block), of, chunk), sums,
                            address_in_block(received(base), block));
            };
#pragma unroll
            for (int i = 0; i < kChunks; i++) {
                if (!is_mine(chunk0 + i))
                    hand_over(work.rank ^ 1, kFromPeer == 2 ? group : 0, chunk0 + i - theirs, &sums[4 * i]);
                else if (!finishes)
                    hand_over(work.rank, 2, i - mine, &sums[4 * i]);
            }
        }
        if (finishes) {
            if (work.split && mine < mine_end) mbarrier_wait(received(base), 0);
            const float scale = work.makes_s ? p.scale : 1.f;
            auto round = [&](float low, float high) {
                return pack_saturated_if<E>(work.makes_s, low * scale, high * scale);
            };
#pragma unroll
            for (int i = 0; i < kChunks; i++) {
                const int chunk = chunk0 + i;
                if (!is_mine(chunk)) continue;
                float v[4] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
                if (work.split) {
                    float of_peer[4] = {};
                    if (kShare == Share::kSteps) add_shared(v, place(handover, 2, chunk - mine));
                    if (!kByRows || group == 0) add_shared(of_peer, place(handover, 0, chunk - mine));
                    if (kShare == Share::kSteps || (kByRows && group == 1))
                        add_shared(of_peer, place(handover, 1, chunk - mine));
#pragma unroll
                    for (int j = 0; j < 4; j++) v[j] += of_peer[j];
                }
                // Lane i gives row i of the transposed: a token's eight rows, then those eight on.
                const int token = (chunk - mine) * 8 + lane % 8;
                const int row = my_rows + warp * 16 + lane / 8 % 2 * 8;
                stmatrix_x2_transposed(out_at + token * kPitch + row * 2,
                                       round(v[0], v[1]), round(v[2], v[3]));
            }
            named_barrier<kFinishers>(1);
            const int cols = work.makes_s ? p.r : p.d, rows = min(work.rows, cols - row0);
            const int out_cols = work.makes_s ? p.s_cols : p.h_cols;
            const int eights = rows / 8, tokens = min(work.tokens, mine_end * 8) - mine * 8;
            // Elements have 16 bits.
            auto* out = static_cast<uint16_t*>(work.makes_s ? p.s_out : p.h) + row0 +
                        (int64_t)(work.token0 + mine * 8) * out_cols;
            for (int i = kByRows ? group * 128 + thread : thread; i < eights * tokens; i += kFinishers) {
                const int token = i / eights, row = i % eights * 8;
                const uint4 v = load_shared(out_at + token * kPitch + row * 2);
                *reinterpret_cast<uint4*>(out + (int64_t)token * out_cols + row) = v;
            }
            if (work.makes_s) {
                named_barrier<kFinishers>(1);
                // Of those that make H, if there are any, the last clears it.
                if (thread == 0 && gridDim.x / 2 > p.down_pairs) flag_add_release(&p.flags[1]);
            }
        }
        // Before the next round's take their place.
        if (round + 1 < work.rounds) named_barrier<256>(1);
    }
}

template <typename E, int kTile, bool kMnMajor>
__device__ __forceinline__ void multiply(const HopperDecodeParams& p, const Work& work, uint32_t base) {
    const Share share = work.share();
    if (share == Share::kRows)
        multiply<E, kTile, kMnMajor, Share::kRows>(p, work, base);
    else if (share == Share::kSteps)
        multiply<E, kTile, kMnMajor, Share::kSteps>(p, work, base);
    else if constexpr (kTile == 64)
        multiply<E, kTile, kMnMajor, Share::kTokens>(p, work, base);
}

// By a warpgroup of its own: the items go to the blocks that make dX, in turns.
template <typename E, typename T>
__device__ __forceinline__ void make_grads(const HopperDecodeParams& p, const HopperGradsParams& grads,
                                           uint32_t base) {
    wait_for_kernel_before();
    const int blocks = gridDim.x - 2 * p.down_pairs, block = blockIdx.x - 2 * p.down_pairs;
    grads_beside<E, T>(grads, base + p.grads_at, grads_full(base), block, blocks,
                       [&] { return wait_for_s(p); });
    if (threadIdx.x % 128 == 0) flag_done<true>(p);
}

constexpr int kMultipliers = 8;  // warps, then those that make dA and dB, if they are made, and one that loads

template <bool kMnMajor>
constexpr int kWarps = kMultipliers + (kMnMajor ? 4 : 0) + 1;

template <typename E, int kN, bool kMnMajor>
__device__ __forceinline__ void hopper_decode(const HopperDecodeParams& p, const HopperGradsParams* grads) {
    const uint32_t base = shared_base();
    const Work work(p, kN, kMnMajor);
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const bool loads = warp == kWarps<kMnMajor> - 1, multiplies = warp < kMultipliers;
    if (loads) {
        if (is_elected()) {
            prefetch_map(work.makes_s ? p.a : p.w0);
            prefetch_map(work.makes_s ? p.down_x : p.x);
        }
        const int readers =
            kMultipliers / (work.share() == Share::kSteps ? 2 : 1) * (work.shares_x ? 2 : 1);
        for (int stage = lane; stage < work.stages; stage += 32) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), readers);
        }
        if (lane == 0) {
            mbarrier_init(received(base), 1);
            mbarrier_init(grads_full(base), 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    // The peer's barriers are there when it has arrived too. Where only its sums come from it, those wait
    // for that who send them.
    cluster_arrive();
    if (loads && is_elected()) {
        if (work.makes_s)
            ask_ahead<kMnMajor, true>(p, work);
        else
            ask_ahead<kMnMajor, false>(p, work);
    }
    __syncwarp();
    if (work.shares_x) cluster_wait();
    if (loads && is_elected()) {
        if (work.makes_s)
            load<kMnMajor, true>(p, work, base);
        else
            load<kMnMajor, false>(p, work, base);
    }
    if (multiplies) {
        if (kN > 32 && work.tile == 32)
            multiply<E, 32, kMnMajor, Share::kSteps>(p, work, base);
        else
            multiply<E, kN, kMnMajor>(p, work, base);
    } else if (kMnMajor && !loads && !work.makes_s && p.r > 0) {
        if (p.r <= 16)
            make_grads<E, GradsTiling<16, 64>>(p, *grads, base);
        else
            make_grads<E, GradsTiling<32, 64>>(p, *grads, base);
    }
    if (work.split ? !multiplies : !work.shares_x) cluster_wait();
    // A block stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#define HOPPER_DECODE_FORWARD(n, type, E)                                                         \
    extern "C" __global__ void __cluster_dims__(2, 1, 1)                                          \
        __launch_bounds__(32 * kWarps<false>, n <= 64 ? 2 : 1)                                    \
        hopper_decode_forward_n##n##_##type(const __grid_constant__ HopperDecodeParams params) {  \
        hopper_decode<E, n, false>(params, nullptr);                                              \
    }
#define HOPPER_DECODE_INPUT_GRAD(n, type, E)                                                      \
    extern "C" __global__ void __cluster_dims__(2, 1, 1)                                          \
        __launch_bounds__(32 * kWarps<true>, n <= 32 ? 2 : 1)                                     \
        hopper_decode_input_grad_n##n##_##type(                                                   \
            const __grid_constant__ HopperDecodeBackwardParams params) {                          \
        hopper_decode<E, n, true>(params.product, &params.grads);                                 \
    }
#define HOPPER_DECODE_KERNELS(type, E)     \
    HOPPER_DECODE_FORWARD(8, type, E)      \
    HOPPER_DECODE_FORWARD(16, type, E)     \
    HOPPER_DECODE_FORWARD(32, type, E)     \
    HOPPER_DECODE_FORWARD(64, type, E)     \
    HOPPER_DECODE_FORWARD(128, type, E)    \
    HOPPER_DECODE_INPUT_GRAD(8, type, E)   \
    HOPPER_DECODE_INPUT_GRAD(16, type, E)  \
    HOPPER_DECODE_INPUT_GRAD(32, type, E)  \
    HOPPER_DECODE_INPUT_GRAD(64, type, E)

HOPPER_DECODE_KERNELS(bf16, __nv_bfloat16)
HOPPER_DECODE_KERNELS(f16, __half)
