// Activations of dense layers, lane by lane, forward and backward, and the softmax.
//
//   relu  max(x, 0)    tanh    sigmoid    elu  x > 0 ? x : exp(x) - 1 (Clevert, Unterthiner, Hochreiter 2016)
//   softmax_c = exp(z_c - max z) / sum over classes of exp(z - max z)
//
// Slopes follow from the activation's own result y: tanh' = 1 - y^2, sigmoid' = y (1 - y), elu' = y + 1 below
// zero.

#pragma once

#include "lanes.h"

namespace {

enum Activation : int32_t { LINEAR = 0, RELU = 1, TANH = 2, SIGMOID = 3, ELU = 4, SOFTMAX = 5 };

// values = activation(values); of the softmax nothing, which the loss computes.
void activate(Activation activation, float* values, int count) {
    auto each = [&](auto f) {
        for (float* at = values; at < values + count * LANES; at += LANES) store(at, map(f, load(at)));
    };
    // a NaN stays one
    if (activation == RELU) each([](Floats x) { return x < 0.0f ? Floats{} : x; });
    if (activation == TANH) each([](Floats x) { return tanh(x); });
    if (activation == SIGMOID) each([](Floats x) { return sigmoid(x); });
    if (activation == ELU)
        each([](Floats x) { return x > 0.0f ? x : exponential(clamp(x, -80.0f, 0.0f)) - 1.0f; });
}

// values = gradient * activation'(x), where values held activation(x).
void activation_gradient(Activation activation, const float* gradient, float* values, int count) {
    auto each = [&](auto f) {
        for (int at = 0; at < count * LANES; at += LANES)
            store(values + at, map(f, load(gradient + at), load(values + at)));
    };
    if (activation == LINEAR) each([](Floats d, Floats) { return d; });
    if (activation == RELU) each([](Floats d, Floats y) { return y > 0.0f ? d : Floats{}; });
    if (activation == TANH) each([](Floats d, Floats y) { return d * (1.0f - y * y); });
    if (activation == SIGMOID) each([](Floats d, Floats y) { return d * y * (1.0f - y); });
    if (activation == ELU) each([](Floats d, Floats y) { return y > 0.0f ? d : d * (y + 1.0f); });
}

// Subtracts the largest logit of each lane from all of them, so that no exponential overflows.
void subtract_maximum(float* logits, int classes) {
    Lanes largest = load(logits);
    for (int c = 1; c < classes; ++c)
        largest =
            map([](Floats z, Floats most) { return z > most ? z : most; }, load(logits + c * LANES), largest);
    for (int c = 0; c < classes; ++c)
        store(logits + c * LANES,
              map([](Floats z, Floats most) { return z - most; }, load(logits + c * LANES), largest));
}

// Turns logits without their maximum into probabilities; returns the sum of their exponentials.
Lanes normalised_exponentials(float* logits, int classes) {
    Lanes total = broadcast(0.0f);
    for (int c = 0; c < classes; ++c) {
        const Lanes e =
            map([](Floats z) { return exponential(clamp(z, -80.0f, 0.0f)); }, load(logits + c * LANES));
        FOR_EACH_PART(p) total.part[p] += e.part[p];
        store(logits + c * LANES, e);
    }
    for (int c = 0; c < classes; ++c)
        store(logits + c * LANES,
              map([](Floats e, Floats sum) { return e / sum; }, load(logits + c * LANES), total));
    return total;
}

}  // namespace
