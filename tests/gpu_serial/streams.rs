//! Tensors that several streams use.

use super::pass::{BUSY, PATHS, Pass, serial};
use super::{alone, assert_no_kept_error, own_stream, pool_bytes};
use crate::common::Inputs;
use crate::cuda::cuda;
use half::bf16;
use lora_kernels::{DType, Device, Tensor};
use std::thread;

/// The NULL stream, for which others do not wait, and one that is not.
fn owners() -> [Device; 2] {
    [cuda(), own_stream(&cuda())]
}

/// The shape of W0.
fn busy_weight() -> [usize; 2] {
    let [_, k, d, _] = BUSY.single();
    [d, k]
}

#[test]
#[ignore = "needs a CUDA GPU"]
fn results_of_a_stream_that_is_gone() {
    let _alone = alone();
    for owner in owners() {
        let before = pool_bytes();
        for sizes in PATHS.into_iter().chain([BUSY]) {
            let expected = serial(&owner, sizes, 11);
            for _ in 0..5 {
                let mut pass = Pass::new(&owner, sizes, 11).expect("a pass");
                let side = own_stream(&owner);
                pass.on(&side).expect("the same context");
                // Long enough for the results to be read before they are there.
                for _ in 0..60 {
                    pass.run().expect("both passes enqueued");
                }
                // Nobody but the tensors knows of the stream now.
                pass.on(&owner).expect("the same context");
                drop(side);
                assert_eq!(pass.bits().expect("results"), expected, "{sizes} on {owner:?}");
            }
        }
        assert_eq!(pool_bytes(), before, "leaked");
        assert_no_kept_error(&owner);
    }
}

/// A long read on one stream, then a short one on another: a writer, and a release, wait for both.
#[test]
#[ignore = "needs a CUDA GPU"]
fn writers_wait_for_all_readers() {
    let _alone = alone();
    let other: Vec<bf16> = Inputs::<bf16>::reals(BUSY, 99).of.remove(0).w0;
    for owner in owners() {
        let expected = serial(&owner, BUSY, 12);
        let (one, two) = (own_stream(&owner), own_stream(&owner));
        for round in 0..6 {
            let mut long = Pass::new(&owner, BUSY, 12).expect("a pass");
            let mut short = Pass::new(&owner, PATHS[0], 12).expect("a pass");
            owner.synchronize().expect("all uploaded");
            // Both read what `w0` becomes below: the first by many calls.
            long.on(&one).expect("the same context");
            for _ in 0..20 {
                long.run().expect("both passes enqueued");
            }
            let mut brief = Tensor::zeros(&two, busy_weight(), DType::Bf16).expect("a tensor");
            brief.copy_from(&long.w0).expect("a short read on the second stream");
            short.on(&two).expect("the same context").run().expect("both passes enqueued");
            match round % 3 {
                0 => long.w0.copy_from_slice(&other).expect("overwritten"),
                1 => {
                    let source = Tensor::from_slice(&two, &other, busy_weight());
                    long.w0.copy_from(&source.expect("a tensor")).expect("overwritten");
                }
                _ => {
                    let shape = busy_weight();
                    let fresh = Tensor::zeros(&owner, shape, DType::Bf16).expect("a tensor");
                    drop(std::mem::replace(&mut long.w0, fresh));
                    // What takes its place in the pool.
                    Tensor::from_slice(&owner, &other, shape).expect("a tensor");
                }
            }
            assert_eq!(long.bits().expect("results"), expected, "round {round} on {owner:?}");
        }
        assert_no_kept_error(&owner);
    }
}

/// A workspace and all tensors go from stream to stream, call by call.
#[test]
#[ignore = "needs a CUDA GPU"]
fn calls_on_streams_in_turns() {
    let _alone = alone();
    let owner = cuda();
    let streams: Vec<_> = (0..3).map(|_| own_stream(&owner)).collect();
    for sizes in PATHS.into_iter().chain([BUSY]) {
        let expected = serial(&owner, sizes, 13);
        let mut pass = Pass::new(&owner, sizes, 13).expect("a pass");
        for round in 0..12 {
            pass.on(&streams[round % 3]).expect("the same context").run_forward().expect("forward");
            let next = &streams[(round + 1 + round / 3) % 3];
            pass.on(next).expect("the same context").run_backward().expect("backward");
        }
        assert_eq!(pass.bits().expect("results"), expected, "{sizes}");
    }
}

/// One frozen weight under several streams and threads at once.
#[test]
#[ignore = "needs a CUDA GPU"]
fn many_readers_of_one_weight() {
    let _alone = alone();
    let owner = cuda();
    let expected = serial(&owner, BUSY, 14);
    let shared = Pass::new(&owner, BUSY, 14).expect("a pass");
    let passes: Vec<_> = (0..4)
        .map(|_| {
            let device = own_stream(&owner);
            Pass::new(&device, BUSY, 14).expect("a pass")
        })
        .collect();
    let results = thread::scope(|scope| {
        let threads: Vec<_> = passes
            .into_iter()
            .map(|mut pass| {
                let w0 = &shared.w0;
                scope.spawn(move || {
                    for _ in 0..10 {
                        pass.run_with(w0).expect("both passes enqueued");
                    }
                    pass.bits().expect("results")
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect::<Vec<_>>()
    });
    for bits in results {
        assert_eq!(bits, expected);
    }
    drop(shared);
    assert_no_kept_error(&owner);
}
