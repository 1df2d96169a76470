//! Plans as a user reads them.

use crate::dtype::DType;
use crate::plan::{DeviceProfile, backward, base_forward, base_input_grad, forward};
use crate::problem::Problem;

fn problem(t: usize, k: usize, layers: &[(usize, usize)]) -> Problem {
    Problem::new(t, k, layers, DType::Bf16).unwrap()
}

#[test]
fn a_plan_is_one_line() {
    let h100 = DeviceProfile::h100_sxm();
    let generic = h100.clone().without_hopper();
    let layer = |t, r| problem(t, 4096, &[(4096, r)]);
    let lines =
        |problem: &Problem| [forward, backward].map(|plan| plan(problem, Some(&h100)).to_string());
    assert_eq!(forward(&layer(8, 16), None).to_string(), "reference");
    assert_eq!(
        forward(&layer(8192, 16), Some(&generic)).to_string(),
        "mma 128×256 tiles, 256.0 KiB scratch"
    );
    let mma = [forward, backward].map(|plan| plan(&layer(8, 16), Some(&generic)).to_string());
    assert_eq!(
        mma,
        [
            "mma-decode 8×16 tiles, 256 CTAs + 8 for the projection, 16.2 KiB scratch",
            "mma-decode 16×64 tiles, 128 CTAs + 8 for the projection, 528.2 KiB scratch",
        ]
    );
    let group = problem(128, 4096, &[(4096, 16), (14336, 16)]);
    assert_eq!(
        forward(&group, Some(&generic)).to_string(),
        "mma-short 64×64 tiles; 128×128 tiles, 136.0 KiB scratch"
    );
    assert_eq!(base_forward(&layer(0, 16), Some(&generic)).to_string(), "mma, no scratch");
    let unaligned = |t| problem(t, 4095, &[(4095, 16)]);
    let passes =
        |t| [forward, base_forward].map(|plan| plan(&unaligned(t), Some(&generic)).to_string());
    assert_eq!(
        passes(512),
        [
            "mma-short 128×128 tiles, copies with aligned rows, 36.4 MiB scratch",
            "mma-short 128×128 tiles, copies with aligned rows, 36.0 MiB scratch",
        ]
    );
    assert_eq!(
        passes(8),
        [
            "mma-decode 8×16 tiles, 256 CTAs + 8 for the projection, copies with aligned rows, \
             208.2 KiB scratch",
            "mma-decode 8×16 tiles, 256 CTAs, no scratch",
        ]
    );
    let [forward, backward] = lines(&layer(8192, 16));
    assert_eq!(
        forward,
        "hopper 128×256 tiles, 66 clusters, fused projection in 16-column slices, stream-K tail, \
         16.8 MiB scratch"
    );
    assert_eq!(
        backward,
        "hopper 128×256 tiles, 64 clusters, fused projection in 16-column slices, 2 clusters of grad CTAs, \
         1.2 MiB scratch"
    );
    let [forward, _] = lines(&layer(2048, 16));
    assert_eq!(
        forward,
        "hopper 128×256 tiles, 64 clusters, dedicated projection on 2 clusters, 64.0 KiB scratch"
    );
    let [_, backward] = lines(&layer(8192, 128));
    assert_eq!(
        backward,
        "hopper 128×256 tiles, 62 clusters, separate projection, stream-K tail, \
         4 clusters of grad CTAs, 17.5 MiB scratch"
    );
    let [forward, _] = lines(&layer(128, 16));
    assert_eq!(
        forward,
        "hopper-short 64×64 tiles, 64 clusters + 2 for the projection, 4.0 KiB scratch"
    );
    let [forward, _] = lines(&problem(16, 4096, &[(4096, 16), (1024, 16)]));
    assert_eq!(
        forward,
        "hopper-decode 16×64 tiles, 64 clusters + 1 for the projection; \
         16×32 tiles, 32 clusters + 1 for the projection, 1.0 KiB scratch"
    );
    let base = [base_forward, base_input_grad];
    let base = |t| base.map(|plan| plan(&layer(t, 16), Some(&h100)).to_string());
    assert_eq!(base(8192), ["hopper 128×256 tiles, 66 clusters, no scratch"; 2]);
    let [forward, input_grad] = base(16);
    assert_eq!(forward, "hopper-decode 16×64 tiles, 64 clusters, no scratch");
    assert_eq!(input_grad, "hopper-decode 16×64 tiles, 64 clusters, no scratch");
}
