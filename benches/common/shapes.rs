//! The problems that are timed: T tokens through a d×k weight with an adapter of rank r, or through
//! several weights that share their input.

use lora_kernels::{DType, Problem};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dims {
    pub t: usize,
    pub k: usize,
    /// One, or one of each projection.
    pub d: Vec<usize>,
    /// Of each.
    pub r: usize,
}

impl Dims {
    pub fn problem(&self, dtype: DType) -> lora_kernels::Result<Problem> {
        let projections: Vec<_> = self.d.iter().map(|&d| (d, self.r)).collect();
        Problem::new(self.t, self.k, &projections, dtype)
    }
}

pub const SETS: &str = "quick, train, decode, awkward, shared, calibrate";

/// (k, d) of the linear layers of Llama 3 8B, then of 70B.
const LLAMA: [(usize, usize); 8] = [
    (4096, 4096),
    (4096, 1024),
    (4096, 14336),
    (14336, 4096),
    (8192, 8192),
    (8192, 1024),
    (8192, 28672),
    (28672, 8192),
];

/// (k, d) of layers for few tokens.
const FEW: [(usize, usize); 4] = [(4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192)];

/// (k, d) of the layers of Qwen2.5 7B with the least regular sizes, then DeepSeek-V3's 7168→2112.
const AWKWARD: [(usize, usize); 4] = [(3584, 512), (3584, 18944), (18944, 3584), (7168, 2112)];

/// q, k and v, then gate and up, of Llama 3 8B: k, and d of each.
const SHARED: [(usize, &[usize]); 2] = [(4096, &[4096, 1024, 1024]), (4096, &[14336, 14336])];

/// A set by its name, or layers by their sizes: `TxKxDxR`, with `D+D+..` for projections that share
/// their input, separated by commas.
pub fn parse(name: &str) -> Result<Vec<Dims>, String> {
    Ok(match name {
        "quick" => {
            let sizes = "8192x4096x4096x16,8192x8192x8192x64,2048x4096x1024x16,8191x3584x512x24,\
                         16x4096x4096x16,1x8192x8192x16";
            parse(sizes)?
        }
        "train" => product(&[2048, 8192, 16384], &LLAMA, &[16, 64]),
        "decode" => {
            let tokens = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
            product(&tokens, &FEW, &[16, 64])
        }
        "awkward" => product(&[8191], &AWKWARD, &[8, 24, 128]),
        "shared" => {
            let of = |r| SHARED.map(|(k, d)| Dims { t: 8192, k, d: d.to_vec(), r });
            [16, 64].into_iter().flat_map(of).collect()
        }
        "calibrate" => {
            let short = [96, 128, 192, 256, 384, 512, 768, 1024];
            let mut all = product(&short, &FEW, &[16, 64]);
            all.extend(product(&[64], &FEW, &[16, 64]));
            let large = [4096, 1024, 14336].map(|d| (4096, d));
            let large = [&large[..], &LLAMA[3..6], &AWKWARD[1..2], &AWKWARD[3..]].concat();
            all.extend(product(&[2048, 4096, 8192], &large, &[16, 64]));
            all
        }
        sizes => sizes.split(',').map(layer).collect::<Option<_>>().ok_or(format!(
            "`{name}` is neither a set of shapes ({SETS}) nor a list like 8192x4096x1024x16"
        ))?,
    })
}

/// Layers small enough for a benchmark that only tests itself.
pub const SMALL: &str = "300x512x384x16,300x512x384+128x16";

fn layer(sizes: &str) -> Option<Dims> {
    let sizes: Vec<&str> = sizes.split('x').collect();
    let [t, k, d, r] = sizes[..] else { return None };
    let number = |size: &str| size.parse().ok();
    let d = d.split('+').map(number).collect::<Option<_>>()?;
    Some(Dims { t: number(t)?, k: number(k)?, d, r: number(r)? })
}

/// All combinations, the ranks of one weight next to each other.
fn product(tokens: &[usize], weights: &[(usize, usize)], ranks: &[usize]) -> Vec<Dims> {
    let mut all = Vec::new();
    for &t in tokens {
        for &(k, d) in weights {
            all.extend(ranks.iter().map(|&r| Dims { t, k, d: vec![d], r }));
        }
    }
    all
}
