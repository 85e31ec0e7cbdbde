/* One pass over memory for each part of an energy-conserving update.
 *
 * The file includes itself once for every type of the vectors (REAL). Sums run over
 * BLOCK entries in that type and over blocks in double. Plain C11: the vectors of the
 * processor come from `omp simd`, which needs no OpenMP runtime.
 */
#ifndef REAL

#include "draws.h"

enum { BLOCK = 512 };

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
