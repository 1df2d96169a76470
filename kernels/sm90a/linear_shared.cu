// linear.cuh for two to four projections of X. A file of its own, to be compiled in parallel.
#include "linear.cuh"

HOPPER_LINEAR_KERNELS(hopper_linear_shared, true)
