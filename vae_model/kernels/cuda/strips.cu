// Kernels for strips that lie channels-last. `VALUE` is compiled as 0 for float, 1 for half, 2 for bfloat16.
// Values travel 16 bytes at a time and are computed with in float.

#if VALUE == 0
#define WIDTH 4
#else
#define WIDTH 8
#endif

__device__ __forceinline__ float wide(unsigned short bits) {
#if VALUE == 1
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return __uint_as_float((unsigned)bits << 16);
#endif
}

__device__ __forceinline__ unsigned short narrow(float value) {
#if VALUE == 1
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)(bits >> 16 | 0x40);  // NaN stays NaN
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
#endif
}

__device__ __forceinline__ void unpack(const uint4 packed, float *values) {
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if VALUE == 0
        values[i] = __uint_as_float(words[i]);
#else
        values[2 * i] = wide((unsigned short)(words[i] & 0xffff));
        values[2 * i + 1] = wide((unsigned short)(words[i] >> 16));
#endif
    }
}

__device__ __forceinline__ uint4 pack(const float *values) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#if VALUE == 0
        words[i] = __float_as_uint(values[i]);
#else
        words[i] = narrow(values[2 * i]) | (unsigned)narrow(values[2 * i + 1]) << 16;
#endif
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// y = x * scale + shift, then SiLU where `silu` is 1. Grid: (vectors of a row, rows, images). `scale` and `shift` hold
// one float for every channel of every image; all lengths and distances are counted in vectors of WIDTH values.
extern "C" __global__ void normalise(
    const uint4 *x, uint4 *y, const float *scale, const float *shift, int row, int channels, int silu,
    int x_rows, int y_rows, long long x_images, long long y_images
) {
    const int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= row) return;
    float values[WIDTH];
    unpack(x[blockIdx.z * x_images + (long long)blockIdx.y * x_rows + place], values);
    const int first = (blockIdx.z * channels + place % channels) * WIDTH;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        const float value = values[i] * scale[first + i] + shift[first + i];
        values[i] = silu ? value / (1.0f + expf(-value)) : value;
    }
    y[blockIdx.z * y_images + (long long)blockIdx.y * y_rows + place] = pack(values);
}

// y = x, where pixels lie apart: every second one, say. Grid: (vectors of a row, rows, images); all distances in vectors.
extern "C" __global__ void copy_pixels(
    const uint4 *x, uint4 *y, int row, int channels, int x_pixels, int y_pixels, int x_rows, int y_rows,
    long long x_images, long long y_images
) {
    const int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= row) return;
    const int pixel = place / channels, vector = place % channels;
    y[blockIdx.z * y_images + (long long)blockIdx.y * y_rows + (long long)pixel * y_pixels + vector] =
        x[blockIdx.z * x_images + (long long)blockIdx.y * x_rows + (long long)pixel * x_pixels + vector];
}

// Mean and sum of squared deviations of every channel, for the pixels of one block each: `parts` (images, blocks,
// channels, 2). Threads: (vectors of a pixel) * lanes; each goes through `turns` pixels by Welford's rule, then the
// lanes are merged by Chan's. Values are taken relative to the block's first pixel: far from zero they keep their digits.
// Grid: (blocks, images). Shared memory: 2 * WIDTH floats for every thread.
extern "C" __global__ void strip_moments(const uint4 *x, float *parts, int pixels, int channels, int turns) {
    extern __shared__ float shared[];
    const int lanes = blockDim.x / channels, lane = threadIdx.x / channels, vector = threadIdx.x % channels;
    const int first = blockIdx.x * lanes * turns;
    const uint4 *image = x + (long long)blockIdx.y * pixels * channels;
    float pivot[WIDTH], mean[WIDTH], square[WIDTH], values[WIDTH];
    unpack(image[(long long)first * channels + vector], pivot);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) mean[i] = square[i] = 0.0f;
    for (int turn = 0; turn < turns; ++turn) {
        const int pixel = first + turn * lanes + lane;
        if (pixel >= pixels) break;
        unpack(image[(long long)pixel * channels + vector], values);
        const float share = 1.0f / (float)(turn + 1);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float value = values[i] - pivot[i], delta = value - mean[i];
            mean[i] += delta * share;
            square[i] += delta * (value - mean[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        shared[i * blockDim.x + threadIdx.x] = mean[i];
        shared[(WIDTH + i) * blockDim.x + threadIdx.x] = square[i];
    }
    __syncthreads();
    if (lane) return;
    const int left = min(pixels - first, lanes * turns);  // pixels of this block
    float count = (float)((left + lanes - 1) / lanes);
    for (int other = 1; other < lanes; ++other) {
        const int more = (left - other + lanes - 1) / lanes;
        if (left <= other) break;
        const float total = count + (float)more;
        const float *theirs = shared + other * channels + vector;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float delta = theirs[i * blockDim.x] - mean[i];
            mean[i] += delta * ((float)more / total);
            square[i] += theirs[(WIDTH + i) * blockDim.x] + delta * delta * (count * (float)more / total);
        }
        count = total;
    }
    float *part = parts + (((long long)blockIdx.y * gridDim.x + blockIdx.x) * channels + vector) * 2 * WIDTH;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        part[2 * i] = pivot[i] + mean[i];
        part[2 * i + 1] = square[i];
    }
}

__device__ double sum_of_block(double value, double *shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    const double total = shared[0];
    __syncthreads();
    return total;
}

// The parts of a strip as moments of groups, merged into those known so far: `means` and `squares` (images, groups).
// Grid: (groups, images); threads: a power of two, at most 256. `block_pixels`: pixels of every part but the last.
extern "C" __global__ void merge_moments(
    const float *parts, double *means, double *squares, double known, int blocks, int channels, int group_channels,
    int pixels, int block_pixels
) {
    __shared__ double shared[256];
    const float *image = parts + (long long)blockIdx.y * blocks * channels * 2;
    const int entries = blocks * group_channels, start = blockIdx.x * group_channels;
    double sum = 0.0;
    for (int entry = threadIdx.x; entry < entries; entry += blockDim.x) {
        const int block = entry / group_channels, channel = start + entry % group_channels;
        sum += (double)min(block_pixels, pixels - block * block_pixels) * image[((long long)block * channels + channel) * 2];
    }
    const double count = (double)pixels * group_channels;
    const double mean = sum_of_block(sum, shared) / count;
    sum = 0.0;
    for (int entry = threadIdx.x; entry < entries; entry += blockDim.x) {
        const int block = entry / group_channels, channel = start + entry % group_channels;
        const float *part = image + ((long long)block * channels + channel) * 2;
        const double delta = part[0] - mean;
        sum += part[1] + delta * delta * (double)min(block_pixels, pixels - block * block_pixels);
    }
    const double square = sum_of_block(sum, shared);
    if (threadIdx.x) return;
    const int place = blockIdx.y * gridDim.x + blockIdx.x;
    const double delta = mean - means[place], total = known + count;
    means[place] += delta * (count / total);
    squares[place] += square + delta * delta * (known * (count / total));
}

__device__ float reduce(float value, float *shared, int largest) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) {
            const float other = shared[threadIdx.x + half];
            shared[threadIdx.x] = largest ? fmaxf(shared[threadIdx.x], other) : shared[threadIdx.x] + other;
        }
        __syncthreads();
    }
    const float result = shared[0];
    __syncthreads();
    return result;
}

// One row of scores (times `scale`, in powers of two) of a block: their weights, and what the row knows so far of its
// largest score and the sum of its weights. `shrink`: what earlier sums are worth now. `weights` may be the scores'
// own memory where both are floats. Grid: rows; threads: a power of two, at most 256.
extern "C" __global__ void softmax_part(
    const float *scores, void *weights, float *largest, float *total, float *shrink, int keys, float scale
) {
    __shared__ float shared[256];
    const float *row = scores + (long long)blockIdx.x * keys;
    const int vectors = keys % 4 ? 0 : keys / 4;
    float most = __uint_as_float(0xff800000u);  // minus infinity
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
        const float4 four = ((const float4 *)row)[i];
        most = fmaxf(most, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
    }
    for (int i = 4 * vectors + threadIdx.x; i < keys; i += blockDim.x) most = fmaxf(most, row[i]);
    const float old = largest[blockIdx.x];
    const float now = fmaxf(old, reduce(most, shared, 1) * scale);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
        const float4 four = ((const float4 *)row)[i];
        const float p[4] = {
            exp2f(four.x * scale - now), exp2f(four.y * scale - now), exp2f(four.z * scale - now), exp2f(four.w * scale - now)
        };
        sum += (p[0] + p[1]) + (p[2] + p[3]);
#if VALUE == 0
        ((float4 *)((float *)weights + (long long)blockIdx.x * keys))[i] = make_float4(p[0], p[1], p[2], p[3]);
#else
        ((uint2 *)((unsigned short *)weights + (long long)blockIdx.x * keys))[i] = make_uint2(
            narrow(p[0]) | (unsigned)narrow(p[1]) << 16, narrow(p[2]) | (unsigned)narrow(p[3]) << 16
        );
#endif
    }
    for (int i = 4 * vectors + threadIdx.x; i < keys; i += blockDim.x) {
        const float p = exp2f(row[i] * scale - now);
        sum += p;
#if VALUE == 0
        ((float *)weights)[(long long)blockIdx.x * keys + i] = p;
#else
        ((unsigned short *)weights)[(long long)blockIdx.x * keys + i] = narrow(p);
#endif
    }
    sum = reduce(sum, shared, 0);
    if (threadIdx.x) return;
    const float worth = exp2f(old - now);
    shrink[blockIdx.x] = worth;
    total[blockIdx.x] = total[blockIdx.x] * worth + sum;
    largest[blockIdx.x] = now;
}
