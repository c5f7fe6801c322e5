// How many single-precision operations a second one core can do: independent multiply-adds in registers.
#include <ctime>

#if defined(__AVX512F__)
typedef float Vec __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float Vec __attribute__((vector_size(32)));
#else
typedef float Vec __attribute__((vector_size(16)));
#endif

static double now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

extern "C" double operations_a_second(long rounds, float factor, float* result) {
    constexpr int CHAINS = 12;
    Vec sums[CHAINS];
    for (int i = 0; i < CHAINS; ++i) sums[i] = Vec{} + float(i);
    const double start = now();
    for (long k = 0; k < rounds; ++k)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * factor + 0.001f;
    const double taken = now() - start;
    Vec total{};
    for (int i = 0; i < CHAINS; ++i) total += sums[i];
    *result = total[0];
    return double(rounds) * CHAINS * 2 * (sizeof(Vec) / 4) / taken;
}
