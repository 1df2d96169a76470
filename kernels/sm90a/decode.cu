// Both passes for few tokens (T <= kN), weight-bandwidth bound, in one launch each:
//
//   forward      S  (T×r) = s·X Aᵀ            rounded once, saturated in f16
//                H  (T×d) = X W0ᵀ + S Bᵀ      rounded once
//   input grad   dS (T×r) = s·dH B            rounded once, saturated in f16
//                dX (T×k) = dH W0 + dS A      rounded once
//                dA (r×k) (=|+=) dSᵀ X,  dB (d×r) (=|+=) dHᵀ S
//
// in f32 sums. r = 0 is the frozen layer; without output clusters it is S alone. Parameters have
// the names of the forward: in the input gradient, x is dH, w0 is W0ᵀ, a is Bᵀ, b is Aᵀ, s is dS,
// h is dX, d and k are exchanged, and weights are MN-major, in boxes of 64×64.
//
// Hᵀ = W0 Xᵀ + B Sᵀ: weights are m of a wgmma, tokens n. Every row of W0 is read once. Sums go
// along k in an order that does not depend on T: a token has the same bits in every batch.
//
// Needs: rows at multiples of 16 bytes (TMA); shared memory of an SM or of half of one (as
// plan::sm90a::decode chooses); flags that are zero, and are zero again after the launch. Writes
// every element once.
//
// Grid: clusters of two CTAs. The first compute S, proj_rows columns of proj_tokens tokens each;
// the others H. With `split`, and always for S, the CTAs of a cluster have the same rows of the
// weight and half of k each, and each finishes half of the tokens (cluster reduce). Otherwise they
// have rows of their own, and with tiles of 32 tokens or more multicast X, half of it each.
// CTA: two consumer warpgroups (Share); in the input gradient a third computes items of dA and dB
// while the others wait for W0; then a producer warp.
//
//   producer    |prefetch W0|pdl_wait|fill 0|fill 1| ... |wait for S|fill B, S|
//   consumers                        |4 k16 of stage 0|4 k16 of 1| ... |S·Bᵀ|cluster reduce|store|
//   gradients               |pdl_wait|fill|product|store| ... |fill|wait for dS|product|store|
//
// Shared memory: barriers | stages of tokens×64 of X and rows×64 of a weight | partial sums |
// output | a step of dA or dB. Where warpgroups alternate steps, the number of stages is even: each
// has its own, as a warp that skips a phase of a barrier cannot tell whether the next is complete.
// NOTES: rows past T are not loaded. Filling a row with zeros takes the TMA longer than loading
// one, and only columns of Hᵀ that are not stored read them.
//
// PDL: before pdl_wait, CTAs only prefetch into the L2, W0 or A and X. CTAs that take half of an SM
// trigger the next launch when it is time for its CTAs to prefetch: otherwise the memory idles from
// the last loads of this launch to the first of the next.
//
// Deadlock freedom: CTAs of a cluster wait for each other. CTAs that compute H, dX or dA wait for
// CTAs that compute S, which wait for nothing else and come first in the grid: they start first,
// however many CTAs run at once.
#include "gradients.cuh"
#include "manifest/sm90a/decode.cuh"

static_assert(8 * (2 * kMaxStages + 2) <= kStagesAt);
using DecodeStages = RuntimeStages<kMaxStages, kStagesAt>;

__device__ __forceinline__ uint32_t partials_full(uint32_t base) {
    return DecodeStages::full(base, 2 * kMaxStages);
}
__device__ __forceinline__ uint32_t grads_full(uint32_t base) { return partials_full(base) + 8; }

// How the two consumer warpgroups share a CTA's work. By steps and by tokens, a CTA that has half
// of k gets the same sums: of its even steps, of its odd ones, and their sum.
enum class Share {
    kRows,    // 64 rows each
    kSteps,   // every other step each
    kTokens,  // half of the tokens each
};

// What a CTA works on.
struct Work {
    bool projects, split;
    bool shares_tokens;  // the CTAs of a cluster load X for both
    int tile;            // tokens that a stage has room for
    int token0, tokens;
    int rank;              // in the cluster
    int rows;              // of the weight, at a time
    int loaded_rows;       // rows in whole boxes
    int row0, row_stride;  // the first row, and from one round to the next
    int rounds;
    int first, steps;                         // along k
    int rank_first, rank_stride, rank_steps;  // along r
    int stages;

    __device__ __forceinline__ Work(const HopperDecodeParams& p, int tile_t, Major rhs) {
        const int cluster = blockIdx.x / 2, out_clusters = gridDim.x / 2 - p.proj_clusters;
        rank = (int)cluster_rank();
        projects = cluster < p.proj_clusters;
        split = projects || p.split;
        shares_tokens = !split && tile_t >= 32;
        tile = projects ? p.proj_tile : tile_t;
        token0 = projects ? cluster / p.proj_rank_tiles * p.proj_tokens : 0;
        tokens = min(projects ? p.proj_tokens : p.t, p.t - token0);
        rows = projects ? p.proj_rows : p.rows;
        loaded_rows = rhs == Major::MN ? (rows + 63) / 64 * 64 : rows;
        const int unit = projects ? cluster % p.proj_rank_tiles
                         : split  ? cluster - p.proj_clusters
                                  : 2 * (cluster - p.proj_clusters) + rank;
        row0 = unit * rows;
        row_stride = (split ? out_clusters : 2 * out_clusters) * rows;
        rounds = projects ? 1 : p.rounds;
        const int all = (p.k + kStep - 1) / kStep, half = (all + 1) / 2;
        first = split && rank == 1 ? half : 0;
        steps = !split ? all : rank == 0 ? half : all - half;
        // The second CTA has no more steps along k than the first, and so begins along r.
        const int all_rank_steps = projects ? 0 : (p.r + kStep - 1) / kStep;
        rank_first = split ? 1 - rank : 0;
        rank_stride = split ? 2 : 1;
        rank_steps = (all_rank_steps - rank_first + rank_stride - 1) / rank_stride;
        stages = projects ? p.proj_stages : p.stages;
    }

    __device__ __forceinline__ Share share() const {
        if (rows > kTurnsRows) return Share::kRows;
        return tile == 64 && !projects ? Share::kTokens : Share::kSteps;
    }
    // A stage: a step of X, then of the weight's rows.
    __device__ __forceinline__ int weight_at() const { return tile * kStepBytes; }
    __device__ __forceinline__ DecodeStages pipeline() const {
        return {stages, (tile + loaded_rows) * kStepBytes};
    }

    // Calls of(row, col, place) for the boxes of a step of a weight: in its matrix, and in the
    // stage.
    template <Major kRhs, typename Of>
    __device__ __forceinline__ void each_box(int row, int k0, Of&& of) const {
        if constexpr (kRhs == Major::MN) {
            of(k0, row, weight_at());
            if (loaded_rows > 64) of(k0, row + 64, weight_at() + 64 * kStepBytes);
        } else {
            of(row, k0, weight_at());
        }
    }
};

// ---- The producer warp ------------------------------------------------------------------------

// Loads the first steps into the L2, ahead of pdl_wait. By one thread, elect_one(), as all here.
template <Major kRhs, bool kProjects>
__device__ __forceinline__ void prefetch(const HopperDecodeParams& p, const Work& work) {
    const int steps = min(kProjects ? p.proj_prefetch_steps : p.prefetch_steps, work.steps);
    for (int i = 0; i < steps; i++) {
        const int k0 = (work.first + i) * kStep;
        work.each_box<kRhs>(work.row0, k0, [&](int row, int col, int) {
            tma_prefetch(kProjects ? p.a : p.w0, row, col);
        });
        if (kProjects) tma_prefetch(p.proj_x, work.token0, k0);
    }
}

// Until all of S or dS can be loaded: both CTAs of its clusters publish their parts.
__device__ __forceinline__ void wait_for_projection(const HopperDecodeParams& p) {
    GridFlags{p.flags}.wait(0, 2 * p.proj_clusters);
}

// By each thread that has waited for it, once.
template <Major kRhs>
__device__ __forceinline__ void projection_seen(const HopperDecodeParams& p) {
    // In a cluster: the producers of CTAs that have steps along r, and both gradient warpgroups.
    const int of_cluster = (!p.split || p.r > kStep ? 2 : 1) + (kRhs == Major::MN ? 2 : 0);
    GridFlags{p.flags}.done((gridDim.x / 2 - p.proj_clusters) * of_cluster, 1, 1);
}

// NOTES: kProjects at compile time: with lookups in the loop, a step takes longer to issue than to
// arrive.
template <Major kRhs, bool kProjects>
__device__ __forceinline__ void produce(const HopperDecodeParams& p, const Work& work,
                                        uint32_t base) {
    const TensorMap &weight = kProjects ? p.a : p.w0, &x = kProjects ? p.proj_x : p.x;
    const bool shares_tokens = !kProjects && work.shares_tokens;
    auto bytes = [&](int tokens) { return (tokens + work.loaded_rows) * kStepBytes; };
    const int step_bytes = bytes(kProjects ? p.proj_tokens : shares_tokens ? 2 * p.x_rows : p.t);
    Producer<DecodeStages> producer(base, work.pipeline());
    // The first round of stages waits for no release: its bytes are expected while pdl_wait waits.
    const int early = min(work.stages, work.steps);
    for (int stage = 0; stage < early; stage++)
        mbarrier_arrive_expect_tx(DecodeStages::full(base, stage), step_bytes);
    pdl_wait();
    if (kProjects) pdl_trigger();
    bool has_projection = false;
    for (int round = 0; round < work.rounds; round++) {
        const int row0 = work.row0 + round * work.row_stride;
        for (int i = 0; i < work.steps; i++) {
            const int step = round * work.steps + i, k0 = (work.first + i) * kStep;
            const Slot slot = step >= early ? producer.acquire(step_bytes) : producer.slot();
            if (!kProjects && step == p.pdl_trigger_step) pdl_trigger();
            work.each_box<kRhs>(row0, k0, [&](int row, int col, int place) {
                tma_load_evict_first(slot.to + place, weight, row, col, slot.full);
            });
            if (shares_tokens) {
                const int x0 = work.rank * p.x_rows;
                tma_load_multicast(slot.to + x0 * kStepBytes, x, x0, k0, slot.full);
            } else {
                tma_load(slot.to, x, work.token0, k0, slot.full);
            }
            producer.commit();
        }
        for (int i = 0; !kProjects && i < work.rank_steps; i++) {
            const Slot slot = producer.acquire(bytes(p.t));
            const int r0 = (work.rank_first + i * work.rank_stride) * kStep;
            work.each_box<kRhs>(row0, r0, [&](int row, int col, int place) {
                tma_load(slot.to + place, p.b, row, col, slot.full);
            });
            if (!has_projection) wait_for_projection(p), has_projection = true;
            tma_load(slot.to, p.s, 0, r0, slot.full);
            producer.commit();
        }
    }
    if (has_projection) projection_seen<kRhs>(p);
}

// ---- The consumer warpgroups ------------------------------------------------------------------

// To the producers of both CTAs where they share X.
struct ReleaseShared {
    bool shares_tokens;
    __device__ __forceinline__ void operator()(uint32_t empty) const {
        if (shares_tokens) {
            ReleaseToCluster{}(empty);
        } else {
            ReleaseToCta{}(empty);
        }
    }
};

// kTile: the tokens of a stage.
template <typename E, int kTile, Major kRhs, Share kShare>
__device__ __forceinline__ void consume(const HopperDecodeParams& p, const Work& work,
                                        uint32_t base) {
    constexpr bool kByRows = kShare == Share::kRows, kBySteps = kShare == Share::kSteps;
    constexpr bool kByTokens = kShare == Share::kTokens;
    constexpr int kTokens = kByTokens ? kTile / 2 : kTile;  // of a warpgroup
    constexpr int kSets = kByTokens ? 2 : 1;                // of sums: even and odd steps
    constexpr int kStride = kBySteps ? 2 : 1;
    constexpr int kChunks = kTokens / kChunkTokens;
    // Chunks of both CTAs, and of rank 0.
    constexpr int kAll = kTile / kChunkTokens, kFirstHalf = (kAll + 1) / 2;
    using Tokens = SmemTile<Major::K, kTokens>;
    using Weight = SmemTile<kRhs, 64>;
    constexpr int kPitch = (kByRows ? kMostRows : kTurnsRows) * 2 + kPadBytes;  // of the output
    // Buffers of partial sums: from the peer's warpgroups, then from this CTA's other one.
    constexpr int kBuffers = kByRows    ? kBuffersByRows
                             : kBySteps ? kBuffersBySteps
                                        : kBuffersByTokens;
    const int group = warpgroup_index();
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
    const int chunk0 = kByTokens ? group * kChunks : 0;
    const int group_row0 = kByRows ? group * 64 : 0;
    // A CTA may have no step, and so nothing else to wait for.
    pdl_wait();
    // This CTA finishes chunks `mine` to `mine_end`, by one warpgroup, or by both where they share
    // rows.
    const int mine = work.split && work.rank == 1 ? kFirstHalf : 0;
    const int mine_end = work.split && work.rank == 0 ? kFirstHalf : kAll;
    const int theirs = work.split && work.rank == 0 ? kFirstHalf : 0;
    auto is_mine = [&](int chunk) { return chunk >= mine && chunk < mine_end; };
    const bool finishes = kByRows || group == work.rank;
    constexpr int kFinishers = kByRows ? 256 : 128;

    // Behind the stages: plan::sm90a::decode leaves room for both.
    const DecodeStages stages = work.pipeline();
    const uint32_t partials = stages.at(base, work.stages);
    const uint32_t staged = partials + (work.split ? kBuffers * kFirstHalf * kChunkBytes : 0);
    auto chunk_at = [&](uint32_t partials, int buffer, int chunk) {
        return partials + (buffer * kFirstHalf + chunk) * kChunkBytes + thread * 16;
    };

    Consumer<DecodeStages, ReleaseShared> consumer(base, stages, {work.shares_tokens});
    auto step = [&](float (&sums)[kTokens / 2]) {
        int accumulate = 1;
        consumer.step(
            [&](uint32_t stage) {
                wgmma_group<E, kTokens, Weight, Tokens>(
                    sums, Weight::descriptor(stage + (kTile + group_row0) * kStepBytes),
                    Tokens::descriptor(stage + chunk0 * kChunkTokens * kStepBytes), accumulate);
            },
            kStride);
    };
    const int all_steps = work.steps + work.rank_steps;
    if (kStride == 2) consumer.ring.advance(group);
    for (int round = 0; round < work.rounds; round++) {
        const int row0 = work.row0 + round * work.row_stride;
        float acc[kSets][kTokens / 2] = {};
#pragma unroll 1
        for (int i = kStride == 2 ? group : 0; i < all_steps; i += kSets * kStride) {
            step(acc[0]);
            if (kSets == 2 && i + 1 < all_steps) step(acc[kSets - 1]);
        }
        consumer.drain();
        float (&sums)[kTokens / 2] = acc[0];
        if constexpr (kSets == 2) {
#pragma unroll
            for (int i = 0; i < kTokens / 2; i++) sums[i] += acc[1][i];
        }

        // Cluster reduce: sums go to the warpgroup that finishes them.
        if (work.split) {
            cluster_wait();
            if (thread == 0 && (kByRows ? group == 0 : finishes) && mine < mine_end)
                mbarrier_arrive_expect_tx(partials_full(base),
                                          (mine_end - mine) * kBuffers * kChunkBytes);
            auto send = [&](int cta, int buffer, int chunk, const float* sums) {
                st_async(chunk_at(map_to_cta(partials, cta), buffer, chunk), sums,
                         map_to_cta(partials_full(base), cta));
            };
#pragma unroll
            for (int i = 0; i < kChunks; i++) {
                if (!is_mine(chunk0 + i))
                    send(work.rank ^ 1, kByTokens ? 0 : group, chunk0 + i - theirs, &sums[4 * i]);
                else if (!finishes)
                    send(work.rank, 2, i - mine, &sums[4 * i]);
            }
        }
        if (finishes) {
            if (work.split && mine < mine_end) mbarrier_wait(partials_full(base), 0);
            const float scale = work.projects ? p.scale : 1.f;
            auto round_pair = [&](float low, float high) {
                return pack_saturated_if<E>(work.projects, low * scale, high * scale);
            };
#pragma unroll
            for (int i = 0; i < kChunks; i++) {
                const int chunk = chunk0 + i;
                if (!is_mine(chunk)) continue;
                float v[4] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
                if (work.split) {
                    float of_peer[4] = {};
                    if (kBySteps) add_from_shared(v, chunk_at(partials, 2, chunk - mine));
                    if (!kByRows || group == 0)
                        add_from_shared(of_peer, chunk_at(partials, 0, chunk - mine));
                    if (kBySteps || (kByRows && group == 1))
                        add_from_shared(of_peer, chunk_at(partials, 1, chunk - mine));
#pragma unroll
                    for (int j = 0; j < 4; j++) v[j] += of_peer[j];
                }
                // Transposed: lane i addresses token i's row, eight rows of the weight, then the
                // next.
                const int token = (chunk - mine) * 8 + lane % 8;
                const int row = group_row0 + warp * 16 + lane / 8 % 2 * 8;
                stmatrix_x2_transposed(staged + token * kPitch + row * 2, round_pair(v[0], v[1]),
                                       round_pair(v[2], v[3]));
            }
            bar_sync<kFinishers>(1);
            const int cols = work.projects ? p.r : p.d, rows = min(work.rows, cols - row0);
            const int out_cols = work.projects ? p.s_cols : p.h_cols;
            const int tokens = min(work.tokens, mine_end * 8) - mine * 8;
            auto* out = static_cast<uint16_t*>(work.projects ? p.s_out : p.h) + row0 +
                        (int64_t)(work.token0 + mine * 8) * out_cols;
            store_rows(out, out_cols, staged, kPitch, tokens, rows / 8,
                       kByRows ? group * 128 + thread : thread, kFinishers);
            if (work.projects) {
                bar_sync<kFinishers>(1);
                // For the CTAs that compute H or dX, if there are any: they reset the flag.
                if (thread == 0 && gridDim.x / 2 > p.proj_clusters) GridFlags{p.flags}.publish(0);
            }
        }
        // Before the next round's output takes the place.
        if (round + 1 < work.rounds) bar_sync<256>(1);
    }
}

template <typename E, int kTile, Major kRhs>
__device__ __forceinline__ void consume(const HopperDecodeParams& p, const Work& work,
                                        uint32_t base) {
    const Share share = work.share();
    if (share == Share::kRows)
        consume<E, kTile, kRhs, Share::kRows>(p, work, base);
    else if (share == Share::kSteps)
        consume<E, kTile, kRhs, Share::kSteps>(p, work, base);
    else if constexpr (kTile == 64)
        consume<E, kTile, kRhs, Share::kTokens>(p, work, base);
}

// ---- The kernel -------------------------------------------------------------------------------

template <typename E, int kN, Major kRhs>
__device__ __forceinline__ void hopper_decode(const HopperDecodeParams& p,
                                              const HopperGradsParams* grads) {
    const uint32_t base = shared_base();
    const Work work(p, kN, kRhs);
    constexpr int kProducerWarp = kConsumerWarps + (kRhs == Major::MN ? kGradWarps : 0);
    const int warp = warp_index(), lane = threadIdx.x % 32;
    const bool produces = warp == kProducerWarp, consumes = warp < kConsumerWarps;
    if (produces) {
        if (elect_one()) {
            prefetch_tensormap(work.projects ? p.a : p.w0);
            prefetch_tensormap(work.projects ? p.proj_x : p.x);
        }
        const int releases =
            kConsumerWarps / (work.share() == Share::kSteps ? 2 : 1) * (work.shares_tokens ? 2 : 1);
        for (int stage = lane; stage < work.stages; stage += 32) {
            mbarrier_init(DecodeStages::full(base, stage), 1);
            mbarrier_init(DecodeStages::empty(base, stage), releases);
        }
        if (lane == 0) {
            mbarrier_init(partials_full(base), 1);
            mbarrier_init(grads_full(base), 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    // The peer's barriers exist when it has arrived too. Where only partial sums come from the
    // peer, the consumers wait for that before they send theirs.
    cluster_arrive();
    if (produces && elect_one()) {
        if (work.projects)
            prefetch<kRhs, true>(p, work);
        else
            prefetch<kRhs, false>(p, work);
    }
    __syncwarp();
    if (work.shares_tokens) cluster_wait();
    if (produces && elect_one()) {
        if (work.projects)
            produce<kRhs, true>(p, work, base);
        else
            produce<kRhs, false>(p, work, base);
    }
    if (consumes) {
        if (kN > kHalfProjTokens && work.tile == kHalfProjTokens)
            consume<E, kHalfProjTokens, kRhs, Share::kSteps>(p, work, base);
        else
            consume<E, kN, kRhs>(p, work, base);
    } else if (kRhs == Major::MN && !produces && !work.projects && p.r > 0) {
        pdl_wait();
        grads_beside<E>(*grads, p.r, base + p.grads_at, grads_full(base), 2 * p.proj_clusters,
                        [&] { wait_for_projection(p); });
        if (threadIdx.x % 128 == 0) projection_seen<Major::MN>(p);
    }
    if (work.split ? !consumes : !work.shares_tokens) cluster_wait();
    // A CTA stays until its peer has neither loads into it nor arrivals at it to come.
    __syncwarp();
    cluster_sync();
}

#include "instances/sm90a/decode.cuh"
