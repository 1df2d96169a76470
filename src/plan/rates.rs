//! How fast a GPU is.

/// The rates of a device, as the driver tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rates {
    /// The SMs' clock at most, in MHz.
    pub(crate) clock_mhz: usize,
    /// What the memory transfers at most, in MB/s.
    pub(crate) memory_mb_s: usize,
}

impl Rates {
    const fn new(clock_mhz: usize, memory_mb_s: usize) -> Self {
        Rates { clock_mhz, memory_mb_s }
    }

    pub(crate) const H100_SXM: Rates = Rates::new(1980, 3_352_320);
    pub(crate) const H200: Rates = Rates::new(1980, 4_814_304);

    // As published, for `DeviceProfile`'s functions of these names, which say where.
    pub(crate) const A100_SXM: Rates = Rates::new(1410, 2_039_000);
    pub(crate) const RTX_3090: Rates = Rates::new(1695, 936_000);
    pub(crate) const RTX_4090: Rates = Rates::new(2520, 1_008_000);
    pub(crate) const L40S: Rates = Rates::new(2520, 864_000);
    pub(crate) const RTX_5090: Rates = Rates::new(2407, 1_792_000);
}

/// [`mma_rate`] of compute capability 9.0, which is not published: the slope of the FMAs of tiles
/// over their clocks on an H200, in sm80/linear.rs.
pub(crate) const HOPPER_MMA_RATE: usize = 1300;

/// FMAs of 16-bit factors, summed in f32, that an SM does in a clock by `mma.sync`.
///
/// NVIDIA publishes the dense bf16 TFLOPS of a card with f32 sums: 2 · SMs · boost clock · this.
///
/// | card | TFLOPS | rate | published in |
/// |---|---:|---:|---|
/// | A100 | 312 | 1024 | A100 datasheet |
/// | RTX 3090 | 71 | 256 | GA102 whitepaper, appendix A |
/// | RTX 4090 | 165.2 | 256 | Ada whitepaper |
/// | L40S | 362 | 512 | L40S datasheet |
/// | RTX 5090 | 209.5 | 256 | RTX Blackwell whitepaper |
///
/// GeForce cards sum in f32 at half the rate of the others of their compute capability. Of 10.x the
/// rate is not published; 9.0's stands in for it.
pub(crate) fn mma_rate(name: &str, compute_capability: (u32, u32)) -> usize {
    match compute_capability {
        (8, 0) | (8, 7) => 1024,
        (9, _) | (10, _) => HOPPER_MMA_RATE,
        _ if name.contains("GeForce") => 256,
        _ => 512,
    }
}
