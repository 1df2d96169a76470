//! Element types.

use half::{bf16, f16};
use std::fmt;
use std::str::FromStr;

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum DType {
    /// bfloat16: 8 bits of exponent, 7 of mantissa. The range of f32.
    Bf16,
    /// IEEE half precision: 5 bits of exponent, 10 of mantissa. The largest value is 65504.
    F16,
    /// IEEE single precision. Operations take it on the CPU device; on a GPU, dA, dB and master
    /// weights may have it.
    F32,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::Bf16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
        })
    }
}

/// The error of a text that is none of `bf16`, `f16` and `f32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownDType {
    got: String,
}

impl fmt::Display for UnknownDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an element type: bf16, f16 or f32", self.got)
    }
}

impl std::error::Error for UnknownDType {}

impl FromStr for DType {
    type Err = UnknownDType;

    /// The name that `Display` writes.
    fn from_str(name: &str) -> Result<Self, UnknownDType> {
        let all = [DType::Bf16, DType::F16, DType::F32];
        let found = all.into_iter().find(|dtype| dtype.to_string() == name);
        found.ok_or_else(|| UnknownDType { got: name.to_string() })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
}

/// A Rust type that a [`Tensor`](crate::Tensor) can hold: `bf16`, `f16` or `f32`.
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// The element type of these values.
    const DTYPE: DType;
    /// The value, exactly.
    fn to_f64(self) -> f64;
    /// The nearest value of this type, ties to even.
    fn from_f64(value: f64) -> Self;
}

/// The value in f32, rounded to odd: towards zero, and with the last bit set if that lost anything.
///
/// Rounding this to a type of at least two bits less is rounding the value itself. The conversions
/// of `half` from f64 are not: one drops the low half of the bits, the other rounds twice.
fn to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value {
        return nearest;
    }
    let rounded_up = f64::from(nearest).abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(rounded_up)) | 1)
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f32(to_f32_odd(value))
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn from_f64(value: f64) -> Self {
        f16::from_f32(to_f32_odd(value))
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        let error = "float32".parse::<DType>().unwrap_err();
        assert_eq!(error.to_string(), "\"float32\" is not an element type: bf16, f16 or f32");
    }

    #[test]
    fn sixteen_bits_are_rounded_once() {
        for sign in [1.0, -1.0] {
            let (tie, above) = (1.0 + 2f64.powi(-8), 1.0 + 2f64.powi(-8) + 2f64.powi(-50));
            assert_eq!(bf16::from_f64_once(sign * tie), sign * 1.0);
            assert_eq!(bf16::from_f64_once(sign * above), sign * (1.0 + 2f64.powi(-7)));
            let (tie, above) = (1.0 + 2f64.powi(-11), 1.0 + 2f64.powi(-11) + 2f64.powi(-50));
            assert_eq!(f16::from_f64_once(sign * tie), sign * 1.0);
            assert_eq!(f16::from_f64_once(sign * above), sign * (1.0 + 2f64.powi(-10)));
            // The smallest subnormal of f16 is 2⁻²⁴; half of it is a tie with zero.
            assert_eq!(f16::from_f64_once(sign * 2f64.powi(-25)), 0.0);
            let above = 2f64.powi(-25) * (1.0 + 2f64.powi(-40));
            assert_eq!(f16::from_f64_once(sign * above), sign * 2f64.powi(-24));
            assert_eq!(bf16::from_f64_once(sign * 1e300), sign * f64::INFINITY);
            assert_eq!(bf16::from_f64_once(sign * f64::INFINITY), sign * f64::INFINITY);
        }
        assert!(bf16::from_f64_once(f64::NAN).is_nan() && f16::from_f64_once(f64::NAN).is_nan());
    }

    trait Once: Element {
        /// `Element::from_f64`, which the types' own methods of that name hide, and back.
        fn from_f64_once(value: f64) -> f64 {
            <Self as Element>::from_f64(value).to_f64()
        }
    }
    impl<E: Element> Once for E {}
}
