// A stack of dense layers under a softmax, trained for many steps in one call: rows are gathered, go forward, meet the
// cross-entropy, go backward, and Adam moves the weights.
//
// Sixteen events ride in the lanes of SIMD registers: a tile. The operand of a layer is [x | 1], so that the bias is
// one more row of the weights; Keras' kernel and bias, one behind the other, lie just so. On the way back the gradient
// of a value takes the place of the value. A few tiles go through all layers together and stay in the nearest cache.
//
// hepdask/compiled/dense.py is the only caller; hepdask/compiled/build.py compiles this file.

#include <cmath>
#include <vector>

#include "lanes.h"

extern "C" {

// A network, and what Adam remembers of it. Weights, moments and gradients hold kernel (K, N) and bias (N) of one layer
// after the other.
struct Network {
    int32_t layers;
    const int32_t *widths, *activations;  // (layers + 1), (layers); the last one is the softmax
    float *weights, *first_moments, *second_moments, *gradients;
    float first_decay, second_decay, epsilon;  // one minus beta
};

// All events, and the order they are taken in. Of each batch this rank takes every ranks-th event, from its own on.
struct Sample {
    const float* records;  // (all events, width): features, label, and what fills the cache line
    const float* class_weights;
    const int64_t* order;
    int64_t events, batch_size;
    int32_t width, rank, ranks;
};
}

namespace {

constexpr int CHUNK = 16;  // tiles that go through all layers together
constexpr int ROWS = 4, COLUMNS = REGISTERS == 32 ? 4 : 3;  // sixteen sums are added over their lanes at once

enum Activation : int32_t { LINEAR = 0, RELU = 1, TANH = 2, SIGMOID = 3, SOFTMAX = 4 };

struct Layer {
    int in, out;
    Activation activation;
    float *weights, *gradients;
    float* transposed;   // (out, in)
    float *input, *output;  // tiles of [x | 1], and those of the next layer

    int input_step() const { return (in + 1) * LANES; }
    int output_step() const { return (out + 1) * LANES; }
};

struct Stack {
    std::vector<Layer> layers;
    std::vector<float> raw;
    float* passed;  // gradient of the values of a tile
    int64_t count = 0;

    explicit Stack(const Network& network) {
        const int32_t* widths = network.widths;
        int64_t floats = LANES + CHUNK * (widths[0] + 1) * LANES;
        int widest = 0;
        for (int l = 0; l < network.layers; ++l) {
            floats += CHUNK * (widths[l + 1] + 1) * LANES + widths[l] * widths[l + 1];
            widest = std::max(widest, widths[l]);
        }
        raw.resize(floats + widest * LANES);
        float* at = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(raw.data()) + 63) & ~uintptr_t(63));
        passed = at;
        at += widest * LANES;
        for (int l = 0; l < network.layers; ++l) {
            Layer layer{widths[l], widths[l + 1], Activation(network.activations[l]), network.weights + count,
                        network.gradients + count, nullptr, at, nullptr};
            for (int tile = 1; tile <= CHUNK; ++tile) store(at + tile * layer.input_step() - LANES, all(1.0f));
            at += CHUNK * layer.input_step();
            layer.output = at;
            layers.push_back(layer);
            count += (layer.in + 1) * layer.out;
        }
        at += CHUNK * layers.back().output_step();
        for (Layer& layer : layers) {
            layer.transposed = at;
            at += layer.in * layer.out;
        }
    }
};

void transpose(const Layer& layer) {
    for (int n = 0; n < layer.out; ++n)
        for (int k = 0; k < layer.in; ++k) layer.transposed[n * layer.in + k] = layer.weights[k * layer.out + n];
}

// out[n] = sum over k of values[k] weights[k, n], for a tile
void product(const float* values, int rows, const float* weights, int columns, float* out) {
    const int many = blocks(columns, MOST);
    for (int b = 0; b < many; ++b) {
        const int from = begin(b, columns, many);
        with<MOST>(begin(b + 1, columns, many) - from, [&](auto J) {
            constexpr int wide = J;
            Lanes sums[wide];
#pragma GCC unroll 32
            for (int j = 0; j < wide; ++j) sums[j] = all(0.0f);
            add_products(sums, values, rows, weights + from, columns);
#pragma GCC unroll 32
            for (int j = 0; j < wide; ++j) store(out + (from + j) * LANES, sums[j]);
        });
    }
}

void activate(Activation activation, float* values, int count) {
    auto each = [&](auto f) {
        for (float* at = values; at < values + count * LANES; at += LANES) store(at, map(f, load(at)));
    };
    if (activation == RELU) each([](Vec x) { return x < 0.0f ? Vec{} : x; });  // a NaN stays one
    if (activation == TANH) each([](Vec x) { return tanh(x); });
    if (activation == SIGMOID) each([](Vec x) { return sigmoid(x); });
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
}

struct Measures {
    Lanes loss = all(0.0f), hits = all(0.0f);
};

// Loss and hits of a tile; its logits become their gradients.
void cross_entropy(float* logits, int classes, Lanes label, Lanes weight, Measures& measures) {
    Lanes largest = load(logits), best = all(0.0f), total = all(0.0f), own = all(0.0f);
    for (int c = 1; c < classes; ++c) {
        const Lanes z = load(logits + c * LANES);
        EACH {
            best.part[p] = z.part[p] > largest.part[p] ? Vec{} + float(c) : best.part[p];
            largest.part[p] = z.part[p] > largest.part[p] ? z.part[p] : largest.part[p];
        }
    }
    for (int c = 0; c < classes; ++c) {
        Lanes z = load(logits + c * LANES);
        EACH {
            z.part[p] -= largest.part[p];
            own.part[p] = label.part[p] == float(c) ? z.part[p] : own.part[p];
            z.part[p] = exponential(clamp(z.part[p], -80.0f, 0.0f));
            total.part[p] += z.part[p];
        }
        store(logits + c * LANES, z);
    }
    for (int c = 0; c < classes; ++c) {
        Lanes e = load(logits + c * LANES);
        EACH e.part[p] = weight.part[p] * (e.part[p] / total.part[p] - (label.part[p] == float(c) ? Vec{} + 1.0f : Vec{}));
        store(logits + c * LANES, e);
    }
    EACH {
        measures.loss.part[p] += weight.part[p] * (logarithm(total.part[p]) - own.part[p]);
        const Vec right = best.part[p] == label.part[p] ? Vec{} + 1.0f : Vec{};
        measures.hits.part[p] += weight.part[p] > 0.0f ? right : Vec{};
    }
}

float sum(Lanes lanes) {
    alignas(64) float value[LANES];
    store(value, lanes);
    float total = 0.0f;
    for (float lane : value) total += lane;
    return total;
}

// Events first, first + ranks, ... of the order, as far as they are there, into the lanes of a tile; empty lanes weigh
// nothing. Those of the next batch are sent for.
void gather(const Sample& sample, int features, int64_t first, int64_t end, float share, float* tile, Lanes& label, Lanes& weight) {
    alignas(64) float labels[LANES] = {}, weights[LANES] = {};
    for (int lane = 0; lane < LANES; ++lane) {
        const int64_t place = first + lane * sample.ranks;
        if (place >= end) {
            for (int f = 0; f < features; ++f) tile[f * LANES + lane] = 0.0f;
            continue;
        }
        const float* record = sample.records + sample.order[place] * sample.width;
        for (int f = 0; f < features; ++f) tile[f * LANES + lane] = record[f];
        labels[lane] = record[features];
        weights[lane] = share * sample.class_weights[int(record[features])];
        if (place + sample.batch_size < sample.events) {
            const float* later = sample.records + sample.order[place + sample.batch_size] * sample.width;
            for (int f = 0; f <= features; f += 16) __builtin_prefetch(later + f);
        }
    }
    label = load(labels);
    weight = load(weights);
}

// This rank's part of the gradients, of the mean loss of a batch, and of its hits.
void differentiate(Stack& stack, const Sample& sample, int64_t batch, float* loss, float* hits) {
    const int64_t start = batch * sample.batch_size, end = std::min(start + sample.batch_size, sample.events);
    const float share = 1.0f / float(end - start);
    for (size_t l = 1; l < stack.layers.size(); ++l) transpose(stack.layers[l]);
    std::fill_n(stack.layers[0].gradients, stack.count, 0.0f);
    Measures measures;
    const int64_t tile_events = int64_t(LANES) * sample.ranks;
    for (int64_t at = start + sample.rank; at < end;) {
        int tiles = 0;
        for (; tiles < CHUNK && at < end; ++tiles, at += tile_events) {
            Lanes label, weight;
            const Layer& first = stack.layers[0];
            gather(sample, first.in, at, end, share, first.input + tiles * first.input_step(), label, weight);
            for (const Layer& layer : stack.layers) {
                float* output = layer.output + tiles * layer.output_step();
                product(layer.input + tiles * layer.input_step(), layer.in + 1, layer.weights, layer.out, output);
                if (layer.activation == SOFTMAX) cross_entropy(output, layer.out, label, weight, measures);
                else activate(layer.activation, output, layer.out);
            }
        }
        for (size_t l = stack.layers.size(); l-- > 0;) {
            const Layer& layer = stack.layers[l];
            add_outer<ROWS, COLUMNS>(layer.input, layer.input_step(), layer.in + 1, layer.output, layer.output_step(),
                                     layer.out, tiles, layer.gradients, layer.out);
            for (int tile = 0; l > 0 && tile < tiles; ++tile) {
                product(layer.output + tile * layer.output_step(), layer.out, layer.transposed, layer.in, stack.passed);
                go_back(stack.layers[l - 1].activation, stack.passed, layer.input + tile * layer.input_step(), layer.in);
            }
        }
    }
    *loss = sum(measures.loss);
    *hits = sum(measures.hits);
}

// A step of Adam, in the order of Keras' operations; the rate holds the corrections of the first steps.
void update(const Network& network, int64_t count, float rate) {
    float* __restrict weights = network.weights;
    float* __restrict m = network.first_moments;
    float* __restrict v = network.second_moments;
    const float* __restrict g = network.gradients;
    for (int64_t i = 0; i < count; ++i) {
        m[i] += (g[i] - m[i]) * network.first_decay;
        v[i] += (g[i] * g[i] - v[i]) * network.second_decay;
        weights[i] -= m[i] * rate / (std::sqrt(v[i]) + network.epsilon);
    }
}

}  // namespace

extern "C" {

// Steps on the batches from first on, with one rate, one loss and one number of hits for each.
void hepdask_dense_steps(const Network* network, const Sample* sample, int64_t first, int64_t count, const float* rates, float* losses, float* hits) {
    const FlushSubnormal flush;
    Stack stack(*network);
    for (int64_t i = 0; i < count; ++i) {
        differentiate(stack, *sample, first + i, losses + i, hits + i);
        update(*network, stack.count, rates[i]);
    }
}

// The two halves of a step, for ranks that add up their gradients in between.
void hepdask_dense_gradients(const Network* network, const Sample* sample, int64_t batch, float* loss, float* hits) {
    const FlushSubnormal flush;
    Stack stack(*network);
    differentiate(stack, *sample, batch, loss, hits);
}

void hepdask_dense_update(const Network* network, float rate) {
    const FlushSubnormal flush;
    update(*network, Stack(*network).count, rate);
}
}
