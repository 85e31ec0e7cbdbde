/* Random words and normals as functions of (seed, step, place). */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Normals are made in tiles: counter c of a tile gives entries c, c + QUARTER, ... */
enum { TILE = 1024, QUARTER = TILE / 4 };

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

/* Set a, b, c, d to four random words: functions of (seed, step, place) alone.
 *
 * Threefry-4x32-20 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011) with key (seed, 0) and counter (place, step), low words first. */
#define WORDS(seed, step, low, high)                                       \
    uint32_t a = (low) + k0, b = (high) + k1;                              \
    uint32_t c = (uint32_t)(step), d = (uint32_t)((step) >> 32);           \
    EVEN, KEY(k1, 0, 0, k4, 1);                                            \
    ODD, KEY(0, 0, k4, k0, 2);                                             \
    EVEN, KEY(0, k4, k0, k1, 3);                                           \
    ODD, KEY(k4, k0, k1, 0, 4);                                            \
    EVEN, KEY(k0, k1, 0, 0, 5)
/* The key's words; k2 = k3 = 0. */
#define KEYS(seed)                                                         \
    const uint32_t k0 = (uint32_t)(seed), k1 = (uint32_t)((seed) >> 32);   \
    const uint32_t k4 = 0x1BD11BDA ^ k0 ^ k1

/* Write the standard normals of one tile. */
static inline void draw(float *restrict z, uint64_t seed, uint64_t step,
                        uint64_t tile) {
    KEYS(seed);
    const uint32_t low = (uint32_t)(tile * QUARTER);
    const uint32_t high = (uint32_t)(tile * QUARTER >> 32);
#pragma omp simd
    for (int i = 0; i < QUARTER; i++) {
        WORDS(seed, step, low + (uint32_t)i, high);
        pair(a, b, &z[i], &z[QUARTER + i]);
        pair(c, d, &z[2 * QUARTER + i], &z[3 * QUARTER + i]);
    }
}

/* Names of functions that exist once for every type of the vectors (REAL). */
#define JOIN(name, type) name##_##type
#define EXPANDED(name, type) JOIN(name, type)
#define PASS(name) EXPANDED(name, REAL)
