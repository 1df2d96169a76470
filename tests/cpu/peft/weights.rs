//! `adapter_model.safetensors` as it should not be.

use super::files::{
    A, B, WEIGHTS, assert_refused, file, good_config, good_weights, header, info, load,
    load_weights, tensors,
};
use lora_kernels::{DType, Device, Result, peft};

#[test]
fn the_good_files_are_taken() -> Result<()> {
    let loaded = load_weights(&good_weights())?;
    let adapter = &loaded.adapters["q"];
    assert_eq!((adapter.rank(), adapter.scale()), (2, 2.0));
    assert_eq!(adapter.b().shape().dims(), [4, 2]);
    // What is missing has PEFT's defaults.
    let error = load(br#"{"peft_type":"LORA"}"#, &good_weights()).unwrap_err();
    assert!(error.to_string().contains("has rank 2, but r in adapter_config.json says 8"));
    let loaded = load(br#"{"peft_type":"LORA","r":2}"#, &good_weights())?;
    assert_eq!(loaded.adapters["q"].alpha(), 8.0);
    Ok(())
}

#[test]
fn broken_headers_are_named() {
    let good_b = info("F32", "[4,2]", "[24,56]");
    let with_a = |dtype, shape, offsets| file(&header(&info(dtype, shape, offsets), &good_b), 56);
    let good = good_weights();
    let max = u64::MAX;
    for (case, weights, key, words) in [
        ("empty", vec![], "the header", "0 bytes"),
        ("7 bytes", vec![0; 7], "the header", "7 bytes"),
        ("no header", vec![0; 8], "the header", "EOF"),
        ("length 2^64-1", vec![0xff; 64], "the header", "18446744073709551615 bytes"),
        (
            "length 2^40",
            [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
            "the header",
            "more than",
        ),
        ("length beyond", [&99u64.to_le_bytes()[..], b"{}"].concat(), "the header", "10 in all"),
        ("truncated data", good[..good.len() - 1].to_vec(), B, "ends at byte 56"),
        ("truncated header", good[..40].to_vec(), "the header", "40 in all"),
        ("garbage behind", [&good[..], b"x"].concat(), "the header", "describes"),
        ("not JSON", file("hello", 0), "the header", "expected"),
        ("not UTF-8", [&3u64.to_le_bytes()[..], b"{\"\xff"].concat(), "the header", ""),
        ("deep", file(&"[".repeat(100_000), 0), "the header", ""),
        ("a list", file("[]", 0), "the header", "an object"),
        ("no tensors", file("{}", 0), "the header", "has no adapter"),
        (
            "a key twice",
            file(&format!(r#"{{"{A}":{good_b},"{A}":{good_b}}}"#), 56),
            "the header",
            "twice",
        ),
        (
            "metadata twice",
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
            "the header",
            "\"__metadata__\" twice",
        ),
        ("metadata of numbers", file(r#"{"__metadata__":{"a":1}}"#, 0), "the header", "a string"),
        ("a field twice", file(r#"{"x":{"dtype":"F32","dtype":"F32"}}"#, 0), "the header", "dtype"),
        ("a field missing", file(r#"{"x":{"dtype":"F32"}}"#, 0), "the header", "\"x\": missing"),
        ("an unknown type", with_a("F33", "[2,3]", "[0,24]"), "the header", "F33"),
        ("a negative dimension", with_a("F32", "[2,-3]", "[0,24]"), "the header", "-3"),
        ("half a dimension", with_a("F32", "[2,1.5]", "[0,24]"), "the header", "1.5"),
        (
            "a shape too large",
            with_a("F32", "[1152921504606846976,2]", "[0,24]"),
            A,
            "more than can",
        ),
        (
            "a shape that wraps to nothing",
            with_a("F32", "[4294967296,4294967296]", "[0,24]"),
            A,
            "more than can",
        ),
        ("2^60 elements", with_a("BF16", "[1073741824,1073741824]", "[0,24]"), A, "more than can"),
        (
            "2^50 elements",
            with_a("F32", "[33554432,33554432]", "[0,24]"),
            A,
            "cannot be bytes 0 to 24",
        ),
        ("too few bytes", with_a("F32", "[2,4]", "[0,24]"), A, "cannot be bytes"),
        ("another type", with_a("F16", "[2,3]", "[0,24]"), A, "type F16 cannot be"),
        ("offsets turned round", with_a("F32", "[2,3]", "[24,0]"), A, "begins at byte 24"),
        (
            "an overlap",
            with_a("F32", "[2,4]", "[0,32]"),
            B,
            "begins at byte 24 of the data, not at 32",
        ),
        ("a gap in front", with_a("F32", "[2,2]", "[8,24]"), A, "not at 0"),
        ("a gap between", with_a("F32", "[2,2]", "[0,16]"), B, "not at 16"),
        ("an end beyond the file", with_a("F32", "[2,3]", "[56,80]"), B, "begins at byte 24"),
        (
            "offsets of 2^64",
            with_a("F32", "[2,3]", &format!("[{},{max}]", max - 24)),
            B,
            "begins at byte 24",
        ),
        (
            "offsets beyond u64",
            with_a("F32", "[2,3]", "[0,18446744073709551616]"),
            "the header",
            "",
        ),
    ] {
        assert_refused(case, load_weights(&weights), "malformed", WEIGHTS, key, words);
    }
}

#[test]
fn tensors_that_do_not_make_adapters_are_named() {
    let name = |end: &str| format!("base_model.model.{end}");
    let a: (&str, &[usize]) = (A, &[2, 3]);
    let b: (&str, &[usize]) = (B, &[4, 2]);
    for (case, of, variant, key, words) in [
        ("A alone", vec![a], "malformed", B, "is missing, but"),
        ("B alone", vec![b], "malformed", A, "is missing, but"),
        ("B of another rank", vec![a, (B, &[4, 3])], "malformed", B, "does not fit"),
        ("B turned round", vec![a, (B, &[2, 4])], "malformed", B, "does not fit"),
        ("another rank", vec![(A, &[3, 3]), (B, &[4, 3])], "malformed", A, "has rank 3, but r in"),
        ("A of one dimension", vec![(A, &[6]), b], "malformed", A, "no matrix"),
        ("A of ZeRO-3", vec![(A, &[0]), (B, &[0])], "malformed", A, "ZeRO-3"),
        ("a number", vec![(A, &[]), b], "malformed", A, "no matrix"),
        ("nothing", vec![(A, &[2, 0]), b], "malformed", A, "no matrix"),
        ("rank 0", vec![(A, &[0, 3]), (B, &[4, 0])], "malformed", A, "no matrix"),
        ("half a convolution", vec![(A, &[2, 3, 1, 1]), b], "malformed", B, "does not fit"),
        ("a kernel in B", vec![(A, &[2, 3, 3]), (B, &[4, 2, 3])], "malformed", B, "does not fit"),
        ("six dimensions", vec![(A, &[2, 3, 1, 1, 1, 1]), b], "malformed", A, "no matrix"),
    ] {
        assert_refused(case, load_weights(&tensors(&of)), variant, WEIGHTS, key, words);
    }
    for (end, words) in [
        ("q.lora_A.a.b.weight", "a name other than"),
        ("q.lora_A.bias", "a name other than"),
        ("q.lora_down.weight", "kohya"),
    ] {
        let key = name(end);
        let weights = tensors(&[a, b, (&key, &[2, 2])]);
        assert_refused(end, load_weights(&weights), "unsupported", WEIGHTS, &key, words);
    }
    for (key, words) in [
        ("q.lora_A.weight", "not begin"),
        ("base_model.q.lora_A.weight", "not begin"),
        ("model.layers.0.q_proj.lora_a", "mlx-lm"),
        ("lora_unet_q.lora_down.weight", "kohya"),
        ("transformer.q.lora_A.weight", "diffusers"),
        ("layers.0.attention.wq.lora_A.weight", "mistral-finetune"),
    ] {
        let weights = tensors(&[a, b, (key, &[2, 2])]);
        assert_refused(key, load_weights(&weights), "unsupported", WEIGHTS, key, words);
    }
    let long = "a".repeat(1025);
    for module in ["", ".q", "q.", "a..q", "a b", "a\nb", "ü", &long] {
        let key = name(&format!("{module}.lora_A.weight"));
        let weights = tensors(&[a, b, (&key, &[2, 3])]);
        assert_refused(module, load_weights(&weights), "malformed", WEIGHTS, &key, "module name");
    }
}

#[test]
fn element_types_are_named() {
    for (dtype, bytes) in [("I32", 4), ("F64", 8), ("U8", 1), ("F8_E4M3", 1), ("BOOL", 1)] {
        let a = info(dtype, "[2,3]", &format!("[0,{}]", 6 * bytes));
        let b = info("F32", "[4,2]", &format!("[{},{}]", 6 * bytes, 6 * bytes + 32));
        let weights = file(&header(&a, &b), 6 * bytes + 32);
        assert_refused(dtype, load_weights(&weights), "unsupported", WEIGHTS, A, dtype);
    }
}

#[test]
fn a_and_b_of_two_types_get_the_wider() -> Result<()> {
    use DType::{Bf16, F16, F32};
    let config = good_config().to_string();
    let types = [("F32", F32, 4), ("F16", F16, 2), ("BF16", Bf16, 2)];
    for (name_a, dtype_a, bytes_a) in types {
        for (name_b, dtype_b, bytes_b) in types {
            let (end_a, end) = (6 * bytes_a, 6 * bytes_a + 8 * bytes_b);
            let a = info(name_a, "[2,3]", &format!("[0,{end_a}]"));
            let b = info(name_b, "[4,2]", &format!("[{end_a},{end}]"));
            let weights = file(&header(&a, &b), end);
            let load = |dtype| {
                peft::load_from_bytes(config.as_bytes(), &weights, &Device::cpu(), dtype).map(
                    |loaded| (loaded.adapters["q"].a().dtype(), loaded.adapters["q"].b().dtype()),
                )
            };
            let wider = if dtype_a == dtype_b { dtype_a } else { F32 };
            assert_eq!(load(None)?, (wider, wider), "{name_a} and {name_b}");
            assert_eq!(load(Some(Bf16))?, (Bf16, Bf16), "{name_a} and {name_b}");
        }
    }
    Ok(())
}

/// The adapter's name inside the keys, as some programs leave it there.
#[test]
fn one_adapter_name_is_read_over() -> Result<()> {
    let name = |module: &str, half, adapter: &str| {
        format!("base_model.model.{module}.lora_{half}{adapter}.weight")
    };
    let load_named = |names: &[(&str, &str)]| {
        let named: Vec<(String, [usize; 2])> = names
            .iter()
            .flat_map(|(module, adapter)| {
                [(name(module, 'A', adapter), [2, 3]), (name(module, 'B', adapter), [4, 2])]
            })
            .collect();
        let named: Vec<(&str, &[usize])> =
            named.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
        load_weights(&tensors(&named))
    };
    for names in [
        [("q", ".default"), ("a.q", ".default")],
        [("q", ".sql"), ("a.q", ".sql")],
        [("q", ".default"), ("a.q", "")],
    ] {
        assert!(load_named(&names)?.adapters.keys().eq(["a.q", "q"]), "{names:?}");
    }
    let result = load_named(&[("q", ".default"), ("a.q", ".other")]);
    let key = name("q", 'A', ".default");
    assert_refused("two names", result, "unsupported", WEIGHTS, &key, "is of \"other\"");
    let result = load_named(&[("q", ".default"), ("q", "")]);
    assert_refused("both", result, "malformed", WEIGHTS, A, "is there twice");
    Ok(())
}
