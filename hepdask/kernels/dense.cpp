// Dense layers, one after the other, under a softmax, trained for many steps in one call:
//
//   forward    a_l = dropout(activation(a_{l-1} W_l + b_l))
//   loss       L = sum over events of weight * -log softmax(z)[label], z = a_last W + b
//   backward   dL/dz = weight (softmax(z) - onehot(label)), and for each layer, with z_l = a_{l-1} W_l + b_l,
//              dL/dW_l = a_{l-1}^T dL/dz_l, dL/da_{l-1} = dL/dz_l W_l^T
//
// and an optimizer moves the weights (activations.h, dropout.h, optimizers.h; Rumelhart, Hinton, Williams
// 1986). Or one step on rows that another layer made, which gets the gradients of their values.
//
// Sixteen events ride in the lanes of SIMD registers: a tile. The operand of a layer is [x | 1], so that the
// bias is one more row of the weights; Keras' kernel and bias, one behind the other, lie just so. On the way
// back the gradient of a value takes the place of the value. A few tiles, a chunk, go through all layers
// together and stay in the nearest cache.
//
// hepdask/kernels/dense.py is the only caller; hepdask/kernels/build.py compiles this file.

#include <cmath>
#include <vector>

#include "activations.h"
#include "dropout.h"
#include "lanes.h"
#include "optimizers.h"

extern "C" {

// A network, and what its optimizer remembers of it. Weights, moments and gradients hold kernel (K, N) and
// bias (N) of one layer after the other, behind those of layers that are not computed here.
struct Network {
    int32_t layers;
    const int32_t *widths, *activations;  // (layers + 1), (layers); the last one is the softmax
    const float* dropouts;   // (layers + 1), of the inputs and behind each activation; 0 behind the softmax
    int64_t weights_before;  // of layers that are not computed here
    float *weights, *first_moments, *second_moments, *gradients;
    OptimizerRule rule;
};

// All events, and the order they are taken in. Of each batch this rank takes every ranks-th event, from its
// own on. The key and an event's place in the order decide what is dropped out.
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
    const float* values;  // (events, features)
    const int64_t* labels;
    const float* weights;  // of each event in the loss
    const uint64_t* places;
    float* value_gradients;  // (events, features), filled in
    int64_t events;
    uint64_t key;
};
}

namespace {

constexpr int CHUNK_TILES = 16;  // tiles that go through all layers together

// Weight gradients are computed in blocks, sixteen sums of which are added over their lanes at once.
constexpr int BLOCK_ROWS = 4, BLOCK_COLUMNS = REGISTER_COUNT == 32 ? 4 : 3;

struct Layer {
    int in, out;
    Activation activation;
    Dropout dropout;
    float *weights, *gradients;
    float* transposed;      // (out, in)
    float *input, *output;  // tiles of [x | 1], and those of the next layer

    int input_stride() const { return (in + 1) * LANES; }
    int output_stride() const { return (out + 1) * LANES; }
};

// The layers of a network, with memory for the values of a chunk.
struct DenseStack {
    std::vector<Layer> layers;
    Dropout input_dropout;
    std::vector<float> raw;
    float* input_gradient;  // of a layer, for one tile
    int64_t weight_count = 0;
    bool has_dropout;
    alignas(64) uint32_t event_words[CHUNK_TILES * LANES];

    explicit DenseStack(const Network& network)
        : input_dropout{network.dropouts[0], network.widths[0], -network.widths[0]},
          has_dropout(input_dropout.rate > 0.0f) {
        const int32_t* widths = network.widths;
        int64_t floats = LANES + CHUNK_TILES * (widths[0] + 1) * LANES;
        int widest = 0;
        for (int l = 0; l < network.layers; ++l) {
            floats += CHUNK_TILES * (widths[l + 1] + 1) * LANES + widths[l] * widths[l + 1];
            widest = std::max(widest, widths[l]);
        }
        raw.resize(floats + widest * LANES);
        float* free = aligned(raw.data());
        input_gradient = free;
        free += widest * LANES;
        int units = 0;
        for (int l = 0; l < network.layers; ++l) {
            const int64_t place = network.weights_before + weight_count;
            Layer layer{widths[l],
                        widths[l + 1],
                        Activation(network.activations[l]),
                        {network.dropouts[l + 1], widths[l + 1], units},
                        network.weights + place,
                        network.gradients + place,
                        nullptr,
                        free,
                        nullptr};
            for (int tile = 1; tile <= CHUNK_TILES; ++tile)
                store(free + tile * layer.input_stride() - LANES, broadcast(1.0f));
            free += CHUNK_TILES * layer.input_stride();
            layer.output = free;
            layers.push_back(layer);
            weight_count += (layer.in + 1) * layer.out;
            units += layer.out;
            has_dropout = has_dropout || layer.dropout.rate > 0.0f;
        }
        free += CHUNK_TILES * layers.back().output_stride();
        for (Layer& layer : layers) {
            layer.transposed = free;
            free += layer.in * layer.out;
        }
    }
};

void transpose(const Layer& layer) {
    for (int n = 0; n < layer.out; ++n)
        for (int k = 0; k < layer.in; ++k)
            layer.transposed[n * layer.in + k] = layer.weights[k * layer.out + n];
}

// out[n] = sum over k of values[k] weights[k, n], for a tile
void tile_product(const float* values, int rows, const float* weights, int columns, float* out) {
    const int blocks = block_count(columns, MAX_SUMS);
    for (int b = 0; b < blocks; ++b) {
        const int from = block_begin(b, columns, blocks);
        with_constant<MAX_SUMS>(block_begin(b + 1, columns, blocks) - from, [&](auto J) {
            constexpr int width = J;
            Lanes sums[width];
#pragma GCC unroll 32
            for (int j = 0; j < width; ++j) sums[j] = broadcast(0.0f);
            add_products(sums, values, rows, weights + from, columns);
#pragma GCC unroll 32
            for (int j = 0; j < width; ++j) store(out + (from + j) * LANES, sums[j]);
        });
    }
}

// What is summed over the events of a batch, lane by lane.
struct BatchSums {
    Lanes loss = broadcast(0.0f), n_correct = broadcast(0.0f);
};

// Adds loss and correct events of a tile; its logits become their gradients. Of equal scores the first class
// counts.
void cross_entropy(float* logits, int classes, Lanes label, Lanes weight, BatchSums& batch) {
    subtract_maximum(logits, classes);
    Lanes best = broadcast(0.0f), own = broadcast(0.0f);
    for (int c = classes; c-- > 0;) {
        const Lanes z = load(logits + c * LANES);
        FOR_EACH_PART(p) {
            best.part[p] = z.part[p] == 0.0f ? Floats{} + float(c) : best.part[p];
            own.part[p] = label.part[p] == float(c) ? z.part[p] : own.part[p];
        }
    }
    const Lanes total = normalised_exponentials(logits, classes);
    for (int c = 0; c < classes; ++c) {
        Lanes d = load(logits + c * LANES);
        FOR_EACH_PART(p)
            d.part[p] =
                weight.part[p] * (d.part[p] - (label.part[p] == float(c) ? Floats{} + 1.0f : Floats{}));
        store(logits + c * LANES, d);
    }
    FOR_EACH_PART(p) {
        batch.loss.part[p] += weight.part[p] * (logarithm(total.part[p]) - own.part[p]);
        const Floats correct = best.part[p] == label.part[p] ? Floats{} + 1.0f : Floats{};
        batch.n_correct.part[p] += weight.part[p] > 0.0f ? correct : Floats{};
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
class SampleTiles {
    const Sample& sample;
    int64_t first, end;
    float share;

public:
    static constexpr bool TAKES_GRADIENTS = false;

    SampleTiles(const Sample& sample, int64_t batch) : sample(sample) {
        const int64_t start = batch * sample.batch_size;
        first = start + sample.rank;
        end = std::min(start + sample.batch_size, sample.events);
        share = 1.0f / float(end - start);
    }

    int64_t tiles() const { return (end - first + LANES * sample.ranks - 1) / (LANES * sample.ranks); }
    int64_t place(int64_t tile, int lane) const { return first + (tile * LANES + lane) * sample.ranks; }
    uint32_t word(int64_t tile, int lane) const { return event_word(sample.key, place(tile, lane)); }

    // Fills in a tile, and prefetches the event of the next batch that will take each lane.
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
class RowTiles {
    const Rows& rows;

public:
    static constexpr bool TAKES_GRADIENTS = true;

    explicit RowTiles(const Rows& rows) : rows(rows) {}

    int64_t tiles() const { return (rows.events + LANES - 1) / LANES; }
    uint32_t word(int64_t tile, int lane) const {
        return event_word(rows.key, rows.places[std::min(tile * LANES + lane, rows.events - 1)]);
    }

    void gather(int64_t tile, int features, float* values, Lanes& label, Lanes& weight) const {
        alignas(64) float labels[LANES] = {}, weights[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t at = tile * LANES + lane;
            const bool there = at < rows.events;
            for (int f = 0; f < features; ++f)
                values[f * LANES + lane] = there ? rows.values[at * features + f] : 0.0f;
            labels[lane] = there ? float(rows.labels[at]) : 0.0f;
            weights[lane] = there ? rows.weights[at] : 0.0f;
        }
        label = load(labels);
        weight = load(weights);
    }

    void take_gradients(int64_t tile, int features, const float* gradients) const {
        for (int lane = 0; lane < LANES && tile * LANES + lane < rows.events; ++lane)
            for (int f = 0; f < features; ++f)
                rows.value_gradients[(tile * LANES + lane) * features + f] = gradients[f * LANES + lane];
    }
};

// Takes a tile through all layers, and what an activation returns through `drop`; returns where the logits
// are.
template <class Drop>
float* forward(DenseStack& stack, int tile, Drop&& drop) {
    float* output = nullptr;
    for (const Layer& layer : stack.layers) {
        output = layer.output + tile * layer.output_stride();
        tile_product(layer.input + tile * layer.input_stride(), layer.in + 1, layer.weights, layer.out,
                     output);
        activate(layer.activation, output, layer.out);
        drop(layer.dropout, output);
    }
    return output;
}

// Gradients of the weights, weighted loss and correct events of the tiles of a batch.
template <class Tiles>
void differentiate(DenseStack& stack, const Tiles& source, float* loss, float* n_correct) {
    for (size_t l = Tiles::TAKES_GRADIENTS ? 0 : 1; l < stack.layers.size(); ++l) transpose(stack.layers[l]);
    std::fill_n(stack.layers[0].gradients, stack.weight_count, 0.0f);
    BatchSums batch;
    const Layer &first = stack.layers[0], &last = stack.layers.back();
    const int64_t all_tiles = source.tiles();
    for (int64_t start = 0; start < all_tiles; start += CHUNK_TILES) {
        const int tiles = int(std::min<int64_t>(CHUNK_TILES, all_tiles - start));
        for (int tile = 0; tile < tiles; ++tile) {
            Lanes label, weight;
            float* values = first.input + tile * first.input_stride();
            source.gather(start + tile, first.in, values, label, weight);
            uint32_t* words = stack.event_words + tile * LANES;
            for (int lane = 0; stack.has_dropout && lane < LANES; ++lane)
                words[lane] = source.word(start + tile, lane);
            const auto drop = [&](const Dropout& dropout, float* some) {
                if (dropout.rate > 0.0f) dropout.forward(words, some);
            };
            drop(stack.input_dropout, values);
            cross_entropy(forward(stack, tile, drop), last.out, label, weight, batch);
        }
        for (size_t l = stack.layers.size(); l-- > 0;) {
            const Layer& layer = stack.layers[l];
            add_outer_product<BLOCK_ROWS, BLOCK_COLUMNS>(layer.input, layer.input_stride(), layer.in + 1,
                                                         layer.output, layer.output_stride(), layer.out,
                                                         tiles, layer.gradients, layer.out);
            if (l == 0 && !Tiles::TAKES_GRADIENTS) break;
            const Dropout& dropout = l > 0 ? stack.layers[l - 1].dropout : stack.input_dropout;
            for (int tile = 0; tile < tiles; ++tile) {
                float* values = layer.input + tile * layer.input_stride();
                tile_product(layer.output + tile * layer.output_stride(), layer.out, layer.transposed,
                             layer.in, stack.input_gradient);
                if (dropout.rate > 0.0f)
                    dropout.backward(stack.event_words + tile * LANES, stack.input_gradient, values);
                if (l > 0)
                    activation_gradient(stack.layers[l - 1].activation, stack.input_gradient, values,
                                        layer.in);
                else if constexpr (Tiles::TAKES_GRADIENTS)
                    source.take_gradients(start + tile, layer.in, stack.input_gradient);
            }
        }
    }
    *loss = sum(batch.loss);
    *n_correct = sum(batch.n_correct);
}

// Class probabilities (events, classes) of all tiles.
template <class Tiles>
void score(DenseStack& stack, const Tiles& source, int64_t events, float* scores) {
    const Layer &first = stack.layers[0], &last = stack.layers.back();
    for (int64_t tile = 0; tile < source.tiles(); ++tile) {
        Lanes label, weight;
        source.gather(tile, first.in, first.input, label, weight);
        float* found = forward(stack, 0, [](const Dropout&, float*) {});
        subtract_maximum(found, last.out);
        normalised_exponentials(found, last.out);
        for (int lane = 0; lane < std::min<int64_t>(LANES, events - tile * LANES); ++lane)
            for (int c = 0; c < last.out; ++c)
                scores[(tile * LANES + lane) * last.out + c] = found[c * LANES + lane];
    }
}

void update(const Network& network, int64_t count, float rate) {
    apply_gradients(network.rule, count, rate, network.gradients, network.first_moments,
                    network.second_moments, network.weights);
}

}  // namespace

extern "C" {

// Steps on the batches from first on, with one rate, one loss and one number of correct events for each.
void hepdask_dense_steps(const Network* network, const Sample* sample, int64_t first, int64_t count,
                         const float* rates, float* losses, float* n_correct) {
    const FlushSubnormal flush;
    DenseStack stack(*network);
    for (int64_t i = 0; i < count; ++i) {
        differentiate(stack, SampleTiles(*sample, first + i), losses + i, n_correct + i);
        update(*network, network->weights_before + stack.weight_count, rates[i]);
    }
}

// The two halves of a step, for ranks that add up their gradients in between.
void hepdask_dense_gradients(const Network* network, const Sample* sample, int64_t batch, float* loss,
                             float* n_correct) {
    const FlushSubnormal flush;
    DenseStack stack(*network);
    differentiate(stack, SampleTiles(*sample, batch), loss, n_correct);
}

void hepdask_dense_update(const Network* network, float rate) {
    const FlushSubnormal flush;
    update(*network, network->weights_before + DenseStack(*network).weight_count, rate);
}

// Scores of the events in their order.
void hepdask_dense_scores(const Network* network, const Sample* sample, float* scores) {
    const FlushSubnormal flush;
    DenseStack stack(*network);
    score(stack, SampleTiles(*sample, 0), sample->events, scores);
}

// Gradients and scores of rows.
void hepdask_dense_rows(const Network* network, const Rows* rows, float* loss, float* n_correct) {
    const FlushSubnormal flush;
    DenseStack stack(*network);
    differentiate(stack, RowTiles(*rows), loss, n_correct);
}

void hepdask_dense_rows_scores(const Network* network, const Rows* rows, float* scores) {
    const FlushSubnormal flush;
    DenseStack stack(*network);
    score(stack, RowTiles(*rows), rows->events, scores);
}
}
