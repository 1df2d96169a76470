// linear.cuh for projections that share X, with dropout.
#include "linear.cuh"

#include "instances/sm90a/linear_group_dropout.cuh"
