// archs: 90a
//
// hopper_linear.cuh for a layer alone.
#include "hopper_linear.cuh"

HOPPER_LINEAR_KERNELS(hopper_linear, false)
