//! The layers that are timed: T tokens through a d×k weight, with an adapter of rank r.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    pub t: usize,
    pub k: usize,
    pub d: usize,
    pub r: usize,
}

pub const SETS: &str = "quick, train, decode, awkward";

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

/// Those of Qwen2.5 7B with the least regular sizes, then DeepSeek-V3's 7168→2112.
const AWKWARD: [(usize, usize); 4] = [(3584, 512), (3584, 18944), (18944, 3584), (7168, 2112)];

/// A set by its name, or layers by their sizes: `TxKxDxR`, several separated by commas.
pub fn parse(name: &str) -> Result<Vec<Dims>, String> {
    Ok(match name {
        "quick" => vec![
            Dims { t: 8192, k: 4096, d: 4096, r: 16 },
            Dims { t: 8192, k: 8192, d: 8192, r: 64 },
            Dims { t: 2048, k: 4096, d: 1024, r: 16 },
            Dims { t: 8191, k: 3584, d: 512, r: 24 },
            Dims { t: 16, k: 4096, d: 4096, r: 16 },
            Dims { t: 1, k: 8192, d: 8192, r: 16 },
        ],
        "train" => product(&[2048, 8192, 16384], &LLAMA, &[16, 64]),
        "decode" => {
            let tokens = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
            product(&tokens, &[(4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192)], &[16, 64])
        }
        "awkward" => product(&[8191], &AWKWARD, &[8, 24, 128]),
        sizes => sizes.split(',').map(layer).collect::<Option<_>>().ok_or(format!(
            "`{name}` is neither a set of shapes ({SETS}) nor a list like 8192x4096x1024x16"
        ))?,
    })
}

/// A layer small enough for a benchmark that only tests itself.
pub const SMALL: Dims = Dims { t: 300, k: 512, d: 384, r: 16 };

fn layer(sizes: &str) -> Option<Dims> {
    let sizes: Vec<usize> =
        sizes.split('x').map(|size| size.parse().ok()).collect::<Option<_>>()?;
    let [t, k, d, r] = sizes[..] else { return None };
    Some(Dims { t, k, d, r })
}

/// All combinations, the ranks of one weight next to each other.
fn product(tokens: &[usize], weights: &[(usize, usize)], ranks: &[usize]) -> Vec<Dims> {
    let mut all = Vec::new();
    for &t in tokens {
        for &(k, d) in weights {
            all.extend(ranks.iter().map(|&r| Dims { t, k, d, r }));
        }
    }
    all
}
