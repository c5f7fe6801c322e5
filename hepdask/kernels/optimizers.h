// How weights follow their gradients: the optimizers of Keras that have these names, in the order of Keras' operations.
// hepdask/kernels/optimizer_rules.py says what the numbers of each are.

#pragma once

#include <cmath>
#include <cstdint>

enum class Optimizer : int32_t { ADAM, SGD, RMSPROP };

// What an optimizer keeps of each weight, as far as it needs it, and its numbers.
struct Rule {
    Optimizer optimizer;
    float first, second, epsilon;
};

// One step of all weights; an optimizer's rate holds all that depends on the number of the step.
static inline void move(const Rule& rule, int64_t count, float rate, const float* __restrict g, float* __restrict m,
                 float* __restrict v, float* __restrict weights) {
    const float first = rule.first, second = rule.second, epsilon = rule.epsilon;
    switch (rule.optimizer) {
        case Optimizer::ADAM:
            for (int64_t i = 0; i < count; ++i) {
                m[i] += (g[i] - m[i]) * first;
                v[i] += (g[i] * g[i] - v[i]) * second;
                weights[i] -= m[i] * rate / (std::sqrt(v[i]) + epsilon);
            }
            break;
        case Optimizer::SGD:
            for (int64_t i = 0; i < count; ++i) {
                m[i] = m[i] * first - g[i] * rate;
                weights[i] += m[i];
            }
            break;
        case Optimizer::RMSPROP:
            for (int64_t i = 0; i < count; ++i) {
                v[i] += (g[i] * g[i] - v[i]) * second;
                weights[i] -= rate * g[i] / std::sqrt(v[i] + epsilon);
            }
            break;
    }
}
