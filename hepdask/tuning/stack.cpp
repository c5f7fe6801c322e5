// Training of small dense networks on one core, with nothing between one step and the next.
//
// Activations lie feature by feature, the events of a batch side by side in SIMD lanes, so that forward pass, gradients of the
// states and gradients of the weights are all products of short matrices with long rows. Batches are filled up to whole
// vectors with events of weight 0. Parameters lie layer by layer: weights (outputs, inputs), then biases.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int STEP = 2 * LANES;  // events that are computed together
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

enum Activation { RELU = 0, TANH = 1, ELU = 2 };

struct Net {
    int32_t layers, activation, sizes[16];
    float dropout;
};

struct Free { void operator()(float* p) const { std::free(p); } };
typedef std::unique_ptr<float, Free> Floats;

Floats room(size_t floats) {
    size_t bytes = (4 * floats + 63) / 64 * 64;
    float* p = static_cast<float*>(std::aligned_alloc(64, bytes ? bytes : 64));
    std::memset(p, 0, bytes);
    return Floats(p);
}

inline float sum(vec v) {
    float total = 0;
    for (int k = 0; k < LANES; ++k) total += v[k];
    return total;
}

// out[r] = bias[r] + sum_c w[r * by_row + c * by_column] * in[c], R rows for all events
template <int R>
void rows_of_product(float* out, const float* in, int columns, const float* w, int by_row, int by_column,
                     const float* bias, int events) {
    for (int b = 0; b < events; b += STEP) {
        vec acc[R][2];
        for (int r = 0; r < R; ++r)
            for (int k = 0; k < 2; ++k) acc[r][k] = vec{} + (bias ? bias[r] : 0.0f);
        for (int c = 0; c < columns; ++c) {
            const vec* x = reinterpret_cast<const vec*>(in + (size_t)c * events + b);
            for (int r = 0; r < R; ++r) {
                float factor = w[r * by_row + c * by_column];
                acc[r][0] += factor * x[0];
                acc[r][1] += factor * x[1];
            }
        }
        for (int r = 0; r < R; ++r)
            for (int k = 0; k < 2; ++k) reinterpret_cast<vec*>(out + (size_t)r * events + b)[k] = acc[r][k];
    }
}

void product(float* out, int rows, const float* in, int columns, const float* w, int by_row, int by_column,
             const float* bias, int events) {
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        rows_of_product<4>(out + (size_t)r * events, in, columns, w + r * by_row, by_row, by_column,
                           bias ? bias + r : nullptr, events);
    for (; r < rows; ++r)
        rows_of_product<1>(out + (size_t)r * events, in, columns, w + r * by_row, by_row, by_column,
                           bias ? bias + r : nullptr, events);
}

// gradient of R x C weights: g[r][c] = sum_b delta[r][b] * in[c][b]
template <int R, int C>
void gradient_tile(float* g, int stride, const float* delta, const float* in, int events) {
    vec acc[R][C] = {};
    for (int b = 0; b < events; b += LANES)
        for (int r = 0; r < R; ++r) {
            vec d = *reinterpret_cast<const vec*>(delta + (size_t)r * events + b);
            for (int c = 0; c < C; ++c) acc[r][c] += d * *reinterpret_cast<const vec*>(in + (size_t)c * events + b);
        }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) g[r * stride + c] = sum(acc[r][c]);
}

template <int R>
void gradient_rows(float* g, int columns, const float* delta, const float* in, int events) {
    int c = 0;
    for (; c + 4 <= columns; c += 4) gradient_tile<R, 4>(g + c, columns, delta, in + (size_t)c * events, events);
    for (; c < columns; ++c) gradient_tile<R, 1>(g + c, columns, delta, in + (size_t)c * events, events);
}

void weight_gradient(float* g, int rows, int columns, const float* delta, const float* in, int events) {
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        gradient_rows<4>(g + (size_t)r * columns, columns, delta + (size_t)r * events, in, events);
    for (; r < rows; ++r)
        gradient_rows<1>(g + (size_t)r * columns, columns, delta + (size_t)r * events, in, events);
}

void activate(float* x, size_t count, int kind) {
    if (kind == RELU)
        for (size_t i = 0; i < count; ++i) x[i] = x[i] > 0 ? x[i] : 0;
    else if (kind == TANH)
        for (size_t i = 0; i < count; ++i) x[i] = std::tanh(x[i]);
    else
        for (size_t i = 0; i < count; ++i) x[i] = x[i] > 0 ? x[i] : std::expm1(x[i]);
}

// times the derivative, from the activated value
void slope(float* delta, const float* x, size_t count, int kind) {
    if (kind == RELU)
        for (size_t i = 0; i < count; ++i) delta[i] = x[i] > 0 ? delta[i] : 0;
    else if (kind == TANH)
        for (size_t i = 0; i < count; ++i) delta[i] *= 1 - x[i] * x[i];
    else
        for (size_t i = 0; i < count; ++i) delta[i] *= x[i] > 0 ? 1 : x[i] + 1;
}

// SplitMix64 (Steele, Lea, Flood 2014)
inline uint64_t mixed(uint64_t x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

struct Work {
    const Net& net;
    int events;
    std::vector<Floats> states, masked, masks, deltas;

    Work(const Net& n, int e) : net(n), events((e + STEP - 1) / STEP * STEP) {
        for (int l = 0; l <= net.layers; ++l) {
            size_t floats = (size_t)net.sizes[l] * events;
            bool hidden = l > 0 && l < net.layers && net.dropout > 0;
            states.push_back(room(floats));
            deltas.push_back(room(floats));
            masks.push_back(room(hidden ? floats : 0));
            masked.push_back(room(hidden ? floats : 0));
        }
    }

    const float* input(int layer, bool training) const {
        bool hidden = layer > 0 && net.dropout > 0 && training;
        return hidden ? masked[layer].get() : states[layer].get();
    }

    void load(const float* rows, const int64_t* index, int count) {
        int width = net.sizes[0];
        float* to = states[0].get();
        for (int b = 0; b < count; ++b) {
            const float* row = rows + index[b] * width;
            for (int f = 0; f < width; ++f) to[(size_t)f * events + b] = row[f];
        }
        for (int b = count; b < events; ++b)
            for (int f = 0; f < width; ++f) to[(size_t)f * events + b] = 0;
    }

    void forward(const float* parameters, uint64_t dropout_seed, bool training) {
        for (int l = 0; l < net.layers; ++l) {
            int in = net.sizes[l], out = net.sizes[l + 1];
            float* to = states[l + 1].get();
            product(to, out, input(l, training), in, parameters, in, 1, parameters + (size_t)in * out, events);
            parameters += (size_t)(in + 1) * out;
            size_t count = (size_t)out * events;
            if (l + 1 == net.layers) break;
            activate(to, count, net.activation);
            if (training && net.dropout > 0) {
                float keep = 1 / (1 - net.dropout);
                uint64_t below = (uint64_t)((double)net.dropout * 4294967296.0);
                float *mask = masks[l + 1].get(), *kept = masked[l + 1].get();
                for (size_t i = 0; i < count; ++i) {
                    uint64_t drawn = mixed(dropout_seed + ((uint64_t)l << 40) + i) >> 32;
                    mask[i] = drawn < below ? 0 : keep;
                    kept[i] = to[i] * mask[i];
                }
            }
        }
        softmax();
    }

    void softmax() {
        int classes = net.sizes[net.layers];
        float* x = states[net.layers].get();
        for (int b = 0; b < events; ++b) {
            float most = x[b], total = 0;
            for (int k = 1; k < classes; ++k) most = std::fmax(most, x[(size_t)k * events + b]);
            for (int k = 0; k < classes; ++k) total += x[(size_t)k * events + b] = std::exp(x[(size_t)k * events + b] - most);
            for (int k = 0; k < classes; ++k) x[(size_t)k * events + b] /= total;
        }
    }

    // gradients of the weighted mean cross-entropy; adds loss and hits
    void backward(const float* parameters, float* gradients, const int32_t* labels, const float* weights,
                  const int64_t* index, int count, double* loss, double* hits) {
        int classes = net.sizes[net.layers];
        const float* p = states[net.layers].get();
        float* delta = deltas[net.layers].get();
        for (int b = 0; b < events; ++b) {
            float weight = b < count ? weights[index[b]] / count : 0;
            int label = b < count ? labels[index[b]] : 0, best = 0;
            for (int k = 0; k < classes; ++k) {
                size_t at = (size_t)k * events + b;
                if (p[at] > p[(size_t)best * events + b]) best = k;
                delta[at] = weight * (p[at] - (k == label));
            }
            if (b < count) {
                // as Keras does, probabilities stay 1e-7 away from 0
                *loss -= weights[index[b]] * std::log(std::fmax(p[(size_t)label * events + b], 1e-7f));
                *hits += best == label;
            }
        }
        size_t end = 0;
        for (int l = 0; l < net.layers; ++l) end += (size_t)(net.sizes[l] + 1) * net.sizes[l + 1];
        for (int l = net.layers - 1; l >= 0; --l) {
            int in = net.sizes[l], out = net.sizes[l + 1];
            size_t start = end - (size_t)(in + 1) * out;
            const float* d = deltas[l + 1].get();
            weight_gradient(gradients + start, out, in, d, input(l, true), events);
            for (int r = 0; r < out; ++r) {
                vec total = {};
                for (int b = 0; b < events; b += LANES) total += *reinterpret_cast<const vec*>(d + (size_t)r * events + b);
                gradients[start + (size_t)in * out + r] = sum(total);
            }
            if (l > 0) {
                size_t floats = (size_t)in * events;
                float* to = deltas[l].get();
                product(to, in, d, out, parameters + start, 1, in, nullptr, events);
                if (net.dropout > 0) {
                    const float* mask = masks[l].get();
                    for (size_t i = 0; i < floats; ++i) to[i] *= mask[i];
                }
                slope(to, states[l].get(), floats, net.activation);
            }
            end = start;
        }
    }
};

}  // namespace

extern "C" {

// One epoch: a step of Adam for each batch of `order`. `result` gets the sums of losses and of hits.
void hepdask_stack_train(const Net* net, const float* rows, const int32_t* labels, const float* weights,
                         const int64_t* order, int64_t count, int32_t batch, float rate, uint64_t seed,
                         float* parameters, float* mean, float* square, int64_t* steps, double* result) {
    size_t floats = 0;
    for (int l = 0; l < net->layers; ++l) floats += (size_t)(net->sizes[l] + 1) * net->sizes[l + 1];
    Floats gradients = room(floats);
    const float* g = gradients.get();
    result[0] = result[1] = 0;
    std::unique_ptr<Work> work;
    int size = 0;
    for (int64_t first = 0; first < count; first += batch) {
        int events = (int)(count - first < batch ? count - first : batch);
        if (events != size) work.reset(new Work(*net, size = events));
        work->load(rows, order + first, events);
        work->forward(parameters, mixed(seed + (uint64_t)*steps), true);
        work->backward(parameters, gradients.get(), labels, weights, order + first, events, result, result + 1);
        double t = (double)++*steps;
        float alpha = (float)(rate * std::sqrt(1 - std::pow(0.999, t)) / (1 - std::pow(0.9, t)));
        for (size_t i = 0; i < floats; ++i) {
            mean[i] += (g[i] - mean[i]) * 0.1f;
            square[i] += (g[i] * g[i] - square[i]) * 0.001f;
            parameters[i] -= alpha * mean[i] / (std::sqrt(square[i]) + 1e-7f);
        }
    }
}

// Class probabilities (count, classes) of the events `index`.
void hepdask_stack_scores(const Net* net, const float* rows, const int64_t* index, int64_t count,
                          const float* parameters, float* scores) {
    constexpr int BATCH = 512;
    int classes = net->sizes[net->layers];
    Work work(*net, BATCH);
    for (int64_t first = 0; first < count; first += BATCH) {
        int events = (int)(count - first < BATCH ? count - first : BATCH);
        work.load(rows, index + first, events);
        work.forward(parameters, 0, false);
        const float* p = work.states[net->layers].get();
        for (int b = 0; b < events; ++b)
            for (int k = 0; k < classes; ++k) scores[(first + b) * classes + k] = p[(size_t)k * work.events + b];
    }
}
}
