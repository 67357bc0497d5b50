/* 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), the same as ../winograd.py, in one piece; see blocks.py. Also
   with nearest x2 before them: of 6x6 values 8x8 results, with filters for even and for odd ones; see filters.py.

   A thread takes a block of tiles through all steps in memory that its caches hold: 36 points of every tile, a matrix
   product for each point, and back to results. In a product ROWS tiles and COLUMNS vectors of results stay in registers
   for DEPTH channels, so no sum is longer than that; the weights of the next one are fetched meanwhile. */
#include "vector.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 12 /* 32 registers */
#else
#define ROWS 6 /* 16 registers */
#endif
#define COLUMNS 2
#define DEPTH 128
#define PAD 16 /* values between two points: planes a power of two apart would share few places of a cache */
#define LINE 16 /* values that a cache fetches at once */

enum { TILE = 4, SIDE = TILE + 2, POINTS = SIDE * SIDE, PANEL = COLUMNS * LANES, FILTERED = 9 };

typedef enum { CONVOLVE, UPSAMPLE_EVEN, UPSAMPLE_ODD } Kind;

/* Filters at each of the six points of rows, and of columns. Those for even and odd results are one at the point 1; at
   0 or infinity some are zero. */
static const int ROW_FILTERS[][SIDE] = {{1, 1, 1, 1, 1, 1}, {1, 1, 2, 2, 2, 1}, {2, 1, 2, 2, 2, 0}};
static const int COLUMN_FILTERS[][SIDE] = {{1, 1, 1, 1, 1, 1}, {1, 1, 2, 2, 2, 1}, {1, 1, 2, 2, 2, 1}};

int tile_lanes(void) { return LANES; }
int tile_panel(void) { return PANEL; }
int tile_rows(void) { return ROWS; }
int tile_pad(void) { return PAD; }
int tile_depth(void) { return DEPTH; }

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

/* Eight results, even and odd ones in turn, from the products of nine filters, in the order of their points. */
static inline void from_filters(const vec *m, vec *y, int step, Kind kind) {
    const vec none = {0};
    if (kind == UPSAMPLE_EVEN) {
        const vec even[SIDE] = {m[0], m[1], m[2], m[4], m[6], none}, odd[SIDE] = {none, m[1], m[3], m[5], m[7], m[8]};
        from_points(even, y, 2 * step);
        from_points(odd, y + step, 2 * step);
    } else {
        const vec even[SIDE] = {m[0], m[2], m[3], m[5], m[7], none}, odd[SIDE] = {m[1], m[2], m[4], m[6], m[8], none};
        from_points(odd, y, 2 * step);
        from_points(even, y + step, 2 * step);
    }
}

/* A tile of six rows, `have` of them in the window and the others zero. out: 36 planes of (channels / LANES, ROWS,
   LANES) values, of which this tile's are every ROWS-th vector. */
static void transform(const float *tile, ptrdiff_t line, int have, int channels, float *out, ptrdiff_t plane) {
    for (int c = 0; c < channels; c += LANES) {
        vec x[SIDE], half[POINTS], y[SIDE];
        for (int i = 0; i < SIDE; i++) {
            for (int j = 0; j < SIDE; j++)
                x[j] = i < have ? get(tile + i * line + (ptrdiff_t)j * channels + c) : (vec){0};
            into_points(x, half + i, SIDE);
        }
        for (int j = 0; j < SIDE; j++) {
            into_points(half + SIDE * j, y, 1);
            for (int i = 0; i < SIDE; i++) put(out + (SIDE * i + j) * plane + c * ROWS, y[i]);
        }
    }
}

/* Where the results of a tile go: its first row in `out`, which of its rows and columns are wanted, channels of all. */
typedef struct {
    float *out;
    ptrdiff_t line;
    int first, end, columns, channels;
} Target;

static inline ptrdiff_t in_panels(int channel) { return channel / PANEL * (ROWS * PANEL) + channel % PANEL; }

static void write_results(const vec *results, Target to, int row, int c, vec shift) {
    float *out = to.out + row * to.line + c;
    for (int j = 0; j < to.columns; j++) put(out + (ptrdiff_t)j * to.channels, results[j] + shift);
}

static void transform_back(const float *products, ptrdiff_t plane, const float *bias, int channels, Target to) {
    for (int c = 0; c < channels; c += LANES) {
        vec x[SIDE], half[TILE * SIDE], y[TILE], shift = {0};
        if (bias) shift = get(bias + c);
        for (int j = 0; j < SIDE; j++) {
            for (int i = 0; i < SIDE; i++) x[i] = get(products + (SIDE * i + j) * plane + in_panels(c));
            from_points(x, half + j, SIDE);
        }
        for (int i = to.first; i < to.end; i++) {
            from_points(half + SIDE * i, y, 1);
            write_results(y, to, i, c, shift);
        }
    }
}

/* places: of every row filter (9) and column filter (9) the plane of its products. */
static inline void upsample_back(const float *products, ptrdiff_t plane, const float *bias, int channels, Target to,
                                const int *places, Kind kind) {
    for (int c = 0; c < channels; c += LANES) {
        vec x[FILTERED], half[2 * TILE * FILTERED], y[2 * TILE], shift = {0};
        if (bias) shift = get(bias + c);
        for (int j = 0; j < FILTERED; j++) {
            for (int i = 0; i < FILTERED; i++) x[i] = get(products + places[FILTERED * i + j] * plane + in_panels(c));
            from_filters(x, half + j, FILTERED, kind);
        }
        for (int i = to.first; i < to.end; i++) {
            from_filters(half + FILTERED * i, y, 1, UPSAMPLE_EVEN);
            write_results(y, to, i, c, shift);
        }
    }
}

static void write_back(const float *products, ptrdiff_t plane, const float *bias, int channels, Target to,
                       const int *places, Kind kind) {
    if (kind == CONVOLVE)
        transform_back(products, plane, bias, channels, to);
    else if (kind == UPSAMPLE_EVEN)
        upsample_back(products, plane, bias, channels, to, places, UPSAMPLE_EVEN);
    else
        upsample_back(products, plane, bias, channels, to, places, UPSAMPLE_ODD);
}

/* The planes of products stand in the order of their points, those of one point by row filter and column filter. */
static void find_places(Kind kind, int *places) {
    int plane = 0, above = 0;
    for (int i = 0; i < SIDE; above += ROW_FILTERS[kind][i++])
        for (int j = 0, before = 0; j < SIDE; before += COLUMN_FILTERS[kind][j++])
            for (int r = 0; r < ROW_FILTERS[kind][i]; r++)
                for (int s = 0; s < COLUMN_FILTERS[kind][j]; s++)
                    places[FILTERED * (above + r) + before + s] = plane++;
}

/* (depth / LANES, ROWS, LANES) times (depth, PANEL), written to or added to (ROWS, PANEL). With every LANES channels
   `lines` cache lines from `next` on are fetched. */
static inline void multiply(const float *a, const float *panel, int depth, int add, float *out, const float *next,
                            int lines) {
    vec sums[ROWS][COLUMNS];
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < COLUMNS; n++) sums[m][n] = (vec){0};
    for (int some = 0; some < depth; some += LANES, a += ROWS * LANES) {
        for (int l = 0; l < lines; l++, next += LINE) __builtin_prefetch(next, 0, 3);
        for (int k = 0; k < LANES; k++, panel += PANEL) {
            vec right[COLUMNS];
            for (int n = 0; n < COLUMNS; n++) right[n] = get(panel + n * LANES);
            for (int m = 0; m < ROWS; m++)
                for (int n = 0; n < COLUMNS; n++) sums[m][n] += a[m * LANES + k] * right[n];
        }
    }
    for (int m = 0; m < ROWS; m++)
        for (int n = 0; n < COLUMNS; n++) {
            float *target = out + m * PANEL + n * LANES;
            if (add) sums[m][n] += get(target);
            put(target, sums[m][n]);
        }
}

/* The products of `padded` tiles at all points, written or added. Weights are read from first to last. */
static void multiply_block(const float *values, ptrdiff_t plane, const float *weight, float *products, ptrdiff_t made,
                           int padded, int wide, int narrow, Kind kind, int add) {
    int lines = (LANES * PANEL / LINE * ROWS + padded - 1) / padded;
    for (int p = 0; p < POINTS; p++, values += plane) {
        int filters = ROW_FILTERS[kind][p / SIDE] * COLUMN_FILTERS[kind][p % SIDE];
        for (int first = 0; first < wide; first += DEPTH) {
            int depth = wide - first < DEPTH ? wide - first : DEPTH;
            for (int f = 0; f < filters; f++)
                for (int n = 0; n < narrow; n += PANEL, weight += depth * PANEL) {
                    const float *next = weight + depth * PANEL;
                    for (int t = 0; t < padded; t += ROWS, next += depth / LANES * lines * LINE)
                        multiply(values + t * wide + first * ROWS, weight, depth, add || first > 0,
                                 products + f * made + t * narrow + n * ROWS, next, lines);
                }
        }
        products += filters * made;
    }
}

/* window: (have, n, wide), its rows `line` values apart; rows below are zero. weight: see `pack_weight` of packing.py.
   out: (rows, width, narrow), or of twice the width where `kind` upsamples, without the first `skip` rows of results.
   scratch: for each thread `own` values, enough for `block` tiles, a multiple of ROWS, of `taps` frames, and products of
   `some` channels: so many are made at once, and their weights stand together.
   frames: of a clip, `frame` values apart in the window and one behind the other in `out`. A result sees its own frame and
   taps - 1 before it, of which there are none before the first; weights are those of the earliest first. */
void tile_convolve(const float *window, ptrdiff_t line, int have, const float *weight, const float *bias, float *out,
                   int rows, int width, int wide, int narrow, int block, int threads, float *scratch, ptrdiff_t own,
                   int some, int kind, int skip, ptrdiff_t frame, int frames, int taps) {
    int scale = kind == CONVOLVE ? 1 : 2, side = scale * TILE, places[FILTERED * FILTERED] = {0};
    int across = (width + TILE - 1) / TILE, tiles = (rows + skip + side - 1) / side * across;
    ptrdiff_t line_out = (ptrdiff_t)scale * width * narrow;
    int groups = (tiles + ROWS - 1) / ROWS, blocks = (tiles + block - 1) / block, planes = 0;
    blocks = (blocks + threads - 1) / threads * threads; /* all threads get equally many */
    for (int p = 0; p < POINTS; p++) planes += ROW_FILTERS[kind][p / SIDE] * COLUMN_FILTERS[kind][p % SIDE];
    if (kind != CONVOLVE) find_places(kind, places);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int number = 0; number < blocks; number++) {
        int start = (ptrdiff_t)groups * number / blocks * ROWS;
        int padded = (ptrdiff_t)groups * (number + 1) / blocks * ROWS - start;
        int count = tiles - start < padded ? tiles - start : padded;
        if (padded == 0) continue;
        ptrdiff_t plane = (ptrdiff_t)padded * wide + PAD, made = (ptrdiff_t)padded * some + PAD;
        float *values = scratch + omp_get_thread_num() * own, *products = values + taps * POINTS * plane;
        for (int f = 0; f < frames; f++) {
            float *mine = values + f % taps * POINTS * plane, *result = out + (ptrdiff_t)f * rows * line_out;
            for (int t = 0; t < count; t++) {
                int y = (start + t) / across * TILE, x = (start + t) % across * TILE;
                transform(window + f * frame + y * line + (ptrdiff_t)x * wide, line, have - y, wide,
                          mine + t / ROWS * ROWS * wide + t % ROWS * LANES, plane);
            }
            for (int n = 0; n < narrow; n += some) {
                int these = narrow - n < some ? narrow - n : some;
                for (int back = 0; back < taps && back <= f; back++)
                    multiply_block(values + (f - back) % taps * POINTS * plane, plane,
                                   weight + ((ptrdiff_t)(taps - 1 - back) * narrow + n) * planes * wide, products, made,
                                   padded, wide, these, kind, back > 0);
                for (int t = 0; t < count; t++) {
                    int y = (start + t) / across * side - skip, x = (start + t) % across * side;
                    Target to = {result + y * line_out + (ptrdiff_t)x * narrow + n, line_out, y < 0 ? -y : 0,
                                 rows - y < side ? rows - y : side, scale * width - x < side ? scale * width - x : side,
                                 narrow};
                    write_back(products + t / ROWS * ROWS * these + t % ROWS * PANEL, made, bias ? bias + n : 0, these, to,
                               places, kind);
                }
            }
        }
    }
}
