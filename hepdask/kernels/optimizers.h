// How weights w follow their gradients g: the optimizers of Keras that have these names, in the order of
// Keras' operations.
//
//   Adam      m += (g - m) (1 - beta_1), v += (g^2 - v) (1 - beta_2), w -= rate m / (sqrt v + epsilon)
//   SGD       m = momentum m - rate g, w += m
//   RMSprop   v += (g^2 - v) (1 - rho), w -= rate g / sqrt(v + epsilon)
//
// (Kingma and Ba 2015; Polyak 1964; Tieleman and Hinton 2012.)
//
// hepdask/kernels/optimizer_rules.py fills in the numbers, and puts into Adam's rate the correction for
// moments that start at zero.

#pragma once

#include <cmath>
#include <cstdint>

enum class Optimizer : int32_t { ADAM, SGD, RMSPROP };

// An optimizer and its numbers; `first` is 1 - beta_1 or the momentum, `second` is 1 - beta_2 or 1 - rho.
struct OptimizerRule {
    Optimizer optimizer;
    float first, second, epsilon;
};

// One step of all weights.
static inline void apply_gradients(const OptimizerRule& rule, int64_t count, float rate,
                                   const float* __restrict g, float* __restrict m, float* __restrict v,
                                   float* __restrict weights) {
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
