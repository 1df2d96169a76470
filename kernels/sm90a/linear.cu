// linear.cuh for a layer alone.
#include "linear.cuh"

HOPPER_LINEAR_KERNELS(hopper_linear, false)
