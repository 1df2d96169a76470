//! Problems: their limits, and how they, operations and errors print.

use lora_kernels::WorkspaceSize;
use lora_kernels::ops::{self, BaseForward, BaseInputGrad};
use lora_kernels::{DType, Device, Error, MAX_PROJECTIONS, Problem, Result, Tensor, TensorView};

#[test]
fn problems_have_one_to_four_projections_within_the_limits() {
    let new = |t, k, of: &[(usize, usize)]| Problem::new(t, k, of, DType::Bf16);
    let problem = new(4, 6, &[(5, 2), (7, 256)]).unwrap();
    assert_eq!((problem.projections(), problem.rank()), (&[(5, 2), (7, 256)][..], 258));
    for got in [0, MAX_PROJECTIONS + 1] {
        let error = new(4, 6, &vec![(5, 2); got]).unwrap_err();
        assert!(matches!(error, Error::Count { got: count, .. } if count == got), "{error}");
        assert_eq!(error.to_string(), format!("projections is a list of {got}, expected 1 to 4"));
    }
    for r in [0, 257] {
        assert_eq!(new(4, 6, &[(5, r)]), Err(Error::Rank { r }));
        assert_eq!(new(4, 6, &[(5, 2), (5, r)]), Err(Error::Rank { r }));
        assert_eq!(Error::Rank { r }.to_string(), format!("rank {r} is outside 1..=256"));
    }
    for (k, d, words) in [
        (0, 5, "x has shape [4, 0], expected at least one column"),
        (6, 0, "projections[1].w0 has shape [0, 6], expected at least one row and one column"),
    ] {
        let error = new(4, k, &[(5, 2), (d, 2)]).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert_eq!(error.to_string(), words);
    }
    let error = new(4, 6, &[(0, 2)]).unwrap_err().to_string();
    assert_eq!(error, "w0 has shape [0, 6], expected at least one row and one column");
    let error = new(4, 6, &[(5, 2), (1 << 31, 2)]).unwrap_err().to_string();
    assert_eq!(error, "projections[1].w0 of shape [2147483648, 6] is too large");
    // An empty batch is one.
    assert_eq!(new(0, 6, &[(5, 2)]).unwrap().t(), 0);
}

/// Problems and operations print their sizes.
#[test]
fn sizes_are_printed() -> Result<()> {
    let cpu = Device::cpu();
    let single = Problem::single(8192, 4096, 1024, 16, DType::Bf16)?;
    let group = Problem::new(33, 64, &[(4096, 16), (1024, 8)], DType::F16)?;
    for (problem, sizes) in [
        (single, &["T=8192", "k=4096", "d=1024", "r=16", "bf16"][..]),
        (group, &["T=33", "k=64", "(4096, 16)", "(1024, 8)", "f16"]),
    ] {
        let (forward, backward) =
            (ops::Forward::new(&cpu, &problem)?, ops::Backward::new(&cpu, &problem)?);
        let narrow = backward.with_gradients(problem.dtype())?;
        assert_eq!((forward.problem(), backward.problem()), (&problem, &problem));
        assert!(!forward.device().is_cuda() && !backward.device().is_cuda());
        let in_16_bits = format!("gradients in {}", problem.dtype());
        assert!(narrow.to_string().contains(&in_16_bits), "{narrow}");
        assert!(!backward.to_string().contains("gradients in"), "{backward}");
        let printed = [
            problem.to_string(),
            forward.to_string(),
            backward.to_string(),
            narrow.to_string(),
            format!("{forward:?}"),
            format!("{backward:?}"),
        ];
        for text in printed {
            assert!(sizes.iter().all(|size| text.contains(size)), "{text}");
        }
        for (text, words) in [
            (forward.to_string(), "forward T="),
            (backward.to_string(), "backward T="),
            (format!("{forward:?}"), " on cpu"),
            (format!("{backward:?}"), " on cpu"),
        ] {
            assert!(text.contains(words) && text.contains("reference"), "{text}");
        }
        assert_eq!(forward.path(), ops::Path::Reference);
        assert_eq!(backward.path(), ops::Path::Reference);
        assert_eq!(forward.workspace().max(narrow.workspace()).bytes(), 0, "none on the CPU");
    }
    let base = BaseForward::new(&cpu, 8192, [1024, 4096], DType::Bf16)?;
    let input_grad = BaseInputGrad::new(&cpu, 8192, [1024, 4096], DType::Bf16)?;
    for (text, name) in [
        (base.to_string(), "base forward"),
        (format!("{base:?}"), "base forward"),
        (input_grad.to_string(), "base input grad"),
        (format!("{input_grad:?}"), "base input grad"),
    ] {
        let words = [name, "T=8192", "k=4096", "d=1024", "bf16", "reference"];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!((base.path(), input_grad.path()), (ops::Path::Reference, ops::Path::Reference));
    assert!(!WorkspaceSize::default().to_string().is_empty());
    assert_eq!(TensorView::from_host(&[0f32; 6], [2, 3])?.to_string(), "f32 [2, 3]");
    Ok(())
}

/// The messages of errors that only a CUDA device can meet, and of texts.
#[test]
fn errors_say_what_happened() {
    let row_stride = Error::RowStride { argument: "da", got: 24 };
    let words = "da must have dense rows, but they start 24 elements apart";
    assert_eq!(row_stride.to_string(), words);
    let capture = Error::Capture { what: "no tensor can be copied to the host".into() };
    let words = "refused for the sake of a CUDA graph: no tensor can be copied to the host";
    assert_eq!(capture.to_string(), words);
    let parse = "gpu".parse::<Device>().unwrap_err();
    assert!(matches!(&parse, Error::Parse { got, .. } if got == "gpu"), "{parse:?}");
    assert_eq!(parse.to_string(), "\"gpu\" is not a device: cpu, cuda or cuda:1");
    let overlap = Error::Overlap { output: "h", other: "x" };
    assert_eq!(overlap.to_string(), "h is written, but shares memory with x");
    let workspace = Error::Workspace { part: "scratch", needed: 64, got: 3 };
    let words = "the workspace has 3 elements of scratch, but 64 are needed";
    assert_eq!(workspace.to_string(), words);
}

#[test]
fn too_large() {
    let problem = |t, k, d| Problem::single(t, k, d, 1, DType::Bf16).unwrap_err();
    for error in [problem(1 << 31, 1, 1), problem(1, 1 << 31, 1), problem(1, 1, 1 << 31)] {
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("2147483648"), "{error}");
    }
    let error = Tensor::zeros(&Device::cpu(), [1 << 40, 1 << 40], DType::F32).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("[1099511627776, 1099511627776]"), "{error}");
    let seven = Tensor::zeros(&Device::cpu(), [1; 7], DType::F32).unwrap_err();
    assert!(matches!(seven, Error::TooLarge { .. }), "{seven}");
}
