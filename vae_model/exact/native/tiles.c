/* 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), the same as ../winograd.py, in one piece; see tiles.py.

   A thread takes a block of tiles through all steps in memory that its caches hold: 36 points of every tile, a matrix
   product for each point, and back to 4x4 results. In a product ROWS tiles and COLUMNS vectors of results stay in
   registers for DEPTH channels, so no sum is longer than that. */
#include <string.h>

#include "vector.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 12 /* 32 registers */
#else
#define ROWS 6 /* 16 registers */
#endif
#define COLUMNS 2
#define DEPTH 128
#define PAD 16 /* values between two tiles: rows a power of two apart would share few places of a cache */

enum { TILE = 4, SIDE = TILE + 2, POINTS = SIDE * SIDE };

int tile_lanes(void) { return LANES; }
int tile_panel(void) { return COLUMNS * LANES; }
int tile_rows(void) { return ROWS; }
int tile_pad(void) { return PAD; }

/* Six values of a row or column at the six points: _DATA of winograd.py. */
static inline void into_points(const vec *x, vec *y, int step) {
    vec a = x[4] - 2 * x[2], b = 1.5f * (x[3] - x[1]);
    y[0] = x[0] + b + a;
    y[step] = 2 * (x[4] - x[1]) + x[2] + 5 * x[3];
    y[2 * step] = 5 * x[2] - x[3] - 2 * (x[1] + x[4]);
    y[3 * step] = 2 * (x[1] - x[3]) + x[2] - x[4];
    y[4 * step] = 2 * (x[4] - x[2]) + x[1] - x[3];
    y[5 * step] = x[1] - 2 * x[3] + 1.5f * (x[4] - x[2]) + x[5];
}

/* Four results from the products at six points: _RESULT of winograd.py. */
static inline void from_points(const vec *m, vec *y, int step) {
    vec sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum + m[3] + m[4];
    y[step] = difference + 0.5f * m[3] - 2 * m[4];
    y[2 * step] = sum + 0.25f * m[3] + 4 * m[4];
    y[3 * step] = difference + 0.125f * m[3] - 8 * m[4] + m[5];
}

static void transform(const float *tile, ptrdiff_t line, int channels, float *out, ptrdiff_t plane) {
    for (int c = 0; c < channels; c += LANES) {
        vec x[SIDE], half[POINTS], y[SIDE];
        for (int i = 0; i < SIDE; i++) {
            for (int j = 0; j < SIDE; j++) x[j] = get(tile + i * line + (ptrdiff_t)j * channels + c);
            into_points(x, half + i, SIDE);
        }
        for (int j = 0; j < SIDE; j++) {
            into_points(half + SIDE * j, y, 1);
            for (int i = 0; i < SIDE; i++) put(out + (SIDE * i + j) * plane + c, y[i]);
        }
    }
}

static void transform_back(const float *products, ptrdiff_t plane, const float *bias, int channels, float *out,
                           ptrdiff_t line, int rows, int columns) {
    for (int c = 0; c < channels; c += LANES) {
        vec x[SIDE], half[TILE * SIDE], y[TILE], shift = {0};
        if (bias) shift = get(bias + c);
        for (int j = 0; j < SIDE; j++) {
            for (int i = 0; i < SIDE; i++) x[i] = get(products + (SIDE * i + j) * plane + c);
            from_points(x, half + j, SIDE);
        }
        for (int i = 0; i < rows; i++) {
            from_points(half + SIDE * i, y, 1);
            for (int j = 0; j < columns; j++) put(out + i * line + (ptrdiff_t)j * channels + c, y[j] + shift);
        }
    }
}

/* ROWS x depth times depth x (COLUMNS vectors), written or added. */
static inline void multiply(const float *a, ptrdiff_t pitch, const float *panel, int depth, int add, float *out,
                            ptrdiff_t step) {
    vec sums[ROWS][COLUMNS];
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < COLUMNS; n++) sums[m][n] = (vec){0};
    for (int k = 0; k < depth; k++) {
        vec right[COLUMNS];
        for (int n = 0; n < COLUMNS; n++) right[n] = get(panel + (k * COLUMNS + n) * LANES);
        for (int m = 0; m < ROWS; m++)
            for (int n = 0; n < COLUMNS; n++) sums[m][n] += a[m * pitch + k] * right[n];
    }
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < COLUMNS; n++) {
            float *target = out + m * step + n * LANES;
            if (add) sums[m][n] += get(target);
            put(target, sums[m][n]);
        }
}

/* window: (ceil(rows / 4) * 4 + 2, n, wide), its rows `line` values apart. weight: (36, narrow / panel, wide, panel).
   out: (rows, width, narrow). scratch: for each thread `own` values, enough for `block` tiles, a multiple of ROWS. */
void tile_convolve(const float *window, ptrdiff_t line, const float *weight, const float *bias, float *out, int rows,
                   int width, int wide, int narrow, int block, int threads, float *scratch, ptrdiff_t own) {
    int across = (width + TILE - 1) / TILE, tiles = (rows + TILE - 1) / TILE * across;
    int blocks = (tiles + block - 1) / block;
    blocks = (blocks + threads - 1) / threads * threads; /* all threads get equally many */
    int each = (tiles + blocks - 1) / blocks;
    ptrdiff_t pitch = wide + PAD, step = narrow + PAD;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int number = 0; number < blocks; number++) {
        int start = number * each, count = tiles - start < each ? tiles - start : each;
        if (count <= 0) continue;
        int padded = (count + ROWS - 1) / ROWS * ROWS;
        float *values = scratch + omp_get_thread_num() * own, *products = values + POINTS * padded * pitch;
        for (int t = 0; t < count; t++) {
            int y = (start + t) / across * TILE, x = (start + t) % across * TILE;
            transform(window + y * line + (ptrdiff_t)x * wide, line, wide, values + t * pitch, padded * pitch);
        }
        for (int p = 0; p < POINTS; p++) {
            float *a = values + p * padded * pitch, *target = products + p * padded * step;
            memset(a + count * pitch, 0, (padded - count) * pitch * sizeof(float));
            for (int first = 0; first < wide; first += DEPTH) {
                int depth = wide - first < DEPTH ? wide - first : DEPTH;
                for (int n = 0; n < narrow; n += COLUMNS * LANES) {
                    const float *panel = weight + ((ptrdiff_t)p * narrow + n) * wide + first * COLUMNS * LANES;
                    for (int t = 0; t < padded; t += ROWS)
                        multiply(a + t * pitch + first, pitch, panel, depth, first > 0, target + t * step + n, step);
                }
            }
        }
        for (int t = 0; t < count; t++) {
            int y = (start + t) / across * TILE, x = (start + t) % across * TILE;
            transform_back(products + t * step, padded * step, bias, narrow, out + ((ptrdiff_t)y * width + x) * narrow,
                           (ptrdiff_t)width * narrow, rows - y < TILE ? rows - y : TILE,
                           width - x < TILE ? width - x : TILE);
        }
    }
}
