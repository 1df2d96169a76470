// linear.cuh with dropout of X in dA and dX.
#include "../common/dropout.cuh"
#include "linear.cuh"

#include "instances/sm80/linear_dropout.cuh"
