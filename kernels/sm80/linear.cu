// linear.cuh without dropout.
#include "linear.cuh"

#include "instances/sm80/linear.cuh"
