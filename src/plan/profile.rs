//! What plans know of a GPU.

use super::cost::CostModel;
use super::rates::{Rates, mma_rate};

/// The figures of a CUDA device that plans are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProfile {
    name: String,
    compute_capability: (u32, u32),
    sms: usize,
    clusters: usize,
    shared_bytes: usize,
    rates: Rates,
}

/// Bytes of shared memory that a CTA may have: the CUDA programming guide's for these
/// capabilities ("Technical Specifications per Compute Capability"), else the least of any. An SM
/// has 1 KiB more.
fn shared_bytes(compute_capability: (u32, u32)) -> usize {
    let kib = match compute_capability {
        (8, 0) | (8, 7) => 163,
        (9, 0) | (10, _) => 227,
        _ => 99,
    };
    kib << 10
}

impl DeviceProfile {
    /// An H100 SXM: 132 SMs, and a build with the Hopper kernels. To plan without a GPU.
    pub fn h100_sxm() -> Self {
        DeviceProfile::new("NVIDIA H100 80GB HBM3".to_string(), (9, 0), [132, 66], Rates::H100_SXM)
    }

    /// An H200: 132 SMs, and a build with the Hopper kernels. To plan without a GPU.
    pub fn h200() -> Self {
        DeviceProfile::new("NVIDIA H200".to_string(), (9, 0), [132, 66], Rates::H200)
    }

    /// An A100 SXM with 80 GB, unmeasured: 108 SMs, at most 1410 MHz, 2039 GB/s, compute
    /// capability 8.0, 163 KiB of shared memory for a CTA.
    ///
    /// From NVIDIA's A100 datasheet and A100 architecture whitepaper, and the CUDA programming
    /// guide.
    pub fn a100_sxm() -> Self {
        DeviceProfile::preset("NVIDIA A100-SXM4-80GB", (8, 0), 108, Rates::A100_SXM)
    }

    /// A GeForce RTX 3090, unmeasured: 82 SMs, at most 1695 MHz, 936 GB/s, compute capability 8.6,
    /// 99 KiB of shared memory for a CTA.
    ///
    /// From NVIDIA's GA102 architecture whitepaper, appendix A, and the CUDA programming guide.
    pub fn rtx_3090() -> Self {
        DeviceProfile::preset("NVIDIA GeForce RTX 3090", (8, 6), 82, Rates::RTX_3090)
    }

    /// A GeForce RTX 4090, unmeasured: 128 SMs, at most 2520 MHz, 1008 GB/s, compute capability
    /// 8.9, 99 KiB of shared memory for a CTA.
    ///
    /// From NVIDIA's Ada architecture whitepaper and the CUDA programming guide.
    pub fn rtx_4090() -> Self {
        DeviceProfile::preset("NVIDIA GeForce RTX 4090", (8, 9), 128, Rates::RTX_4090)
    }

    /// An L40S, unmeasured: 142 SMs, at most 2520 MHz, 864 GB/s, compute capability 8.9, 99 KiB of
    /// shared memory for a CTA.
    ///
    /// From NVIDIA's L40S datasheet and product brief, and the CUDA programming guide.
    pub fn l40s() -> Self {
        DeviceProfile::preset("NVIDIA L40S", (8, 9), 142, Rates::L40S)
    }

    /// A GeForce RTX 5090, unmeasured: 170 SMs, at most 2407 MHz, 1792 GB/s, compute capability
    /// 12.0, 99 KiB of shared memory for a CTA.
    ///
    /// From NVIDIA's RTX Blackwell architecture whitepaper and the CUDA programming guide.
    pub fn rtx_5090() -> Self {
        DeviceProfile::preset("NVIDIA GeForce RTX 5090", (12, 0), 170, Rates::RTX_5090)
    }

    /// The cards that are known from public figures alone.
    #[doc(hidden)]
    pub fn presets() -> [Self; 5] {
        [
            DeviceProfile::a100_sxm(),
            DeviceProfile::rtx_3090(),
            DeviceProfile::rtx_4090(),
            DeviceProfile::l40s(),
            DeviceProfile::rtx_5090(),
        ]
    }

    fn preset(name: &str, compute_capability: (u32, u32), sms: usize, rates: Rates) -> Self {
        DeviceProfile::new(name.to_string(), compute_capability, [sms, 0], rates)
    }

    /// `clusters` are the clusters of 2 CTAs of the Hopper kernels that run at once: 0 if the
    /// build or the device has none of these kernels.
    pub(crate) fn new(
        name: String,
        compute_capability: (u32, u32),
        [sms, clusters]: [usize; 2],
        rates: Rates,
    ) -> Self {
        let shared_bytes = shared_bytes(compute_capability);
        DeviceProfile { name, compute_capability, sms, clusters, shared_bytes, rates }
    }

    /// All but the name, for result files: compute capability, SMs, clusters, and rates.
    #[doc(hidden)]
    pub fn figures(&self) -> [usize; 6] {
        let Rates { clock_mhz, memory_mb_s } = self.rates;
        let (major, minor) = self.compute_capability;
        let (major, minor) = (major as usize, minor as usize);
        [major, minor, self.sms, self.clusters, clock_mhz, memory_mb_s]
    }

    /// The profile with these figures.
    #[doc(hidden)]
    pub fn of_figures(name: &str, figures: [usize; 6]) -> Self {
        let [major, minor, sms, clusters, clock_mhz, memory_mb_s] = figures;
        let rates = Rates { clock_mhz, memory_mb_s };
        let capability = (major as u32, minor as u32);
        DeviceProfile::new(name.to_string(), capability, [sms, clusters], rates)
    }

    /// The same device without its Hopper kernels.
    pub(crate) fn without_hopper(self) -> Self {
        DeviceProfile { clusters: 0, ..self }
    }

    /// The same device with at most this many SMs for persistent kernels, 2 at least.
    pub(crate) fn with_sm_limit(self, sms: usize) -> Self {
        let sms = self.sms.min(sms.max(2));
        DeviceProfile { sms, clusters: self.clusters.min(sms / 2), ..self }
    }

    /// The same device with at most this many bytes of shared memory for a CTA.
    pub(crate) fn with_shared_limit(self, bytes: usize) -> Self {
        DeviceProfile { shared_bytes: self.shared_bytes.min(bytes), ..self }
    }

    /// The driver's name for the card.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, major and minor.
    pub fn compute_capability(&self) -> (u32, u32) {
        self.compute_capability
    }

    /// SMs, or their limit ([`Device::with_sm_limit`](crate::Device::with_sm_limit)).
    pub fn sms(&self) -> usize {
        self.sms
    }

    /// Clusters of 2 CTAs of the Hopper kernels that run at the same time; 0 without these kernels.
    pub fn clusters(&self) -> usize {
        self.clusters
    }

    /// The most shared memory of a CTA, in bytes.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// FMAs of 16-bit factors, summed in f32, that an SM does in a clock by `mma.sync`.
    pub(crate) fn mma_rate(&self) -> usize {
        mma_rate(&self.name, self.compute_capability)
    }

    /// CTAs with this much shared memory that fit on an SM. CUDA reserves 1 KiB for each.
    pub(crate) fn ctas_per_sm(&self, bytes: usize) -> usize {
        (self.shared_bytes + 1024) / (bytes + 1024)
    }

    /// What launches cost.
    #[doc(hidden)]
    pub fn cost(&self) -> CostModel {
        CostModel::of(&self.rates)
    }

    /// Whether the Hopper kernels run: compute capability 9.0, and a build that has them.
    pub fn hopper(&self) -> bool {
        self.clusters > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    /// SMs, clock and rate give the published TFLOPS.
    #[test]
    fn rates_agree_with_the_published_tflops() {
        let published = [312.0, 71.0, 165.2, 362.0, 209.5];
        for (card, published) in DeviceProfile::presets().into_iter().zip(published) {
            let tflops = 2e-6 * (card.sms() * card.mma_rate() * card.rates.clock_mhz) as f64;
            let near = abs_diff_eq!(tflops / published, 1.0, epsilon = 0.015);
            assert!(near, "{}: {tflops}", card.name());
        }
    }

    #[test]
    fn limits_only_lower() {
        let h100 = DeviceProfile::h100_sxm();
        let limit = |sms| {
            let limited = h100.clone().with_sm_limit(sms);
            (limited.sms(), limited.clusters(), limited.hopper())
        };
        assert_eq!(limit(1000), (132, 66, true));
        assert_eq!(limit(9), (9, 4, true));
        assert_eq!(limit(0), (2, 1, true));
        let generic = h100.clone().without_hopper();
        assert_eq!((generic.sms(), generic.clusters(), generic.hopper()), (132, 0, false));
        assert!(!generic.with_sm_limit(8).hopper());
        let shared = |bytes| h100.clone().with_shared_limit(bytes).shared_bytes() >> 10;
        assert_eq!([1 << 20, 99 << 10].map(shared), [227, 99]);
    }
}
