// A stack of dense layers under a softmax, trained for many steps in one call: rows are gathered, go forward, meet the
// cross-entropy, go backward, and an optimizer moves the weights. What happens to single values: activations.h, dropout.h,
// optimizers.h.
// Or one step on rows that another layer made, which gets their gradients back.
//
// Sixteen events ride in the lanes of SIMD registers: a tile. The operand of a layer is [x | 1], so that the bias is
// one more row of the weights; Keras' kernel and bias, one behind the other, lie just so. On the way back the gradient
// of a value takes the place of the value. A few tiles go through all layers together and stay in the nearest cache.
//
// hepdask/kernels/dense.py is the only caller; hepdask/kernels/build.py compiles this file.

#include <cmath>
#include <vector>

#include "activations.h"
#include "dropout.h"
#include "lanes.h"
#include "optimizers.h"

extern "C" {

// A network, and what its optimizer remembers of it. Weights, moments and gradients hold kernel (K, N) and bias (N) of one layer
// after the other, behind those of layers that are not computed here.
struct Network {
    int32_t layers;
    const int32_t *widths, *activations;  // (layers + 1), (layers); the last one is the softmax
    const float* dropouts;                // (layers + 1), of the inputs and behind each activation; 0 behind the softmax
    int64_t before;                       // weights of other layers
    float *weights, *first_moments, *second_moments, *gradients;
    Rule rule;
};

// All events, and the order they are taken in. Of each batch this rank takes every ranks-th event, from its own on. The key
// and an event's place in the order decide what is dropped out.
struct Sample {
    const float* records;  // (all events, width): features, label, and what fills the cache line
    const float* class_weights;
    const int64_t* order;
    int64_t events, batch_size;
    uint64_t key;
    int32_t width, rank, ranks;
};

// Events whose values another layer made. The key and an event's place decide what is dropped out.
struct Rows {
    const float* values;    // (events, features)
    const int64_t* labels;
    const float* weights;   // of each event in the loss
    const uint64_t* places;
    float* passed;          // (events, features), gradients of the values
    int64_t events;
    uint64_t key;
};
}

namespace {

constexpr int CHUNK = 16;  // tiles that go through all layers together
constexpr int ROWS = 4, COLUMNS = REGISTERS == 32 ? 4 : 3;  // sixteen sums are added over their lanes at once

struct Layer {
    int in, out;
    Activation activation;
    Dropout dropout;
    float *weights, *gradients;
    float* transposed;   // (out, in)
    float *input, *output;  // tiles of [x | 1], and those of the next layer

    int input_step() const { return (in + 1) * LANES; }
    int output_step() const { return (out + 1) * LANES; }
};

struct Stack {
    std::vector<Layer> layers;
    Dropout dropout;  // of the inputs
    std::vector<float> raw;
    float* passed;  // gradient of the values of a tile
    int64_t count = 0;
    bool drops;
    alignas(64) uint32_t words[CHUNK * LANES];  // of the events, for dropout

    explicit Stack(const Network& network)
        : dropout{network.dropouts[0], network.widths[0], -network.widths[0]}, drops(dropout.rate > 0.0f) {
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
        int units = 0;
        for (int l = 0; l < network.layers; ++l) {
            const int64_t place = network.before + count;
            Layer layer{widths[l], widths[l + 1], Activation(network.activations[l]), {network.dropouts[l + 1], widths[l + 1], units},
                        network.weights + place, network.gradients + place, nullptr, at, nullptr};
            for (int tile = 1; tile <= CHUNK; ++tile) store(at + tile * layer.input_step() - LANES, all(1.0f));
            at += CHUNK * layer.input_step();
            layer.output = at;
            layers.push_back(layer);
            count += (layer.in + 1) * layer.out;
            units += layer.out;
            drops = drops || layer.dropout.rate > 0.0f;
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

struct Measures {
    Lanes loss = all(0.0f), hits = all(0.0f);
};

// Loss and hits of a tile; its logits become their gradients.
void cross_entropy(float* logits, int classes, Lanes label, Lanes weight, Measures& measures) {
    shift(logits, classes);
    Lanes best = all(0.0f), own = all(0.0f);
    for (int c = classes; c-- > 0;) {
        const Lanes z = load(logits + c * LANES);
        EACH {
            best.part[p] = z.part[p] == 0.0f ? Vec{} + float(c) : best.part[p];
            own.part[p] = label.part[p] == float(c) ? z.part[p] : own.part[p];
        }
    }
    const Lanes total = normalise(logits, classes);
    for (int c = 0; c < classes; ++c) {
        Lanes d = load(logits + c * LANES);
        EACH d.part[p] = weight.part[p] * (d.part[p] - (label.part[p] == float(c) ? Vec{} + 1.0f : Vec{}));
        store(logits + c * LANES, d);
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

// This rank's part of a batch of a sample, tile by tile. Empty lanes weigh nothing.
class Gathered {
    const Sample& sample;
    int64_t first, end;
    float share;

public:
    static constexpr bool passes = false;

    Gathered(const Sample& sample, int64_t batch) : sample(sample) {
        const int64_t start = batch * sample.batch_size;
        first = start + sample.rank;
        end = std::min(start + sample.batch_size, sample.events);
        share = 1.0f / float(end - start);
    }

    int64_t tiles() const { return (end - first + LANES * sample.ranks - 1) / (LANES * sample.ranks); }
    int64_t place(int64_t tile, int lane) const { return first + (tile * LANES + lane) * sample.ranks; }
    uint32_t word(int64_t tile, int lane) const { return ::word(sample.key, place(tile, lane)); }

    // Events of the next batch are sent for.
    void gather(int64_t tile, int features, float* values, Lanes& label, Lanes& weight) const {
        alignas(64) float labels[LANES] = {}, weights[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t at = place(tile, lane);
            if (at >= end) {
                for (int f = 0; f < features; ++f) values[f * LANES + lane] = 0.0f;
                continue;
            }
            const float* record = sample.records + sample.order[at] * sample.width;
            for (int f = 0; f < features; ++f) values[f * LANES + lane] = record[f];
            labels[lane] = record[features];
            weights[lane] = share * sample.class_weights[int(record[features])];
            if (at + sample.batch_size < sample.events) {
                const float* later = sample.records + sample.order[at + sample.batch_size] * sample.width;
                for (int f = 0; f <= features; f += 16) __builtin_prefetch(later + f);
            }
        }
        label = load(labels);
        weight = load(weights);
    }
};

// Rows tile by tile, which get their gradients back.
class Given {
    const Rows& rows;

public:
    static constexpr bool passes = true;

    explicit Given(const Rows& rows) : rows(rows) {}

    int64_t tiles() const { return (rows.events + LANES - 1) / LANES; }
    uint32_t word(int64_t tile, int lane) const { return ::word(rows.key, rows.places[std::min(tile * LANES + lane, rows.events - 1)]); }

    void gather(int64_t tile, int features, float* values, Lanes& label, Lanes& weight) const {
        alignas(64) float labels[LANES] = {}, weights[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t at = tile * LANES + lane;
            const bool there = at < rows.events;
            for (int f = 0; f < features; ++f) values[f * LANES + lane] = there ? rows.values[at * features + f] : 0.0f;
            labels[lane] = there ? float(rows.labels[at]) : 0.0f;
            weights[lane] = there ? rows.weights[at] : 0.0f;
        }
        label = load(labels);
        weight = load(weights);
    }

    void pass(int64_t tile, int features, const float* gradients) const {
        for (int lane = 0; lane < LANES && tile * LANES + lane < rows.events; ++lane)
            for (int f = 0; f < features; ++f) rows.passed[(tile * LANES + lane) * features + f] = gradients[f * LANES + lane];
    }
};

// Takes a tile through all layers, and what an activation gives through `dropped`; where the logits are.
template <class F>
float* forward(Stack& stack, int tile, F&& dropped) {
    float* output = nullptr;
    for (const Layer& layer : stack.layers) {
        output = layer.output + tile * layer.output_step();
        product(layer.input + tile * layer.input_step(), layer.in + 1, layer.weights, layer.out, output);
        activate(layer.activation, output, layer.out);
        dropped(layer.dropout, output);
    }
    return output;
}

// Gradients of the weights, weighted loss and hits of the events of a source.
template <class Source>
void differentiate(Stack& stack, const Source& source, float* loss, float* hits) {
    for (size_t l = Source::passes ? 0 : 1; l < stack.layers.size(); ++l) transpose(stack.layers[l]);
    std::fill_n(stack.layers[0].gradients, stack.count, 0.0f);
    Measures measures;
    const Layer &first = stack.layers[0], &last = stack.layers.back();
    const int64_t all = source.tiles();
    for (int64_t start = 0; start < all; start += CHUNK) {
        const int tiles = int(std::min<int64_t>(CHUNK, all - start));
        for (int tile = 0; tile < tiles; ++tile) {
            Lanes label, weight;
            float* values = first.input + tile * first.input_step();
            source.gather(start + tile, first.in, values, label, weight);
            uint32_t* words = stack.words + tile * LANES;
            for (int lane = 0; stack.drops && lane < LANES; ++lane) words[lane] = source.word(start + tile, lane);
            const auto drop = [&](const Dropout& dropout, float* some) {
                if (dropout.rate > 0.0f) dropout.forward(words, some);
            };
            drop(stack.dropout, values);
            cross_entropy(forward(stack, tile, drop), last.out, label, weight, measures);
        }
        for (size_t l = stack.layers.size(); l-- > 0;) {
            const Layer& layer = stack.layers[l];
            add_outer<ROWS, COLUMNS>(layer.input, layer.input_step(), layer.in + 1, layer.output, layer.output_step(),
                                     layer.out, tiles, layer.gradients, layer.out);
            if (l == 0 && !Source::passes) break;
            const Dropout& dropout = l > 0 ? stack.layers[l - 1].dropout : stack.dropout;
            for (int tile = 0; tile < tiles; ++tile) {
                float* values = layer.input + tile * layer.input_step();
                product(layer.output + tile * layer.output_step(), layer.out, layer.transposed, layer.in, stack.passed);
                if (dropout.rate > 0.0f) dropout.backward(stack.words + tile * LANES, stack.passed, values);
                if (l > 0) go_back(stack.layers[l - 1].activation, stack.passed, values, layer.in);
                else if constexpr (Source::passes) source.pass(start + tile, layer.in, stack.passed);
            }
        }
    }
    *loss = sum(measures.loss);
    *hits = sum(measures.hits);
}

// Class probabilities of all events of a source.
template <class Source>
void score(Stack& stack, const Source& source, int64_t events, float* scores) {
    const Layer &first = stack.layers[0], &last = stack.layers.back();
    for (int64_t tile = 0; tile < source.tiles(); ++tile) {
        Lanes label, weight;
        source.gather(tile, first.in, first.input, label, weight);
        float* found = forward(stack, 0, [](const Dropout&, float*) {});
        shift(found, last.out);
        normalise(found, last.out);
        for (int lane = 0; lane < std::min<int64_t>(LANES, events - tile * LANES); ++lane)
            for (int c = 0; c < last.out; ++c) scores[(tile * LANES + lane) * last.out + c] = found[c * LANES + lane];
    }
}

void update(const Network& network, int64_t count, float rate) {
    move(network.rule, count, rate, network.gradients, network.first_moments, network.second_moments, network.weights);
}

}  // namespace

extern "C" {

// Steps on the batches from first on, with one rate, one loss and one number of hits for each.
void hepdask_dense_steps(const Network* network, const Sample* sample, int64_t first, int64_t count, const float* rates, float* losses, float* hits) {
    const FlushSubnormal flush;
    Stack stack(*network);
    for (int64_t i = 0; i < count; ++i) {
        differentiate(stack, Gathered(*sample, first + i), losses + i, hits + i);
        update(*network, network->before + stack.count, rates[i]);
    }
}

// The two halves of a step, for ranks that add up their gradients in between.
void hepdask_dense_gradients(const Network* network, const Sample* sample, int64_t batch, float* loss, float* hits) {
    const FlushSubnormal flush;
    Stack stack(*network);
    differentiate(stack, Gathered(*sample, batch), loss, hits);
}

void hepdask_dense_update(const Network* network, float rate) {
    const FlushSubnormal flush;
    update(*network, network->before + Stack(*network).count, rate);
}

void hepdask_dense_scores(const Network* network, const Sample* sample, float* scores) {
    const FlushSubnormal flush;
    Stack stack(*network);
    score(stack, Gathered(*sample, 0), sample->events, scores);
}

// Gradients and scores of rows.
void hepdask_dense_rows(const Network* network, const Rows* rows, float* loss, float* hits) {
    const FlushSubnormal flush;
    Stack stack(*network);
    differentiate(stack, Given(*rows), loss, hits);
}

void hepdask_dense_rows_scores(const Network* network, const Rows* rows, float* scores) {
    const FlushSubnormal flush;
    Stack stack(*network);
    score(stack, Given(*rows), rows->events, scores);
}
}
