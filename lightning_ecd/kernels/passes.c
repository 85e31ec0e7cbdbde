/* One pass over memory for each part of an energy-conserving update.
 *
 * The file includes itself once for every type of the vectors (REAL). Sums run over
 * BLOCK entries in that type and over blocks in double. Plain C11: the vectors of the
 * processor come from `omp simd`, which needs no OpenMP runtime.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Normals are made in tiles: counter c of a tile gives entries c, c + QUARTER, ... */
enum { BLOCK = 512, TILE = 1024, QUARTER = TILE / 4 };

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Radius sqrt(-2 ln u) of a pair of normals, u = (bits / 2 + 1/2) / 2^31.
 *
 * u 2^31 = m 2^e with m in [1/sqrt 2, sqrt 2); ln m is a polynomial in m - 1, with a
 * relative error of 1e-7 also where u is near 1. At most 6.67. */
static inline float radius(uint32_t bits) {
    const uint32_t low = 0x3f3504f3; /* 1/sqrt 2 */
    uint32_t above = bits_of((float)(int32_t)(bits >> 1) + 0.5f) - low;
    float f = float_of((above & 0x7fffff) + low) - 1.0f;
    float e = (float)(31 - ((int32_t)above >> 23));
    float p = 0.08533396f;
    p = p * f - 0.14269382f;
    p = p * f + 0.1497743f;
    p = p * f - 0.16577978f;
    p = p * f + 0.1995593f;
    p = p * f - 0.25001353f;
    p = p * f + 0.33334193f;
    p = p * f - 0.5f;
    p = p * f + 1.0f;
    return sqrtf(e * 1.3862944f - 2.0f * f * p);
}

/* sin(pi v / 2) for v in [0, 1], relative error 1e-7. */
static inline float quarter_sine(float v) {
    float t = v * v, p = 1.516717e-4f;
    p = p * t - 4.6741436e-3f;
    p = p * t + 7.968992e-2f;
    p = p * t - 6.459638e-1f;
    p = p * t + 1.5707964f;
    return p * v;
}

/* Two normals (Box, Muller): the first word gives the radius, the second the angle:
 * 30 bits within a quadrant, two bits for the signs. */
static inline void pair(uint32_t word, uint32_t angle, float *a, float *b) {
    float r = radius(word);
    float v = (float)(int32_t)(angle >> 2) * 0x1p-30f;
    *a = float_of(bits_of(r * quarter_sine(1.0f - v)) ^ (angle << 31));
    *b = float_of(bits_of(r * quarter_sine(v)) ^ ((angle & 2) << 30));
}

#define MIX(a, b, bits) a += b, b = (b << bits | b >> (32 - bits)) ^ a
#define EVEN MIX(a, b, 10), MIX(c, d, 26), MIX(a, d, 11), MIX(c, b, 21), \
             MIX(a, b, 13), MIX(c, d, 27), MIX(a, d, 23), MIX(c, b, 5)
#define ODD MIX(a, b, 6), MIX(c, d, 20), MIX(a, d, 17), MIX(c, b, 11), \
            MIX(a, b, 25), MIX(c, d, 10), MIX(a, d, 18), MIX(c, b, 20)
#define KEY(ka, kb, kc, kd, round) a += ka, b += kb, c += kc, d += kd + round

/* Write the standard normals of one tile: functions of (seed, step, tile) alone.
 *
 * Threefry-4x32-20 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011) with key (seed, 0) and counter (place, step), low words first. */
static void draw(float *restrict z, uint64_t seed, uint64_t step, uint64_t tile) {
    const uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    const uint32_t k4 = 0x1BD11BDA ^ k0 ^ k1; /* k2 = k3 = 0 */
    const uint32_t low = (uint32_t)(tile * QUARTER);
    const uint32_t high = (uint32_t)(tile * QUARTER >> 32);
    const uint32_t step_low = (uint32_t)step, step_high = (uint32_t)(step >> 32);
#pragma omp simd
    for (int i = 0; i < QUARTER; i++) {
        uint32_t a = low + (uint32_t)i + k0, b = high + k1;
        uint32_t c = step_low, d = step_high;
        EVEN, KEY(k1, 0, 0, k4, 1);
        ODD, KEY(0, 0, k4, k0, 2);
        EVEN, KEY(0, k4, k0, k1, 3);
        ODD, KEY(k4, k0, k1, 0, 4);
        EVEN, KEY(k0, k1, 0, 0, 5);
        pair(a, b, &z[i], &z[QUARTER + i]);
        pair(c, d, &z[2 * QUARTER + i], &z[3 * QUARTER + i]);
    }
}

#define JOIN(name, type) name##_##type
#define EXPANDED(name, type) JOIN(name, type)
#define PASS(name) EXPANDED(name, REAL)

/* Perform a statement for every i, add up what it adds to `sum`, and return it. */
#define SUM_OVER(n, statement)                                      \
    do {                                                            \
        double total = 0;                                           \
        for (int64_t start = 0; start < n; start += BLOCK) {        \
            int64_t stop = n - start < BLOCK ? n : start + BLOCK;   \
            REAL sum = 0;                                           \
            _Pragma("omp simd reduction(+ : sum)")                  \
            for (int64_t i = start; i < stop; i++) { statement; }   \
            total += sum;                                           \
        }                                                           \
        return total;                                               \
    } while (0)

#define REAL float
#include __FILE__
#undef REAL
#define REAL double
#include __FILE__

#else /* the passes; those without a sum return 0 */

/* q <- r q - k (g + decay x); returns |q|^2 */
double PASS(kick)(REAL *restrict q, const REAL *restrict g, const REAL *restrict x,
                  int64_t n, double rescale, double strength, double decay) {
    const REAL r = (REAL)rescale, k = (REAL)strength, w = (REAL)decay;
    if (decay != 0)
        SUM_OVER(n, q[i] = r * q[i] - k * (g[i] + w * x[i]); sum += q[i] * q[i]);
    SUM_OVER(n, q[i] = r * q[i] - k * g[i]; sum += q[i] * q[i]);
}

/* kick, then x <- x + d q; returns |q|^2 */
double PASS(kick_drift)(REAL *restrict q, const REAL *restrict g, REAL *restrict x,
                        int64_t n, double rescale, double strength, double decay,
                        double move) {
    const REAL r = (REAL)rescale, k = (REAL)strength, w = (REAL)decay;
    const REAL d = (REAL)move;
    if (decay != 0)
        SUM_OVER(n, q[i] = r * q[i] - k * (g[i] + w * x[i]); x[i] += d * q[i];
                 sum += q[i] * q[i]);
    SUM_OVER(n, q[i] = r * q[i] - k * g[i]; x[i] += d * q[i]; sum += q[i] * q[i]);
}

/* x <- x + d q */
double PASS(drift)(const REAL *restrict q, REAL *restrict x, int64_t n, double move) {
    const REAL d = (REAL)move;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] += d * q[i];
    return 0;
}

/* x <- x + d q, then q <- q + turn z; returns |q|^2. `offset` is the place of q[0] in
 * the whole vector. */
double PASS(drift_turn)(REAL *restrict q, REAL *restrict x, int64_t n, double move,
                        double turn, uint64_t seed, uint64_t step, int64_t offset) {
    const REAL d = (REAL)move, t = (REAL)turn;
    double total = 0;
    float z[TILE];
    for (int64_t start = 0; start < n;) {
        const int64_t place = offset + start, skipped = place % TILE;
        int64_t stop = start + TILE - skipped;
        if (stop > n) stop = n;
        draw(z, seed, step, (uint64_t)(place / TILE));
        const float *restrict own = z + skipped;
        REAL sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < stop - start; i++) {
            const REAL old = q[start + i];
            x[start + i] += d * old;
            q[start + i] = old + t * own[i];
            sum += q[start + i] * q[start + i];
        }
        total += sum;
        start = stop;
    }
    return total;
}

/* Explore `count` points, whose normals are z; `noisy` and `heavy` are constants. */
static inline void PASS(explored)(REAL *restrict x, const REAL *restrict g,
                                  const REAL *restrict c, REAL *restrict u,
                                  REAL *restrict mean, const float *restrict z,
                                  int64_t count, const REAL *restrict k,
                                  const int noisy, const int heavy) {
    const REAL lr = k[0], m = k[1], fresh = k[2], own = k[3], ahead = k[4];
    const REAL alpha = k[5], decay_in = k[6], spring_in = k[7], noise_in = k[8];
    const REAL decay_out = k[9], spring_out = k[10], noise_out = k[11];
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const REAL away = x[i] - c[i], normal = noisy ? z[i] : 0;
        const REAL p = g[i] + decay_in * x[i] + spring_in * away + noise_in * normal;
        REAL d = p;
        if (heavy) {
            u[i] = m * u[i] + fresh * p;
            d = own * p + ahead * u[i];
        }
        d += decay_out * x[i] + spring_out * away + noise_out * normal;
        x[i] -= lr * d;
        mean[i] += alpha * (x[i] - mean[i]);
    }
}

/* One exploring step: p <- g + decay x + spring (x - c) + noise z; u <- m u + fresh p;
 * x <- x - lr (own p + ahead u + the same beside u); mean <- mean + alpha (x - mean).
 * u is left alone if m = 0. */
double PASS(explore)(REAL *restrict x, const REAL *restrict g, const REAL *restrict c,
                     REAL *u, REAL *mean, int64_t n, double lr, double m, double fresh,
                     double own, double ahead, double alpha, double decay_in,
                     double spring_in, double noise_in, double decay_out,
                     double spring_out, double noise_out, uint64_t seed, uint64_t step,
                     int64_t offset) {
    const REAL k[] = {lr,       m,         fresh,    own,       ahead,      alpha,
                      decay_in, spring_in, noise_in, decay_out, spring_out, noise_out};
    const int noisy = noise_in != 0 || noise_out != 0;
    float z[TILE];
    for (int64_t start = 0; start < n;) {
        const int64_t place = offset + start, skipped = place % TILE;
        int64_t stop = start + TILE - skipped;
        if (stop > n) stop = n;
        const int64_t i = start, count = stop - start;
        if (noisy) draw(z, seed, step, (uint64_t)(place / TILE));
        const float *own_z = z + skipped;
        if (noisy && m != 0)
            PASS(explored)(x + i, g + i, c + i, u + i, mean + i, own_z, count, k, 1, 1);
        else if (noisy)
            PASS(explored)(x + i, g + i, c + i, 0, mean + i, own_z, count, k, 1, 0);
        else if (m != 0)
            PASS(explored)(x + i, g + i, c + i, u + i, mean + i, z, count, k, 0, 1);
        else
            PASS(explored)(x + i, g + i, c + i, 0, mean + i, z, count, k, 0, 0);
        start = stop;
    }
    return 0;
}

/* z <- the normals of places offset, offset + 1, ... */
double PASS(normals)(REAL *restrict z, int64_t n, uint64_t seed, uint64_t step,
                   int64_t offset) {
    float tile[TILE];
    for (int64_t start = 0; start < n;) {
        const int64_t place = offset + start, skipped = place % TILE;
        int64_t stop = start + TILE - skipped;
        if (stop > n) stop = n;
        draw(tile, seed, step, (uint64_t)(place / TILE));
        for (int64_t i = start; i < stop; i++) z[i] = tile[skipped + i - start];
        start = stop;
    }
    return 0;
}

/* |q|^2 */
double PASS(square)(const REAL *restrict q, int64_t n) {
    SUM_OVER(n, sum += q[i] * q[i]);
}

/* q.(g + decay x) */
double PASS(dot)(const REAL *restrict q, const REAL *restrict g,
                 const REAL *restrict x, int64_t n, double decay) {
    const REAL w = (REAL)decay;
    if (decay != 0) SUM_OVER(n, sum += q[i] * (g[i] + w * x[i]));
    SUM_OVER(n, sum += q[i] * g[i]);
}

#endif
