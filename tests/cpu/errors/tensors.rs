//! Tensors and devices.

use half::{bf16, f16};
use lora_kernels::ops::{self, BaseForward, BaseInputGrad};
use lora_kernels::{Adapter, DType, Device, Error, LayerGradients, LoraLinear, Result, Shape};
use lora_kernels::{Tensor, TensorView, TensorViewMut, Workspace};

#[test]
fn lengths_types_and_devices_of_tensors() -> Result<()> {
    let cpu = Device::cpu();
    let shape = Shape::new(&[2, 3])?;
    let length = Error::Length { shape, got: 5 };
    assert_eq!(length.to_string(), "shape [2, 3] holds 6 elements, but 5 were given");
    assert_eq!(Tensor::from_slice(&cpu, &[0f32; 5], [2, 3]).unwrap_err(), length);
    assert_eq!(Tensor::from_f32(&cpu, &[0.0; 5], [2, 3], DType::F16).unwrap_err(), length);
    assert_eq!(TensorView::from_host(&[0f32; 5], [2, 3]).unwrap_err(), length);
    assert_eq!(TensorViewMut::from_host(&mut [0f32; 5], [2, 3]).unwrap_err(), length);

    let mut tensor = Tensor::from_slice(&cpu, &[1f32; 6], shape)?;
    assert_eq!(tensor.copy_from_slice(&[2f32; 5]).unwrap_err(), length);
    let wrong_type =
        |error: Error| matches!(error, Error::DType { argument: "tensor", got: DType::F32, .. });
    assert!(wrong_type(tensor.copy_from_slice(&[bf16::ONE; 6]).unwrap_err()));
    assert!(wrong_type(tensor.to_vec::<f16>().unwrap_err()));
    let other = Tensor::zeros(&cpu, [3, 2], DType::F32)?;
    let error = tensor.copy_from(&other).unwrap_err();
    assert_eq!(error.to_string(), "source has shape [3, 2], expected [2, 3]");
    let other = Tensor::zeros(&cpu, [2, 3], DType::F16)?;
    let error = tensor.copy_from(&other).unwrap_err();
    assert!(matches!(error, Error::DType { argument: "source", got: DType::F16, .. }));
    assert_eq!(tensor.to_vec::<f32>()?, [1.0; 6], "no failed copy wrote anything");

    // SAFETY: no address is used on the CPU, where the view is refused.
    let raw = unsafe { TensorView::from_raw(&cpu, 0x1000, [2, 3], 3, DType::F32) };
    assert!(matches!(raw.unwrap_err(), Error::Device { .. }));
    // SAFETY: as above.
    let raw = unsafe { TensorViewMut::from_raw(&cpu, 0x1000, [2, 3], 3, DType::F32) };
    assert!(matches!(raw.unwrap_err(), Error::Device { .. }));
    Ok(())
}

#[test]
fn tensors_hold_what_they_were_given() -> Result<()> {
    fn round_trip<E: lora_kernels::Element + PartialEq + std::fmt::Debug>() -> Result<()> {
        let values: Vec<E> = (0..6).map(|i| E::from_f64(f64::from(i) - 2.5)).collect();
        let cpu = Device::cpu();
        let tensor = Tensor::from_slice(&cpu, &values, [2, 3])?;
        assert_eq!((tensor.dtype(), tensor.bytes()), (E::DTYPE, 6 * size_of::<E>()));
        assert_eq!(tensor.to_vec::<E>()?, values);
        let mut copy = Tensor::zeros(&cpu, [2, 3], E::DTYPE)?;
        assert!(copy.to_vec::<E>()?.iter().all(|v| v.to_f64() == 0.0));
        copy.copy_from(&tensor)?;
        assert_eq!(copy.to_vec::<E>()?, values);
        copy.copy_from_slice(&[E::from_f64(1.0); 6])?;
        assert_eq!(tensor.try_clone()?.to_vec::<E>()?, values);
        assert_eq!(copy.to_f32_vec()?, [1.0; 6]);
        Ok(())
    }
    round_trip::<f32>()?;
    round_trip::<f16>()?;
    round_trip::<bf16>()
}

/// On a machine without a GPU, the reason and what to do about it; never a panic.
#[test]
fn missing_devices() {
    for ordinal in [0, 999] {
        let message = match Device::cuda(ordinal) {
            Ok(device) => {
                assert_eq!(ordinal, 0, "there is no device 999");
                assert!(device.is_cuda());
                continue;
            }
            Err(Error::NoDevice { ordinal: named, count }) => {
                assert_eq!(named, ordinal);
                assert!(count <= ordinal);
                Error::NoDevice { ordinal, count }.to_string()
            }
            Err(error) => {
                let kinds = matches!(
                    error,
                    Error::NoDriver { .. }
                        | Error::KernelsNotBuilt { .. }
                        | Error::UnsupportedDevice { .. }
                        | Error::Driver { .. }
                );
                assert!(kinds, "{error:?}");
                error.to_string()
            }
        };
        assert!(message.contains("CUDA") || message.contains("capability"), "{message}");
    }
    let no_driver = Error::NoDriver { reason: "libcuda.so.1: not found".into() }.to_string();
    assert!(no_driver.contains("libcuda.so.1: not found; install"), "{no_driver}");
}

/// Layers move between threads, and are read by several at once.
#[test]
fn types_are_send_and_sync() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Device>();
    assert_send_sync::<Tensor>();
    assert_send_sync::<TensorView<'_>>();
    assert_send_sync::<TensorViewMut<'_>>();
    assert_send_sync::<Adapter>();
    assert_send_sync::<LoraLinear>();
    assert_send_sync::<lora_kernels::LayerOutput<'_>>();
    assert_send_sync::<lora_kernels::Saved<'_>>();
    assert_send_sync::<Workspace>();
    assert_send_sync::<ops::Forward>();
    assert_send_sync::<ops::Backward>();
    assert_send_sync::<BaseForward>();
    assert_send_sync::<BaseInputGrad>();
    assert_send_sync::<LayerGradients>();
    assert_send_sync::<Error>();
}
