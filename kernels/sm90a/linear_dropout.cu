// linear.cuh for one projection, with dropout.
#include "linear.cuh"

#include "instances/sm90a/linear_dropout.cuh"
