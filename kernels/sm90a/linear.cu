// linear.cuh for one projection.
#include "linear.cuh"

#include "instances/sm90a/linear.cuh"
