/* Products with a random basis that is made on the way and never stored.
 *
 * Row i of a basis is drawn at counters[i]; its entries come in tiles, entry j of tile
 * t at place 1024 t + j, as `draw` and `draw_signs` say. Like passes.c the file
 * includes itself once for every type of the vectors (REAL). Sums over a tile run in
 * that type, over tiles in double.
 */
#ifndef REAL

#include "draws.h"

enum { BITS = 32, CALLS = TILE / BITS / 4 };

/* Write 1024 random bits: bit b of word l is the sign of entry 32 b + l of a tile. */
static inline void draw_signs(uint32_t *restrict w, uint64_t seed, uint64_t step,
                              uint64_t tile) {
    KEYS(seed);
    const uint32_t low = (uint32_t)(tile * CALLS);
    const uint32_t high = (uint32_t)(tile * CALLS >> 32);
#pragma omp simd
    for (int i = 0; i < CALLS; i++) {
        WORDS(seed, step, low + (uint32_t)i, high);
        w[i] = a, w[CALLS + i] = b, w[2 * CALLS + i] = c, w[3 * CALLS + i] = d;
    }
}

/* The value with its sign turned if the top bit of `bit` is set. */
static inline float turned_float(float value, uint32_t bit) {
    return float_of(bits_of(value) ^ (bit & 0x80000000));
}

static inline double turned_double(double value, uint32_t bit) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits ^= (uint64_t)(bit & 0x80000000) << 32;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define REAL float
#include __FILE__
#undef REAL
#define REAL double
#include __FILE__

#else

/* Entries of a tile of n, the rest zero. */
static inline const REAL *PASS(tile_of)(const REAL *v, int64_t n, int64_t tile,
                                        REAL *padded) {
    const int64_t left = n - tile * TILE;
    if (left >= TILE) return v + tile * TILE;
    memset(padded, 0, TILE * sizeof *padded);
    memcpy(padded, v + tile * TILE, (size_t)left * sizeof *padded);
    return padded;
}

/* dots[i] <- e_i.g and squares[i] <- |e_i|^2 (unless null) of normal rows, for the
 * tiles of `g` from the first to before the last one */
void PASS(project_normals)(const REAL *g, int64_t n, const uint64_t *counters,
                           int64_t rows, uint64_t seed, double *dots,
                           double *squares) {
    float z[TILE];
    REAL padded[TILE];
    memset(dots, 0, (size_t)rows * sizeof *dots);
    if (squares) memset(squares, 0, (size_t)rows * sizeof *squares);
    for (int64_t tile = 0; tile * TILE < n; tile++) {
        const REAL *restrict own = PASS(tile_of)(g, n, tile, padded);
        const int64_t count = n - tile * TILE < TILE ? n - tile * TILE : TILE;
        for (int64_t i = 0; i < rows; i++) {
            REAL dot = 0, square = 0;
            draw(z, seed, counters[i], (uint64_t)tile);
#pragma omp simd reduction(+ : dot)
            for (int j = 0; j < TILE; j++) dot += (REAL)z[j] * own[j];
            dots[i] += dot;
            if (!squares) continue;
#pragma omp simd reduction(+ : square)
            for (int64_t j = 0; j < count; j++) square += (REAL)z[j] * (REAL)z[j];
            squares[i] += square;
        }
    }
}

/* out <- sum_i c_i e_i of normal rows, entries from `start` (of a tile) to `stop` */
void PASS(expand_normals)(REAL *out, int64_t start, int64_t stop,
                          const uint64_t *counters, int64_t rows, uint64_t seed,
                          const double *c) {
    float z[TILE];
    REAL sum[TILE];
    for (int64_t place = start; place < stop; place += TILE) {
        memset(sum, 0, sizeof sum);
        for (int64_t i = 0; i < rows; i++) {
            const REAL weight = (REAL)c[i];
            draw(z, seed, counters[i], (uint64_t)(place / TILE));
#pragma omp simd
            for (int j = 0; j < TILE; j++) sum[j] += weight * (REAL)z[j];
        }
        const int64_t count = stop - place < TILE ? stop - place : TILE;
        memcpy(out + place, sum, (size_t)count * sizeof *out);
    }
}

/* dots[i] <- e_i.g of rows of signs */
void PASS(project_signs)(const REAL *g, int64_t n, const uint64_t *counters,
                         int64_t rows, uint64_t seed, double *dots) {
    uint32_t w[BITS];
    REAL padded[TILE];
    memset(dots, 0, (size_t)rows * sizeof *dots);
    for (int64_t tile = 0; tile * TILE < n; tile++) {
        const REAL *restrict own = PASS(tile_of)(g, n, tile, padded);
        for (int64_t i = 0; i < rows; i++) {
            REAL sums[BITS] = {0}, dot = 0;
            draw_signs(w, seed, counters[i], (uint64_t)tile);
            for (int b = 0; b < BITS; b++) {
#pragma omp simd
                for (int l = 0; l < BITS; l++)
                    sums[l] += PASS(turned)(own[BITS * b + l], w[l] << (31 - b));
            }
#pragma omp simd reduction(+ : dot)
            for (int l = 0; l < BITS; l++) dot += sums[l];
            dots[i] += dot;
        }
    }
}

/* out <- sum_i c_i e_i of rows of signs, entries from `start` (of a tile) to `stop` */
void PASS(expand_signs)(REAL *out, int64_t start, int64_t stop,
                        const uint64_t *counters, int64_t rows, uint64_t seed,
                        const double *c) {
    uint32_t w[BITS];
    REAL sum[TILE];
    for (int64_t place = start; place < stop; place += TILE) {
        memset(sum, 0, sizeof sum);
        for (int64_t i = 0; i < rows; i++) {
            const REAL weight = (REAL)c[i];
            draw_signs(w, seed, counters[i], (uint64_t)(place / TILE));
            for (int b = 0; b < BITS; b++) {
#pragma omp simd
                for (int l = 0; l < BITS; l++)
                    sum[BITS * b + l] += PASS(turned)(weight, w[l] << (31 - b));
            }
        }
        const int64_t count = stop - place < TILE ? stop - place : TILE;
        memcpy(out + place, sum, (size_t)count * sizeof *out);
    }
}

/* out[j] <- +-in[j] for j < n: the signs of one row */
void PASS(flip)(REAL *restrict out, const REAL *restrict in, int64_t n,
                uint64_t counter, uint64_t seed) {
    uint32_t w[BITS];
    for (int64_t place = 0; place < n; place += TILE) {
        draw_signs(w, seed, counter, (uint64_t)(place / TILE));
        for (int b = 0; b < BITS && place + BITS * b < n; b++) {
            const int64_t first = place + BITS * b;
            const int count = n - first < BITS ? (int)(n - first) : BITS;
#pragma omp simd
            for (int l = 0; l < count; l++)
                out[first + l] = PASS(turned)(in[first + l], w[l] << (31 - b));
        }
    }
}

/* v <- H v with the n by n matrix of Hadamard and Sylvester, n a power of two */
void PASS(hadamard)(REAL *restrict v, int64_t n) {
    int64_t h = 1;
    if (n >= 8) { /* three stages within eight entries */
        for (int64_t i = 0; i < n; i += 8) {
            REAL *restrict p = v + i, a[8];
            for (int k = 0; k < 4; k++)
                a[2 * k] = p[2 * k] + p[2 * k + 1], a[2 * k + 1] = p[2 * k] - p[2 * k + 1];
            for (int k = 0; k < 8; k++)
                p[k] = k & 2 ? a[k - 2] - a[k] : a[k] + a[k + 2];
            for (int k = 0; k < 4; k++)
                a[k] = p[k] + p[k + 4], a[k + 4] = p[k] - p[k + 4];
            for (int k = 0; k < 8; k++) p[k] = a[k];
        }
        h = 8;
    }
    for (; 4 * h <= n; h *= 4) /* two stages in one pass */
        for (int64_t i = 0; i < n; i += 4 * h) {
            REAL *restrict p = v + i;
#pragma omp simd
            for (int64_t j = 0; j < h; j++) {
                const REAL a = p[j] + p[j + h], b = p[j] - p[j + h];
                const REAL c = p[j + 2 * h] + p[j + 3 * h];
                const REAL d = p[j + 2 * h] - p[j + 3 * h];
                p[j] = a + c, p[j + h] = b + d;
                p[j + 2 * h] = a - c, p[j + 3 * h] = b - d;
            }
        }
    for (; h < n; h *= 2)
        for (int64_t i = 0; i < n; i += 2 * h) {
            REAL *restrict p = v + i;
#pragma omp simd
            for (int64_t j = 0; j < h; j++) {
                const REAL a = p[j], b = p[j + h];
                p[j] = a + b, p[j + h] = a - b;
            }
        }
}

/* Count sketch: entry j goes to bin (bits * rows) / 2^31 with the word's last bit as
 * sign. `forward`: bins[bin] += +-v[j]; else v[j] = +-bins[bin]. */
static inline void PASS(sketched)(REAL *v, int64_t n, uint64_t counter, int64_t rows,
                                  uint64_t seed, double *bins, const int forward) {
    uint32_t w[TILE];
    for (int64_t place = 0; place < n; place += TILE) {
        KEYS(seed);
        const uint64_t first = (uint64_t)place / 4;
#pragma omp simd
        for (int i = 0; i < QUARTER; i++) {
            WORDS(seed, counter, (uint32_t)first + (uint32_t)i, (uint32_t)(first >> 32));
            w[i] = a, w[QUARTER + i] = b, w[2 * QUARTER + i] = c, w[3 * QUARTER + i] = d;
        }
        const int64_t count = n - place < TILE ? n - place : TILE;
        for (int64_t j = 0; j < count; j++) {
            const uint64_t bin = ((uint64_t)(w[j] >> 1) * (uint64_t)rows) >> 31;
            if (forward)
                bins[bin] += PASS(turned)(v[place + j], w[j] << 31);
            else
                v[place + j] = PASS(turned)((REAL)bins[bin], w[j] << 31);
        }
    }
}

void PASS(sketch)(REAL *g, int64_t n, uint64_t counter, int64_t rows, uint64_t seed,
                  double *dots) {
    memset(dots, 0, (size_t)rows * sizeof *dots);
    PASS(sketched)(g, n, counter, rows, seed, dots, 1);
}

void PASS(unsketch)(REAL *out, int64_t n, uint64_t counter, int64_t rows, uint64_t seed,
                    double *c) {
    PASS(sketched)(out, n, counter, rows, seed, c, 0);
}

#endif
