// linear.cuh for two to four projections of X. A file of its own, to be compiled in parallel.
#include "linear.cuh"

#include "instances/sm90a/linear_group.cuh"
