// linear.cuh for several layers that share X. A file of its own, to be compiled beside the other.
#include "linear.cuh"

HOPPER_LINEAR_KERNELS(hopper_linear_shared, true)
