// Reads `count` vectors of 16 bytes once, eight loads of a thread at a time.
extern "C" __global__ void stream_read(const uint4* __restrict__ data, unsigned long long count,
                                       unsigned int* sink) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int bits = 0;
    for (; i + 7 * stride < count; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = data[i + j * stride];
#pragma unroll
        for (int j = 0; j < 8; ++j) bits ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < count; i += stride) {
        const uint4 v = data[i];
        bits ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    // Hardly ever true, but the compiler cannot know: the loads must happen.
    if (bits == 0x5eed1e55u) *sink = bits;
}
