// linear.cuh for one projection.
#include "linear.cuh"

HOPPER_LINEAR_KERNELS(hopper_linear, false)
