// How many single-precision operations per second one core can do: chains of multiply-adds in registers, none
// of which waits for another.
//
//   operations per second = rounds * chains * 2 * floats of a register / CPU time
//
// benchmarks/training.py compiles it and calls operations_per_second, against which it holds what the kernels
// do.

#include <ctime>

#if defined(__AVX512F__)
typedef float Floats __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float Floats __attribute__((vector_size(32)));
#else
typedef float Floats __attribute__((vector_size(16)));
#endif

static double cpu_seconds() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

extern "C" double operations_per_second(long rounds, float factor, float* result) {
    constexpr int CHAINS = 12;
    Floats sums[CHAINS];
    for (int i = 0; i < CHAINS; ++i) sums[i] = Floats{} + float(i);
    const double start = cpu_seconds();
    for (long k = 0; k < rounds; ++k)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * factor + 0.001f;
    const double taken = cpu_seconds() - start;
    Floats total{};
    for (int i = 0; i < CHAINS; ++i) total += sums[i];
    *result = total[0];
    return double(rounds) * CHAINS * 2 * (sizeof(Floats) / 4) / taken;
}
