// Inverted dropout (Srivastava et al. 2014): in training a unit is 0 with the probability `rate`, and
// otherwise
//
//   y = x / (1 - rate)
//
// so that the mean stays. Which units are dropped follows from a word of the event, made of the epoch's key
// and the event's place in the epoch's order, and from the number of the unit: from nothing that depends on
// how steps are cut into calls or events are shared among ranks. On the way back it is drawn again. Words:
// SplitMix64 (Steele, Lea, Flood 2014); their mixing with units: lowbias32 (Wellons 2018).

#pragma once

#include "lanes.h"

namespace {

typedef uint32_t Words __attribute__((vector_size(4 * VECTOR_FLOATS)));

// The word of an event: the upper half of SplitMix64.
inline uint32_t event_word(uint64_t key, uint64_t place) {
    uint64_t x = key + place * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return uint32_t((x ^ (x >> 31)) >> 32);
}

// lowbias32: every bit of the result depends on every bit of x.
inline Words mixed_bits(Words x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// Dropout of a layer's units; the first one's number is counted over all layers. A tile's events have a word
// each.
struct Dropout {
    float rate;
    int units, first_unit;

    void forward(const uint32_t* event_words, float* values) const {
        const float scale = 1.0f / (1.0f - rate);
        each(event_words,
             [&](int at, Ints kept) { set(values + at, kept ? get(values + at) * scale : Floats{}); });
    }

    // Drops the same units of the gradient; values become again what the activation returned, where they are
    // needed.
    void backward(const uint32_t* event_words, float* gradient, float* values) const {
        const float scale = 1.0f / (1.0f - rate);
        each(event_words, [&](int at, Ints kept) {
            set(gradient + at, kept ? get(gradient + at) * scale : Floats{});
            set(values + at, get(values + at) * (1.0f - rate));
        });
    }

private:
    static Floats get(const float* at) { return *reinterpret_cast<const Floats*>(at); }
    static void set(float* at, Floats value) { *reinterpret_cast<Floats*>(at) = value; }

    template <class Function>
    void each(const uint32_t* event_words, Function f) const {
        const int32_t least = int32_t(rate * 0x1000000);
        for (int n = 0; n < units; ++n)
            for (int p = 0; p < LANES; p += VECTOR_FLOATS) {
                const Words events = *reinterpret_cast<const Words*>(event_words + p);
                const Words drawn = mixed_bits(events ^ uint32_t(first_unit + n) * 0x9E3779B9u);
                f(n * LANES + p, (Ints)(drawn >> 8) >= least);
            }
    }
};

}  // namespace
