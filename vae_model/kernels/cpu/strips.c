/* Norm with activation and the moments of strips, float32, channels innermost; see strips.py. */
#include "vector.h"

#define SOME 64 /* pixels whose moments are taken in float32 before they are merged in float64 */

int strip_lanes(void) { return LANES; }

static inline vec pick(whole mask, vec a, vec b) { return (vec)((mask & (whole)a) | (~mask & (whole)b)); }

/* exp(x): x = n * ln 2 + r, then a polynomial of r; ln 2 in two parts, n in the exponent. 0 and infinity at the ends. */
static inline vec exponential(vec x) {
    const vec zero = {0}, low = zero - 87.0f, high = zero + 88.8f, round = zero + 12582912.0f; /* 1.5 * 2^23 */
    x = pick(x < low, low, pick(x > high, high, x));
    vec n = (x * 1.44269504f + round) - round, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((__builtin_convertvector(n, whole) + 127) << 23);
}

/* target = x * scale + shift, with SiLU behind it or not. Rows and images lie so many values apart; in a row pixels are
   dense. scale, shift: (images, channels). */
void strip_normalise(const float *x, float *target, const float *scale, const float *shift, int images, int rows,
                     int width, int channels, const ptrdiff_t *apart, int silu, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int line = 0; line < images * rows; line++) {
        int image = line / rows, row = line % rows;
        const float *in = x + image * apart[0] + row * apart[1];
        float *out = target + image * apart[2] + row * apart[3];
        const float *a = scale + (ptrdiff_t)image * channels, *b = shift + (ptrdiff_t)image * channels;
        for (int pixel = 0; pixel < width; pixel++, in += channels, out += channels)
            for (int c = 0; c < channels; c += LANES) {
                vec y = get(in + c) * get(a + c) + get(b + c);
                if (silu) y /= 1.0f + exponential(-y);
                put(out + c, y);
            }
    }
}

/* Take another part's mean and sum of squared deviations in (Chan, Golub and LeVeque 1979). */
static inline void merge(double *mean, double *m2, double known, double other_mean, double other_m2, double count) {
    double share = count / (known + count), apart = other_mean - *mean;
    *mean += apart * share;
    *m2 += other_m2 + apart * apart * known * share;
}

/* Means of the channels and their sums of squared deviations: moments (parts, 2, channels) float64, those of all parts
   in the first. x: (pixels, channels), dense. */
void strip_moments(const float *x, double *moments, int pixels, int channels, int parts) {
#pragma omp parallel for num_threads(parts) schedule(static)
    for (int part = 0; part < parts; part++) {
        int start = (int)((ptrdiff_t)pixels * part / parts), end = (int)((ptrdiff_t)pixels * (part + 1) / parts);
        double *mean = moments + (ptrdiff_t)part * 2 * channels, *m2 = mean + channels;
        for (int c = 0; c < 2 * channels; c++) mean[c] = 0;
        for (int first = start; first < end; first += SOME) {
            int count = end - first < SOME ? end - first : SOME;
            for (int c = 0; c < channels; c += LANES) {
                const float *block = x + (ptrdiff_t)first * channels + c;
                vec middle = {0}, squares = {0};
                for (int k = 0; k < count; k++) middle += get(block + (ptrdiff_t)k * channels);
                middle /= (float)count;
                vec rest = {0};
                for (int k = 0; k < count; k++) {
                    vec apart = get(block + (ptrdiff_t)k * channels) - middle;
                    rest += apart;
                    squares += apart * apart;
                }
                for (int lane = 0; lane < LANES; lane++) {
                    double off = (double)rest[lane] / count; /* `middle` is rounded */
                    merge(mean + c + lane, m2 + c + lane, first - start, middle[lane] + off,
                          squares[lane] - off * rest[lane], count);
                }
            }
        }
    }
    for (int part = 1; part < parts; part++) {
        int start = (int)((ptrdiff_t)pixels * part / parts), end = (int)((ptrdiff_t)pixels * (part + 1) / parts);
        const double *mean = moments + (ptrdiff_t)part * 2 * channels;
        for (int c = 0; c < channels && end > start; c++)
            merge(moments + c, moments + channels + c, start, mean[c], mean[channels + c], end - start);
    }
}
