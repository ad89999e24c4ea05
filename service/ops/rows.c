/* The passes over the classes of a row that everything else is made of, for float and double.
 *
 * For a row z of C logits: m = max z, t the first place of m, e_j = e^(z_j - m), R = sum of e_j over j != t, S = 1 + R.
 * R is summed apart from the 1 so that ln S = log1p(R) and 1 - q_t = R / S keep their digits in confident rows.
 *
 * The order of every operation is written out: LANES sums beside each other, flushed to as many in double every FLUSH chunks (one
 * sum in the order of the classes where a row is SHORT), and fused multiply-adds only where fma stands. So a row has the
 * same bits on every processor, whatever the width of its vectors, provided the compiler neither reorders nor contracts
 * (-ffp-contract=off, no -ffast-math).
 *
 * Rows that are not SHORT can be divided by a temperature on the way: `scale` is 1 / temperature, and z stands for the
 * unrounded product everywhere above.
 *
 * `out` may be `logits` itself. A NaN anywhere in a row, and an infinite m, make R and all of the row NaN;
 * `peak` is NaN where a NaN stands beside an infinite m.
 * `rest`, `peak` and `top` may be NULL where cross-entropy is computed and nobody asks for them.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))

/* e^(x + low) for x <= 0 within 0.9 units in the last place, gradual underflow included; 0 for -infinity, NaN for NaN.
 * Of an x so far off that the power is 0, `low` is forgotten: it may be NaN, or larger than any exponent.
 * Range reduction by Cody and Waite; the polynomial is the closest of its degree (float), Taylor's (double). */
INLINE float exp_float(float x, float low) {
    int far = x < -104.0f;
    x = far ? -104.0f : x;
    low = far ? 0.0f : low;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which lies in the low bits */
    union { float f; uint32_t i; } n, power;
    n.f = fmaf(x, 1.44269504088896341f, magic);
    float k = n.f - magic;
    float high = fmaf(k, -0.693145751953125f, x); /* exact */
    float rest = fmaf(k, -1.42860682030941723212e-6f, low);
    float r = high + rest;
    float p = 0x1.6a21bap-10f;
    p = fmaf(p, r, 0x1.123b6ep-7f);
    p = fmaf(p, r, 0x1.5558fcp-5f);
    p = fmaf(p, r, 0x1.555490p-3f);
    p = fmaf(p, r, 0x1.fffffcp-2f);
    p = (high + fmaf(p, r * r, rest)) + 1.0f;
    power.i = (n.i << 23) + ((127u + 64u) << 23); /* 2^(k + 64), never subnormal; only the low bits of n are left */
    return p * power.f * 0x1p-64f;
}

INLINE double exp_double(double x, double low) {
    int far = x < -746.0;
    x = far ? -746.0 : x;
    low = far ? 0.0 : low;
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    union { double f; uint64_t i; } n, power;
    n.f = fma(x, 1.44269504088896340736, magic);
    double k = n.f - magic;
    double r = fma(k, -6.93147180369123816490e-01, x);
    r = fma(k, -1.90821492927058770002e-10, r) + low;
    double p = 1.0 / 6227020800.0;
    p = fma(p, r, 1.0 / 479001600.0);
    p = fma(p, r, 1.0 / 39916800.0);
    p = fma(p, r, 1.0 / 3628800.0);
    p = fma(p, r, 1.0 / 362880.0);
    p = fma(p, r, 1.0 / 40320.0);
    p = fma(p, r, 1.0 / 5040.0);
    p = fma(p, r, 1.0 / 720.0);
    p = fma(p, r, 1.0 / 120.0);
    p = fma(p, r, 1.0 / 24.0);
    p = fma(p, r, 1.0 / 6.0);
    p = fma(p, r, 0.5);
    p = fma(p, r * r, r) + 1.0;
    power.i = (n.i << 52) + ((1023ull + 512ull) << 52);
    return p * power.f * 0x1p-512;
}

#define LANES 64    /* sums beside each other in a row */
#define FLUSH 16    /* chunks of LANES that are summed in the element type */
#define SHORT 128   /* rows of so many classes are computed beside each other, not each by itself */
#define ABREAST 16  /* sums in double beside each other, over the target masses of a row */
#define TOGETHER 16 /* so many of them */

#define T float
#define NAME(name) name##_float
#define EXP exp_float
#define FMA fmaf
#define TINY 0x1p-126
#include "rows.inc"
#undef T
#undef NAME
#undef EXP
#undef FMA
#undef TINY

#define T double
#define NAME(name) name##_double
#define EXP exp_double
#define FMA fma
#define TINY 0x1p-1022
#include "rows.inc"
