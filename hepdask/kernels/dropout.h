// Inverted dropout: in training a unit gives 0 with some probability, and otherwise so much more that the mean stays.
//
// A mask follows from the epoch's key, from the event's place in the epoch's order, and from the unit: from nothing that
// depends on how steps are cut into calls or events are shared among ranks. It is drawn again on the way back.

#pragma once

#include "lanes.h"

namespace {

typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));

// SplitMix64 (Steele, Lea, Flood 2014): the word of an event.
inline uint32_t word(uint64_t key, uint64_t place) {
    uint64_t x = key + place * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return uint32_t((x ^ (x >> 31)) >> 32);
}

// Every bit of the result depends on every bit of x (lowbias32, Wellons 2018).
inline Bits mixed(Bits x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// Some units after each other, the first one's number counted over all layers, and the words of a tile's events.
struct Dropout {
    float rate;
    int units, first;

    void forward(const uint32_t* words, float* values) const {
        const float scale = 1.0f / (1.0f - rate);
        each(words, [&](int at, Int kept) { set(values + at, kept ? get(values + at) * scale : Vec{}); });
    }

    // The gradient goes the same way; the values become again what the activation gave, where the gradient is not 0.
    void backward(const uint32_t* words, float* gradient, float* values) const {
        const float scale = 1.0f / (1.0f - rate);
        each(words, [&](int at, Int kept) {
            set(gradient + at, kept ? get(gradient + at) * scale : Vec{});
            set(values + at, get(values + at) * (1.0f - rate));
        });
    }

private:
    static Vec get(const float* at) { return *reinterpret_cast<const Vec*>(at); }
    static void set(float* at, Vec value) { *reinterpret_cast<Vec*>(at) = value; }

    template <class F>
    void each(const uint32_t* words, F f) const {
        const int32_t least = int32_t(rate * 0x1000000);
        for (int n = 0; n < units; ++n)
            for (int p = 0; p < LANES; p += WIDTH) {
                const Bits drawn = mixed(*reinterpret_cast<const Bits*>(words + p) ^ uint32_t(first + n) * 0x9E3779B9u);
                f(n * LANES + p, (Int)(drawn >> 8) >= least);
            }
    }
};

}  // namespace
