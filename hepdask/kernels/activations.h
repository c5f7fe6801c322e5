// What a dense layer does to its sums, value by value, on the way there and on the way back.

#pragma once

#include "lanes.h"

namespace {

enum Activation : int32_t { LINEAR = 0, RELU = 1, TANH = 2, SIGMOID = 3, ELU = 4, SOFTMAX = 5 };

void activate(Activation activation, float* values, int count) {
    auto each = [&](auto f) {
        for (float* at = values; at < values + count * LANES; at += LANES) store(at, map(f, load(at)));
    };
    if (activation == RELU) each([](Vec x) { return x < 0.0f ? Vec{} : x; });  // a NaN stays one
    if (activation == TANH) each([](Vec x) { return tanh(x); });
    if (activation == SIGMOID) each([](Vec x) { return sigmoid(x); });
    if (activation == ELU) each([](Vec x) { return x > 0.0f ? x : exponential(clamp(x, -80.0f, 0.0f)) - 1.0f; });
}

// From the gradient of what an activation gave to that of what it took; the slope follows from what it gave.
void go_back(Activation activation, const float* gradient, float* values, int count) {
    auto each = [&](auto f) {
        for (int at = 0; at < count * LANES; at += LANES) store(values + at, map(f, load(gradient + at), load(values + at)));
    };
    if (activation == LINEAR) each([](Vec d, Vec) { return d; });
    if (activation == RELU) each([](Vec d, Vec y) { return y > 0.0f ? d : Vec{}; });
    if (activation == TANH) each([](Vec d, Vec y) { return d * (1.0f - y * y); });
    if (activation == SIGMOID) each([](Vec d, Vec y) { return d * y * (1.0f - y); });
    if (activation == ELU) each([](Vec d, Vec y) { return y > 0.0f ? d : d * (y + 1.0f); });
}

// Takes the largest logit of each lane from all of them, so that no exponential overflows.
void shift(float* logits, int classes) {
    Lanes largest = load(logits);
    for (int c = 1; c < classes; ++c)
        largest = map([](Vec z, Vec most) { return z > most ? z : most; }, load(logits + c * LANES), largest);
    for (int c = 0; c < classes; ++c)
        store(logits + c * LANES, map([](Vec z, Vec most) { return z - most; }, load(logits + c * LANES), largest));
}

// Shifted logits become probabilities; gives the sum of their exponentials.
Lanes normalise(float* logits, int classes) {
    Lanes total = all(0.0f);
    for (int c = 0; c < classes; ++c) {
        const Lanes e = map([](Vec z) { return exponential(clamp(z, -80.0f, 0.0f)); }, load(logits + c * LANES));
        EACH total.part[p] += e.part[p];
        store(logits + c * LANES, e);
    }
    for (int c = 0; c < classes; ++c)
        store(logits + c * LANES, map([](Vec e, Vec sum) { return e / sum; }, load(logits + c * LANES), total));
    return total;
}

}  // namespace
