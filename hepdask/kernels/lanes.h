// Arithmetic on tiles: sixteen events side by side in the lanes of SIMD registers, which both kernels are
// made of.
//
//   lane by lane   sums, products, exp, log, sigmoid 1 / (1 + exp(-x)), tanh 1 - 2 / (1 + exp(2 x))
//   forward        sums[n] += sum over k of operand[k] weights[k, n]
//   gradients      out[i, j] += sum over tiles and lanes of a[i] b[j]
//
// exp and log reduce their argument to a short interval, by 2^n, and sum a series there; ln 2 is subtracted
// in two parts, the first of few digits, so that nothing is lost (Cody and Waite, Software Manual for the
// Elementary Functions, 1980). Vectors are those of GCC and Clang; on x86-64 the level of the compiler's
// target sets their width.

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
constexpr int VECTOR_FLOATS = 16, REGISTER_COUNT = 32;
#elif defined(__AVX__)
constexpr int VECTOR_FLOATS = 8, REGISTER_COUNT = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_FLOATS = 4, REGISTER_COUNT = 32;
#else
constexpr int VECTOR_FLOATS = 4, REGISTER_COUNT = 16;
#endif

constexpr int LANES = 16;                            // events of a tile
constexpr int TILE_VECTORS = LANES / VECTOR_FLOATS;  // registers that hold one value of each

// Sums of a tile that stay in registers at once; a few registers are left for the operands. At least three,
// for the gates of a GRU, even where some of them are spilled.
constexpr int FREE_SUMS = (REGISTER_COUNT == 32 ? 26 : 12) / TILE_VECTORS;
constexpr int MAX_SUMS = FREE_SUMS > 3 ? FREE_SUMS : 3;

typedef float Floats __attribute__((vector_size(4 * VECTOR_FLOATS)));
typedef int32_t Ints __attribute__((vector_size(4 * VECTOR_FLOATS)));

// ---- lanes of a tile

// One value of each event of a tile.
struct Lanes {
    Floats part[TILE_VECTORS];
};

#define FOR_EACH_PART(p) _Pragma("GCC unroll 4") for (int p = 0; p < TILE_VECTORS; ++p)

inline Lanes load(const float* from) {
    Lanes out;
    FOR_EACH_PART(p) out.part[p] = *reinterpret_cast<const Floats*>(from + p * VECTOR_FLOATS);
    return out;
}

inline void store(float* to, Lanes value) {
    FOR_EACH_PART(p) *reinterpret_cast<Floats*>(to + p * VECTOR_FLOATS) = value.part[p];
}

inline Lanes broadcast(float value) {
    Lanes out;
    FOR_EACH_PART(p) out.part[p] = Floats{} + value;
    return out;
}

inline void add_scaled(Lanes& sum, Lanes a, float b) {
    FOR_EACH_PART(p) sum.part[p] += a.part[p] * b;
}

template <class Function, class... Arguments>
inline Lanes map(Function f, Arguments... lanes) {
    Lanes out;
    FOR_EACH_PART(p) out.part[p] = f(lanes.part[p]...);
    return out;
}

// Memory from the first cache line on: `raw` holds LANES floats more than are needed.
inline float* aligned(float* raw) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(raw) + 63) & ~uintptr_t(63));
}

// ---- functions

inline Floats clamp(Floats x, float low, float high) {  // a NaN stays one
    x = x < low ? Floats{} + low : x;
    return x > high ? Floats{} + high : x;
}

inline Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
    Floats guess = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return guess * (2.0f - x * guess);  // a step of Newton's
#else
    return 1.0f / x;
#endif
}

constexpr float ROUNDING =
    12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the low bits

// exp of -80 to 80: 2^n times the Taylor series on +-ln(2)/2
inline Floats exponential(Floats x) {
    Floats shifted = x * 1.44269504f + ROUNDING;
    Floats n = shifted - ROUNDING;
    Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Floats series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    Ints power = ((Ints)shifted - 0x4B400000 + 127) << 23;
    return series * (Floats)power;
}

// log of positive numbers: the exponent, and the series of artanh on the rest, from sqrt(1/2) to sqrt(2)
inline Floats logarithm(Floats x) {
    Ints power = ((Ints)x - 0x3F3504F3) >> 23;
    Floats rest = (Floats)((Ints)x - (power << 23));
    Floats s = (rest - 1.0f) / (rest + 1.0f), q = s * s;
    Floats series = 2.0f + q * (2.0f / 3 + q * (2.0f / 5 + q * (2.0f / 7 + q * (2.0f / 9))));
    Floats found = __builtin_convertvector(power, Floats) * 0.693147181f + s * series;
    return x == x ? found : x;
}

inline Floats sigmoid(Floats x) { return reciprocal(1.0f + exponential(clamp(-x, -80.0f, 80.0f))); }

inline Floats tanh(Floats x) {
    return 1.0f - 2.0f * reciprocal(1.0f + exponential(clamp(2.0f * x, -80.0f, 80.0f)));
}

// ---- matrix products

// `count` things in as few blocks of at most `largest` as possible, and where one of them begins: all but
// equally long.
inline int block_count(int count, int largest) { return (count + largest - 1) / largest; }
inline int block_begin(int block, int count, int blocks) { return int(int64_t(block) * count / blocks); }

// Calls f with the number n, known at run time, as a constant: one of 1 to LARGEST.
template <int LARGEST, class Function>
inline void with_constant(int n, Function&& f) {
    if constexpr (LARGEST > 0) {
        if (n == LARGEST) f(std::integral_constant<int, LARGEST>{});
        else with_constant<LARGEST - 1>(n, f);
    }
}

// sums[n] += sum over rows k of operand[k] weights[k * stride + n]; returns where the next weights are.
template <int COUNT>
inline const float* add_products(Lanes (&sums)[COUNT], const float* operand, int rows, const float* weights,
                                 int stride = COUNT) {
    for (int k = 0; k < rows; ++k) {
        const Lanes a = load(operand + k * LANES);
#pragma GCC unroll 32
        for (int n = 0; n < COUNT; ++n) add_scaled(sums[n], a, weights[n]);
        weights += stride;
    }
    return weights;
}

// In each group of SPAN elements: sums of the two halves of a, then of b.
template <int SPAN>
inline Floats fold_pair(Floats a, Floats b) {
    Ints near, far;
    for (int i = 0; i < VECTOR_FLOATS; ++i) {
        const bool of_a = i % SPAN < SPAN / 2;
        near[i] = of_a ? i : VECTOR_FLOATS + i;
        far[i] = of_a ? i + SPAN / 2 : VECTOR_FLOATS + i - SPAN / 2;
    }
#if defined(__clang__)
    Floats first, second;
    for (int i = 0; i < VECTOR_FLOATS; ++i) {
        first[i] = near[i] < VECTOR_FLOATS ? a[near[i]] : b[near[i] - VECTOR_FLOATS];
        second[i] = far[i] < VECTOR_FLOATS ? a[far[i]] : b[far[i] - VECTOR_FLOATS];
    }
    return first + second;
#else
    return __builtin_shuffle(a, b, near) + __builtin_shuffle(a, b, far);
#endif
}

// For SPAN = 2: element i is the sum over the elements of sums[i].
template <int SPAN>
inline Floats fold_sums(const Floats* sums) {
    if constexpr (SPAN == VECTOR_FLOATS) {
        return fold_pair<SPAN>(sums[0], sums[SPAN / 2]);
    } else {
        return fold_pair<SPAN>(fold_sums<SPAN * 2>(sums), fold_sums<SPAN * 2>(sums + SPAN / 2));
    }
}

// to[n] = sum over the elements of sums[n]
template <int COUNT>
inline void store_element_sums(const Floats (&sums)[COUNT], float* to) {
    constexpr int ROUNDED = (COUNT + VECTOR_FLOATS - 1) / VECTOR_FLOATS * VECTOR_FLOATS;
    Floats padded[ROUNDED];
    for (int i = 0; i < ROUNDED; ++i) padded[i] = i < COUNT ? sums[i] : Floats{};
    for (int i = 0; i < COUNT; i += VECTOR_FLOATS) {
        Floats total = fold_sums<2>(padded + i);
        std::memcpy(to + i, &total, 4 * std::min(VECTOR_FLOATS, COUNT - i));
    }
}

// out[i, j] = sum over steps and lanes of a[step, i] b[step, j]
template <int ROWS, int COLUMNS>
inline void outer_product_block(const float* a, int a_stride, const float* b, int b_stride, int steps,
                                float* out) {
    Floats sums[ROWS * COLUMNS];
#pragma GCC unroll 32
    for (int n = 0; n < ROWS * COLUMNS; ++n) sums[n] = Floats{};
    for (int t = 0; t < steps; ++t, a += a_stride, b += b_stride)
        for (int p = 0; p < LANES; p += VECTOR_FLOATS) {
            Floats right[COLUMNS];
#pragma GCC unroll 8
            for (int j = 0; j < COLUMNS; ++j) right[j] = *reinterpret_cast<const Floats*>(b + j * LANES + p);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; ++i) {
                const Floats left = *reinterpret_cast<const Floats*>(a + i * LANES + p);
#pragma GCC unroll 8
                for (int j = 0; j < COLUMNS; ++j) sums[i * COLUMNS + j] += left * right[j];
            }
        }
    store_element_sums(sums, out);
}

// out[i, j] += sum over steps and lanes of a[step, i] b[step, j], in blocks of at most so many rows and
// columns.
template <int MAX_ROWS, int MAX_COLUMNS>
void add_outer_product(const float* a, int a_stride, int rows, const float* b, int b_stride, int columns,
                       int steps, float* out, int out_stride) {
    const int down = block_count(rows, MAX_ROWS), across = block_count(columns, MAX_COLUMNS);
    for (int y = 0; y < across; ++y) {
        const int j = block_begin(y, columns, across), width = block_begin(y + 1, columns, across) - j;
        for (int x = 0; x < down; ++x) {
            const int i = block_begin(x, rows, down), height = block_begin(x + 1, rows, down) - i;
            with_constant<MAX_ROWS>(height, [&](auto I) {
                with_constant<MAX_COLUMNS>(width, [&](auto J) {
                    float block[I * J];
                    outer_product_block<I, J>(a + i * LANES, a_stride, b + j * LANES, b_stride, steps, block);
                    for (int k = 0; k < I; ++k)
                        for (int l = 0; l < J; ++l) out[(i + k) * out_stride + j + l] += block[k * J + l];
                });
            });
        }
    }
}

// Gradients that fade over hundreds of steps become subnormal, which x86 computes a hundred times more
// slowly: while this lives, they are zero.
struct FlushSubnormal {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushSubnormal() { _mm_setcsr(before | 0x8040); }
    ~FlushSubnormal() { _mm_setcsr(before); }
#endif
};

}  // namespace
