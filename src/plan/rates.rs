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
    pub(crate) const H100_SXM: Rates = Rates { clock_mhz: 1980, memory_mb_s: 3_352_320 };
    pub(crate) const H200: Rates = Rates { clock_mhz: 1980, memory_mb_s: 4_814_304 };
}
