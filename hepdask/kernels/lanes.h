// Events in the lanes of SIMD registers, sixteen to a tile: what both kernels are made of. Arithmetic and exponentials
// lane by lane, products of a tile with a matrix, sums over lanes and tiles.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int WIDTH = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, REGISTERS = 32;
#else
constexpr int WIDTH = 4, REGISTERS = 16;
#endif

constexpr int LANES = 16;
constexpr int PARTS = LANES / WIDTH;
constexpr int MOST = (REGISTERS == 32 ? 26 : 12) / PARTS > 3 ? (REGISTERS == 32 ? 26 : 12) / PARTS : 3;

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));

// ---------------------------------------------------------------------------------------------- lanes of a tile

struct Lanes {
    Vec part[PARTS];
};

#define EACH _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; ++p)

inline Lanes load(const float* from) {
    Lanes out;
    EACH out.part[p] = *reinterpret_cast<const Vec*>(from + p * WIDTH);
    return out;
}
inline void store(float* to, Lanes value) { EACH *reinterpret_cast<Vec*>(to + p * WIDTH) = value.part[p]; }
inline Lanes all(float value) {
    Lanes out;
    EACH out.part[p] = Vec{} + value;
    return out;
}
inline void add_product(Lanes& sum, Lanes a, float b) { EACH sum.part[p] += a.part[p] * b; }

template <class F, class... L>
inline Lanes map(F f, L... lanes) {
    Lanes out;
    EACH out.part[p] = f(lanes.part[p]...);
    return out;
}

inline Vec clamp(Vec x, float low, float high) {  // a NaN stays one
    x = x < low ? Vec{} + low : x;
    return x > high ? Vec{} + high : x;
}

inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
    Vec guess = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the low bits

// exp of -80 to 80: 2^n times the Taylor series on +-ln(2)/2
inline Vec exponential(Vec x) {
    Vec shifted = x * 1.44269504f + ROUND;
    Vec n = shifted - ROUND;
    Vec r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Vec series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    Int power = ((Int)shifted - 0x4B400000 + 127) << 23;
    return series * (Vec)power;
}

// of positive numbers: the exponent, and the series of artanh on the rest, from sqrt(1/2) to sqrt(2)
inline Vec logarithm(Vec x) {
    Int power = ((Int)x - 0x3F3504F3) >> 23;
    Vec rest = (Vec)((Int)x - (power << 23));
    Vec s = (rest - 1.0f) / (rest + 1.0f), q = s * s;
    Vec series = 2.0f + q * (2.0f / 3 + q * (2.0f / 5 + q * (2.0f / 7 + q * (2.0f / 9))));
    Vec found = __builtin_convertvector(power, Vec) * 0.693147181f + s * series;
    return x == x ? found : x;
}

inline Vec sigmoid(Vec x) { return reciprocal(1.0f + exponential(clamp(-x, -80.0f, 80.0f))); }
inline Vec tanh(Vec x) { return 1.0f - 2.0f * reciprocal(1.0f + exponential(clamp(2.0f * x, -80.0f, 80.0f))); }

// ------------------------------------------------------------------------------------------------------- products

inline int blocks(int count, int most) { return (count + most - 1) / most; }
inline int begin(int block, int count, int many) { return int(int64_t(block) * count / many); }

// Calls f<N>() for a number known at run time.
template <int N, class F>
inline void with(int n, F&& f) {
    if constexpr (N > 0) {
        if (n == N) f(std::integral_constant<int, N>{});
        else with<N - 1>(n, f);
    }
}

// sums[n] += operand[k] weights[k * row + n]; where the next weights are.
template <int N>
inline const float* add_products(Lanes (&sums)[N], const float* operand, int rows, const float* weights, int row = N) {
    for (int k = 0; k < rows; ++k) {
        const Lanes a = load(operand + k * LANES);
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) add_product(sums[n], a, weights[n]);
        weights += row;
    }
    return weights;
}

// ------------------------------------------------------------------------------------------------ sums over lanes

template <int SPAN>
inline Vec fold(Vec a, Vec b) {  // in each group of SPAN elements: sums of the two halves of a, then of b
    Int near, far;
    for (int i = 0; i < WIDTH; ++i) {
        const bool of_a = i % SPAN < SPAN / 2;
        near[i] = of_a ? i : WIDTH + i;
        far[i] = of_a ? i + SPAN / 2 : WIDTH + i - SPAN / 2;
    }
#if defined(__clang__)
    Vec first, second;
    for (int i = 0; i < WIDTH; ++i) {
        first[i] = near[i] < WIDTH ? a[near[i]] : b[near[i] - WIDTH];
        second[i] = far[i] < WIDTH ? a[far[i]] : b[far[i] - WIDTH];
    }
    return first + second;
#else
    return __builtin_shuffle(a, b, near) + __builtin_shuffle(a, b, far);
#endif
}

template <int SPAN>
inline Vec fold_all(const Vec* sums) {  // element i: the sum over sums[i], where SPAN is 2
    if constexpr (SPAN == WIDTH) {
        return fold<SPAN>(sums[0], sums[SPAN / 2]);
    } else {
        return fold<SPAN>(fold_all<SPAN * 2>(sums), fold_all<SPAN * 2>(sums + SPAN / 2));
    }
}

template <int COUNT>
inline void add_sums(const Vec (&sums)[COUNT], float* to) {
    constexpr int ROUNDED = (COUNT + WIDTH - 1) / WIDTH * WIDTH;
    Vec padded[ROUNDED];
    for (int i = 0; i < ROUNDED; ++i) padded[i] = i < COUNT ? sums[i] : Vec{};
    for (int i = 0; i < COUNT; i += WIDTH) {
        Vec total = fold_all<2>(padded + i);
        std::memcpy(to + i, &total, 4 * std::min(WIDTH, COUNT - i));
    }
}

template <int I, int J>
inline void product_block(const float* a, int a_step, const float* b, int b_step, int steps, float* out) {
    Vec sums[I * J];
#pragma GCC unroll 32
    for (int n = 0; n < I * J; ++n) sums[n] = Vec{};
    for (int t = 0; t < steps; ++t, a += a_step, b += b_step)
        for (int p = 0; p < LANES; p += WIDTH) {
            Vec right[J];
#pragma GCC unroll 8
            for (int j = 0; j < J; ++j) right[j] = *reinterpret_cast<const Vec*>(b + j * LANES + p);
#pragma GCC unroll 8
            for (int i = 0; i < I; ++i) {
                const Vec left = *reinterpret_cast<const Vec*>(a + i * LANES + p);
#pragma GCC unroll 8
                for (int j = 0; j < J; ++j) sums[i * J + j] += left * right[j];
            }
        }
    add_sums(sums, out);
}

// out[i, j] += sum over steps and lanes of a[step, i] b[step, j], in blocks of so many rows and columns
template <int ROWS, int COLUMNS>
void add_outer(const float* a, int a_step, int rows, const float* b, int b_step, int columns, int steps, float* out, int out_row) {
    const int up = blocks(rows, ROWS), across = blocks(columns, COLUMNS);
    for (int y = 0; y < across; ++y) {
        const int j = begin(y, columns, across), wide = begin(y + 1, columns, across) - j;
        for (int x = 0; x < up; ++x) {
            const int i = begin(x, rows, up), high = begin(x + 1, rows, up) - i;
            with<ROWS>(high, [&](auto I) {
                with<COLUMNS>(wide, [&](auto J) {
                    float block[I * J];
                    product_block<I, J>(a + i * LANES, a_step, b + j * LANES, b_step, steps, block);
                    for (int k = 0; k < I; ++k)
                        for (int l = 0; l < J; ++l) out[(i + k) * out_row + j + l] += block[k * J + l];
                });
            });
        }
    }
}

// Gradients that fade over hundreds of steps become subnormal, which x86 computes a hundred times more slowly.
struct FlushSubnormal {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushSubnormal() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormal() { _mm_setcsr(before); }
#endif
};

}  // namespace
