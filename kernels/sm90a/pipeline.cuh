// A pipeline of stages in shared memory: one producer thread fills them by TMA, consumer warps read
// them by wgmma.
//
//   producer   |acquire, loads|acquire, loads| ...            waits for empty, expects full
//   consumers          |step: wgmmas of stage 0|of stage 1|   waits for full, arrives at empty
//
// full[stage] completes when all bytes of its loads have arrived. empty[stage] completes when all
// consumer warps have released the stage, in a cluster with multicast the warps of both CTAs. A
// consumer keeps one wgmma group in flight, and so releases the stage before the one it has just
// issued.
#pragma once

#include "wgmma.cuh"

// Where a thread is in a ring of stages; the phase is the parity of its round.
template <int kCount>
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kCount) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// The same for a count known at run time, in steps of `by` stages.
struct RuntimeRing {
    int count, stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ explicit RuntimeRing(int count) : count(count) {}
    __device__ __forceinline__ void advance(int by = 1) {
        stage += by;
        if (stage >= count) {
            stage -= count;
            phase ^= 1;
        }
    }
};

// kCount stages of kBytes, from the start of shared memory on. Barriers lie at kBarriersAt: full,
// then empty, of kSlots stages each; then the kernel's own.
template <int kCount_, int kBytes_, int kBarriersAt, int kSlots = kCount_>
struct Stages {
    static constexpr int kCount = kCount_, kBytes = kBytes_;
    static_assert(kCount >= 2 && kCount <= kSlots, "the barriers are for kSlots stages");
    static_assert(kBytes % 1024 == 0, "the 128-byte swizzle repeats every 1024 bytes");
    static_assert(kCount * kBytes <= kBarriersAt, "stages overlap their barriers");

    static __device__ __forceinline__ uint32_t at(uint32_t base, int stage) {
        return base + stage * kBytes;
    }
    static __device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
        return base + kBarriersAt + 8 * stage;
    }
    static __device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
        return full(base, kSlots + stage);
    }
    static __device__ __forceinline__ Ring<kCount> ring() { return {}; }

    // By one thread; `releases` arrive at empty. fence_mbarrier_init and a barrier must follow.
    static __device__ __forceinline__ void init(uint32_t base, int releases) {
        for (int stage = 0; stage < kCount; stage++) {
            mbarrier_init(full(base, stage), 1);
            mbarrier_init(empty(base, stage), releases);
        }
    }
};

// The same with a count and a size known at run time: barriers first, of kSlots stages, then the
// stages, at kStagesAt.
template <int kSlots, int kStagesAt>
struct RuntimeStages {
    static_assert(8 * 2 * kSlots <= kStagesAt && kStagesAt % 1024 == 0);
    int count, bytes;

    __device__ __forceinline__ uint32_t at(uint32_t base, int stage) const {
        return base + kStagesAt + stage * bytes;
    }
    static __device__ __forceinline__ uint32_t full(uint32_t base, int stage) {
        return base + 8 * stage;
    }
    static __device__ __forceinline__ uint32_t empty(uint32_t base, int stage) {
        return full(base, kSlots + stage);
    }
    __device__ __forceinline__ RuntimeRing ring() const { return RuntimeRing(count); }
};

// A stage to be filled: where, and the barrier that its loads complete.
struct Slot {
    uint32_t to, full;
};

// By one thread, elect_one().
template <typename Stages>
struct Producer {
    Stages stages;
    uint32_t base;
    decltype(Stages{}.ring()) ring;

    __device__ __forceinline__ explicit Producer(uint32_t base, Stages stages = {})
        : stages(stages), base(base), ring(stages.ring()) {}

    // The next stage, once it is released. A stage that was never filled counts as released.
    __device__ __forceinline__ Slot acquire(int bytes) const {
        mbarrier_wait(stages.empty(base, ring.stage), ring.phase ^ 1);
        mbarrier_arrive_expect_tx(stages.full(base, ring.stage), bytes);
        return slot();
    }
    // The same for a stage whose bytes are expected already.
    __device__ __forceinline__ Slot slot() const {
        return {stages.at(base, ring.stage), stages.full(base, ring.stage)};
    }
    __device__ __forceinline__ void commit() { ring.advance(); }
};

// How a consumer warp releases a stage: to its own CTA's producer, or with multicast to both CTAs'.
struct ReleaseToCta {
    __device__ __forceinline__ void operator()(uint32_t empty) const {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
    }
};
struct ReleaseToCluster {
    __device__ __forceinline__ void operator()(uint32_t empty) const {
        const int lane = threadIdx.x % 32;
        if (lane < 2) mbarrier_arrive_remote(empty, lane);
    }
};

// By a consumer warpgroup.
template <typename Stages, typename Release>
struct Consumer {
    Stages stages;
    uint32_t base;
    Release release;
    decltype(Stages{}.ring()) ring;
    int previous = -1, before_previous = -1;  // stages to be released

    __device__ __forceinline__ explicit Consumer(uint32_t base, Stages stages = {},
                                                 Release release = {})
        : stages(stages), base(base), release(release), ring(stages.ring()) {}

    // `issue` issues the wgmma groups of the next stage, given its address. The ring moves on by
    // `by`.
    template <typename Issue, typename... By>
    __device__ __forceinline__ void step(Issue&& issue, By... by) {
        step_or_last(false, issue, by...);
    }
    // The last step before drain() waits for no group: the stage before is released in drain().
    template <typename Issue>
    __device__ __forceinline__ void last_step(Issue&& issue) {
        step_or_last(true, issue);
    }
    template <typename Issue, typename... By>
    __device__ __forceinline__ void step_or_last(bool is_last, Issue&& issue, By... by) {
        mbarrier_wait(stages.full(base, ring.stage), ring.phase);
        issue(stages.at(base, ring.stage));
        if (is_last) {
            before_previous = previous;
        } else {
            wgmma_wait<1>();
            if (previous >= 0) release(stages.empty(base, previous));
        }
        previous = ring.stage;
        ring.advance(by...);
    }

    // Waits for all wgmma groups and releases their stages.
    __device__ __forceinline__ void drain() {
        wgmma_wait<0>();
        if (before_previous >= 0) release(stages.empty(base, before_previous));
        if (previous >= 0) release(stages.empty(base, previous));
        previous = before_previous = -1;
    }
};
