// GRU and LSTM over events of any length, forward and backward through time, without a single padded step more
// than the longest event of a tile needs.
//
// Sixteen events ride in the lanes of SIMD registers: a tile. They end together and start when it is their turn, so
// that nothing has to be undone in the backward pass: before its first particle, a lane keeps its state at zero
// because its update gate is 1 (GRU) or its input gate is 0 (LSTM), and all its gradients vanish by themselves.
//
// The operand of a step is [x | 1 | h]: the particle's features, a one for the bias, the state. Weights are packed in
// the order in which a step reads them. Weight gradients are a matrix product over a few dozen steps at a time, each
// summed from zero before it is added, so that long events lose no digits.
//
// hepdask/kernels/recurrent.py is the only caller; hepdask/kernels/build.py compiles this file.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "lanes.h"

namespace {

constexpr int ROWS = REGISTERS == 32 ? 5 : 4, COLUMNS = REGISTERS == 32 ? 5 : 3;
constexpr int CHUNK = 64;  // steps of one product of the weight gradient

inline void sine_cosine(Vec angle, Vec& sine, Vec& cosine) {
    Vec shifted = angle * 0.636619772f + ROUND;
    Vec n = shifted - ROUND;
    Vec r = angle - n * 1.5703125f - n * 4.83751297e-4f - n * 7.54978995e-8f;
    Vec q = r * r;
    Vec s = r + r * q * (-1.0f / 6 + q * (1.0f / 120 + q * (-1.0f / 5040 + q * (1.0f / 362880))));
    Vec c = 1.0f + q * (-0.5f + q * (1.0f / 24 + q * (-1.0f / 720 + q * (1.0f / 40320 - q * (1.0f / 3628800)))));
    Int turn = (Int)shifted & 3;
    Vec odd_s = (turn & 1) != 0 ? c : s, odd_c = (turn & 1) != 0 ? s : c;
    sine = (turn & 2) != 0 ? -odd_s : odd_s;
    cosine = ((turn + 1) & 2) != 0 ? -odd_c : odd_c;
}

inline Vec half_difference(Vec x, Vec growth, Vec shrink) {  // sinh; near zero the difference has lost its digits
    Vec q = x * x;
    Vec series = x + x * q * (1.0f / 6 + q * (1.0f / 120 + q * (1.0f / 5040 + q * (1.0f / 362880))));
    return q < 1.0f ? series : 0.5f * (growth - shrink);
}

// ------------------------------------------------------------------------------------------------------ the layer

enum Cell : int32_t { GRU = 0, LSTM = 1 };
constexpr int GATES = 4;

}  // namespace

extern "C" {

// A recurrent layer with its weights in Keras' layout; GRU with reset_after=True.
struct Layer {
    int32_t cell, features, units;
    const float *kernel, *recurrent, *bias;  // (F, 3H), (H, 3H), (2, 3H); LSTM (F, 4H), (H, 4H), (4H)
};

// Where the features come from: rows of features, or the stored columns, from which all 19 are made and scaled here.
struct Input {
    const float* rows;
    const float* columns[9];
    const int8_t *kind, *charge;
    const float *shift, *factor;
    const int32_t* chosen;
};

// Sixteen events (or fewer): their places and lengths, the steps of the longest.
struct Tiles {
    int64_t count;
    const int64_t *first, *length;  // (count * 16), of each lane
    const int64_t *steps, *memory;  // (count), (count + 1): longest event; where its floats start in the memory
};
}

namespace {

// The gates of a unit are kept in four slots. GRU: candidate, update, reset, recurrent part of the candidate. Input
// weights act on the first three, recurrent ones on the last three. LSTM: input, forget, cell, output; both on all.
struct Shape {
    Cell cell;
    int features, units;

    explicit Shape(const Layer& layer) : cell(Cell(layer.cell)), features(layer.features), units(layer.units) {}
    int gates() const { return cell == GRU ? 3 : 4; }
    int outputs() const { return gates() * units; }
    int operand() const { return (features + 1 + units) * LANES; }  // floats of [x | 1 | h] for a tile
    int saved() const { return GATES * units * LANES; }
    int cells() const { return cell == LSTM ? units * LANES : 0; }
    int recurrent_slot() const { return cell == GRU ? 1 : 0; }
    int weights() const { return (features + units + (cell == GRU ? 2 : 1)) * outputs(); }
};

constexpr int UNITS[2] = {MOST / 3 > 8 ? 8 : MOST / 3, MOST / 4 > 6 ? 6 : (MOST / 4 ? MOST / 4 : 1)};
constexpr int STATES = MOST;

struct Packed {
    Shape shape;
    std::vector<float> forward, backward;

    explicit Packed(const Layer& layer) : shape(layer) {
        const int F = shape.features, H = shape.units, N = shape.outputs(), G = shape.gates();
        // Keras' order is update, reset, candidate: the candidate comes last here too, its recurrent part with it
        const int many = blocks(H, UNITS[shape.cell]);
        for (int b = 0; b < many; ++b) {
            const int from = begin(b, H, many), to = begin(b + 1, H, many);
            auto rows = [&](const float* matrix, int count) {
                for (int k = 0; k < count; ++k)
                    for (int g = 0; g < G; ++g)
                        for (int j = from; j < to; ++j) forward.push_back(matrix[k * N + g * H + j]);
            };
            if (shape.cell == GRU) {
                for (int g = 0; g < 3; ++g)
                    for (int j = from; j < to; ++j)
                        forward.push_back(layer.bias[g * H + j] + (g < 2 ? layer.bias[N + g * H + j] : 0.0f));
                for (int j = from; j < to; ++j) forward.push_back(layer.bias[N + 2 * H + j]);
            } else {
                rows(layer.bias, 1);
            }
            rows(layer.kernel, F);
            rows(layer.recurrent, H);
        }
        const int states = blocks(H, STATES);
        for (int b = 0; b < states; ++b)
            for (int n = 0; n < N; ++n)
                for (int j = begin(b, H, states); j < begin(b + 1, H, states); ++j)
                    backward.push_back(layer.recurrent[j * N + n]);
    }
};

// ------------------------------------------------------------------------------------------------------- features

inline void expand(const Input& input, const int64_t* place, int features, float* to) {
    alignas(64) float column[11][LANES];
    for (int c = 0; c < 9; ++c)
        for (int lane = 0; lane < LANES; ++lane)
            column[c][lane] = place[lane] < 0 ? 0.0f : input.columns[c][place[lane]];
    for (int lane = 0; lane < LANES; ++lane) {
        column[9][lane] = place[lane] < 0 ? -1.0f : float(input.kind[place[lane]]);
        column[10][lane] = place[lane] < 0 ? 0.0f : float(input.charge[place[lane]]);
    }
    alignas(64) float feature[19][LANES];
    for (int at = 0; at < LANES; at += WIDTH) {
        auto from = [&](int c) { return *reinterpret_cast<const Vec*>(&column[c][at]); };
        auto put = [&](int f, Vec value) { *reinterpret_cast<Vec*>(&feature[f][at]) = value; };
        Vec pt = from(0), eta = from(1), sine, cosine;
        Vec growth = exponential(clamp(eta, -80.0f, 80.0f)), shrink = 1.0f / growth;
        sine_cosine(from(2), sine, cosine);
        put(0, pt * (0.5f * (growth + shrink)));
        put(1, pt * cosine);
        put(2, pt * sine);
        put(3, pt * half_difference(eta, growth, shrink));
        for (int c = 0; c < 9; ++c) put(4 + c, from(c));
        for (int kind = 0; kind < 5; ++kind) put(13 + kind, from(9) == float(kind) ? Vec{} + 1.0f : Vec{});
        put(18, from(10));
    }
    for (int f = 0; f < features; ++f) {
        const int c = input.chosen[f];
        const float shift = input.shift[c], factor = input.factor[c];
        store(to + f * LANES, map([=](Vec x) { return (x - shift) * factor; }, load(feature[c])));
    }
}

inline void copy_rows(const Input& input, const int64_t* place, int features, float* to) {
    for (int lane = 0; lane < LANES; ++lane)
        if (place[lane] < 0)
            for (int f = 0; f < features; ++f) to[f * LANES + lane] = 0.0f;
        else
            for (int f = 0; f < features; ++f) to[f * LANES + lane] = input.rows[place[lane] * features + f];
}

// -------------------------------------------------------------------------------------------------------- forward

struct Step {
    const float* now;   // [x | 1 | h]
    float* next;        // h of the next step
    float* saved;       // the four slots
    const float* cell;  // LSTM: c, and that of the next step
    float* next_cell;
    Lanes started;  // 1 in lanes whose event has begun, 0 before
};

template <int J>
const float* gru_units(const Shape& s, const Step& step, int from, const float* weights) {
    Lanes sums[3 * J], candidate[J];
#pragma GCC unroll 32
    for (int n = 0; n < 3 * J; ++n) sums[n] = all(weights[n]);
    weights += 3 * J;
    const float* recurrent_bias = weights;
    weights = add_products(sums, step.now, s.features, weights + J);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        candidate[j] = sums[2 * J + j];
        sums[2 * J + j] = all(recurrent_bias[j]);
    }
    const float* state = step.now + (s.features + 1) * LANES;
    weights = add_products(sums, state, s.units, weights);
    const int slot = s.units * LANES;
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        const int at = (from + j) * LANES;
        const Lanes z = map([](Vec x, Vec on) { return on > 0.0f ? sigmoid(x) : Vec{} + 1.0f; }, sums[j], step.started);
        const Lanes r = map(sigmoid, sums[J + j]);
        const Lanes n = map([](Vec x, Vec r, Vec h) { return tanh(x + r * h); }, candidate[j], r, sums[2 * J + j]);
        store(step.next + at, map([](Vec z, Vec h, Vec n) { return n + z * (h - n); }, z, load(state + at), n));
        store(step.saved + at, n);
        store(step.saved + slot + at, z);
        store(step.saved + 2 * slot + at, r);
        store(step.saved + 3 * slot + at, sums[2 * J + j]);
    }
    return weights;
}

template <int J>
const float* lstm_units(const Shape& s, const Step& step, int from, const float* weights) {
    Lanes sums[4 * J];
#pragma GCC unroll 32
    for (int n = 0; n < 4 * J; ++n) sums[n] = all(weights[n]);
    weights = add_products(sums, step.now, s.features, weights + 4 * J);
    weights = add_products(sums, step.now + (s.features + 1) * LANES, s.units, weights);
    const int slot = s.units * LANES;
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        const int at = (from + j) * LANES;
        const Lanes i = map([](Vec x, Vec on) { return on > 0.0f ? sigmoid(x) : Vec{}; }, sums[j], step.started);
        const Lanes f = map(sigmoid, sums[J + j]), g = map(tanh, sums[2 * J + j]), o = map(sigmoid, sums[3 * J + j]);
        const Lanes c = map([](Vec f, Vec c, Vec i, Vec g) { return f * c + i * g; }, f, load(step.cell + at), i, g);
        store(step.next_cell + at, c);
        store(step.next + at, map([](Vec o, Vec c) { return o * tanh(c); }, o, c));
        store(step.saved + at, i);
        store(step.saved + slot + at, f);
        store(step.saved + 2 * slot + at, g);
        store(step.saved + 3 * slot + at, o);
    }
    return weights;
}

// The memory of a tile: operands of all steps and one more, slots of all steps, cells of all steps and one more. Where
// no backward pass follows, two operands, one set of slots and two cells serve all steps in turn.
struct Memory {
    const Shape& s;
    float* start;
    int64_t steps;
    bool kept;

    float* operand(int64_t t) const { return start + (kept ? t : t & 1) * s.operand(); }
    float* saved(int64_t t) const { return start + (kept ? steps + 1 : 2) * s.operand() + (kept ? t * s.saved() : 0); }
    float* cell(int64_t t) const { return saved(kept ? steps : 0) + (kept ? 0 : s.saved()) + (kept ? t : t & 1) * s.cells(); }
};

void forward_tile(const Packed& packed, const Input& input, const Tiles& tiles, int64_t tile, const Memory& memory, float* out) {
    const Shape& s = packed.shape;
    const int64_t *first = tiles.first + tile * LANES, *length = tiles.length + tile * LANES;
    const int64_t steps = memory.steps;
    const int F = s.features, H = s.units, many = blocks(H, UNITS[s.cell]);
    std::memset(memory.operand(0) + (F + 1) * LANES, 0, 4 * H * LANES);
    if (s.cell == LSTM) std::memset(memory.cell(0), 0, 4 * s.cells());
    for (int64_t t = 0; t < steps; ++t) {
        alignas(64) int64_t place[LANES];
        alignas(64) float started[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t before = steps - length[lane];
            place[lane] = t >= before ? first[lane] + t - before : -1;
            started[lane] = t >= before;
        }
        float* now = memory.operand(t);
        if (input.rows) copy_rows(input, place, F, now);
        else expand(input, place, F, now);
        store(now + F * LANES, all(1.0f));
        const Step step{now, memory.operand(t + 1) + (F + 1) * LANES, memory.saved(t), memory.cell(t), memory.cell(t + 1), load(started)};
        const float* weights = packed.forward.data();
        for (int b = 0; b < many; ++b) {
            const int from = begin(b, H, many), units = begin(b + 1, H, many) - from;
            if (s.cell == GRU)
                with<UNITS[GRU]>(units, [&](auto J) { weights = gru_units<J>(s, step, from, weights); });
            else
                with<UNITS[LSTM]>(units, [&](auto J) { weights = lstm_units<J>(s, step, from, weights); });
        }
    }
    const float* state = memory.operand(steps) + (F + 1) * LANES;
    for (int lane = 0; lane < LANES; ++lane)
        for (int j = 0; j < H; ++j) out[lane * H + j] = state[j * LANES + lane];
}

// ------------------------------------------------------------------------------------------------------- backward

// What the step before will need, on its way while this one is computed.
inline void prefetch(const float* from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(from + i);
}

// The gradients of the gates before their activation take the places of what was saved of them.
void gru_gates(const Shape& s, const float* state, float* saved, const float* gradient, float* passed) {
    const int slot = s.units * LANES;
    for (int at = 0; at < slot; at += LANES) {
        float *n_ = saved + at, *z_ = n_ + slot, *r_ = z_ + slot, *h_ = r_ + slot;
        const Lanes d = load(gradient + at), n = load(n_), z = load(z_), r = load(r_);
        const Lanes dn = map([](Vec d, Vec z, Vec n) { return d * (1.0f - z) * (1.0f - n * n); }, d, z, n);
        store(passed + at, map([](Vec d, Vec z) { return d * z; }, d, z));
        store(z_, map([](Vec d, Vec h, Vec n, Vec z) { return d * (h - n) * z * (1.0f - z); }, d, load(state + at), n, z));
        store(r_, map([](Vec dn, Vec h, Vec r) { return dn * h * r * (1.0f - r); }, dn, load(h_), r));
        store(h_, map([](Vec dn, Vec r) { return dn * r; }, dn, r));
        store(n_, dn);
    }
}

void lstm_gates(const Shape& s, const float* cell, const float* next_cell, float* saved, const float* gradient, float* cell_gradient, float* passed) {
    const int slot = s.units * LANES;
    for (int at = 0; at < slot; at += LANES) {
        float *i_ = saved + at, *f_ = i_ + slot, *g_ = f_ + slot, *o_ = g_ + slot;
        const Lanes d = load(gradient + at), i = load(i_), f = load(f_), g = load(g_), o = load(o_);
        const Lanes t = map(tanh, load(next_cell + at));
        const Lanes dc = map([](Vec dc, Vec d, Vec o, Vec t) { return dc + d * o * (1.0f - t * t); }, load(cell_gradient + at), d, o, t);
        store(o_, map([](Vec d, Vec t, Vec o) { return d * t * o * (1.0f - o); }, d, t, o));
        store(i_, map([](Vec dc, Vec g, Vec i) { return dc * g * i * (1.0f - i); }, dc, g, i));
        store(g_, map([](Vec dc, Vec i, Vec g) { return dc * i * (1.0f - g * g); }, dc, i, g));
        store(f_, map([](Vec dc, Vec c, Vec f) { return dc * c * f * (1.0f - f); }, dc, load(cell + at), f));
        store(cell_gradient + at, map([](Vec dc, Vec f) { return dc * f; }, dc, f));
        store(passed + at, all(0.0f));
    }
}

// Of the state before, from the gates: added to what is passed on directly.
void state_gradient(const Packed& packed, const float* gates, float* gradient) {
    const int H = packed.shape.units, many = blocks(H, STATES), N = packed.shape.outputs();
    const float* weights = packed.backward.data();
    for (int b = 0; b < many; ++b) {
        const int from = begin(b, H, many);
        with<STATES>(begin(b + 1, H, many) - from, [&](auto J) {
            constexpr int count = J;
            Lanes sums[count];
#pragma GCC unroll 32
            for (int j = 0; j < count; ++j) sums[j] = load(gradient + (from + j) * LANES);
            weights = add_products(sums, gates, N, weights);
#pragma GCC unroll 32
            for (int j = 0; j < count; ++j) store(gradient + (from + j) * LANES, sums[j]);
        });
    }
}

// Gradients of a tile in the order of the slots: kernel and bias (F + 1, N), recurrent kernel (H, N); GRU: recurrent
// bias of the candidate (H).
void backward_tile(const Packed& packed, const float* state_out, const Memory& memory, float* gradients) {
    const Shape& s = packed.shape;
    const int F = s.features, H = s.units, N = s.outputs();
    std::vector<float> raw(3 * H * LANES + LANES);
    float* gradient = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(raw.data()) + 63) & ~uintptr_t(63));
    float *passed = gradient + H * LANES, *cell_gradient = passed + H * LANES;
    std::memset(cell_gradient, 0, 4 * H * LANES);
    for (int lane = 0; lane < LANES; ++lane)
        for (int j = 0; j < H; ++j) gradient[j * LANES + lane] = state_out[lane * H + j];
    float *input_part = gradients, *recurrent_part = input_part + (F + 1) * N, *bias_part = recurrent_part + H * N;
    for (int64_t end = memory.steps; end > 0; end -= CHUNK) {
        const int64_t start = std::max<int64_t>(0, end - CHUNK);
        for (int64_t t = end - 1; t >= start; --t) {
            float* saved = memory.saved(t);
            if (t > 0) prefetch(memory.saved(t - 1), s.saved());
            if (s.cell == GRU) gru_gates(s, memory.operand(t) + (F + 1) * LANES, saved, gradient, passed);
            else lstm_gates(s, memory.cell(t), memory.cell(t + 1), saved, gradient, cell_gradient, passed);
            state_gradient(packed, saved + s.recurrent_slot() * H * LANES, passed);
            std::swap(gradient, passed);
        }
        const int steps = int(end - start);
        const float *a = memory.operand(start), *state = a + (F + 1) * LANES, *b = memory.saved(start);
        const float* recurrent = b + s.recurrent_slot() * H * LANES;
        add_outer<ROWS, COLUMNS>(a, s.operand(), F + 1, b, s.saved(), N, steps, input_part, N);
        add_outer<ROWS, COLUMNS>(state, s.operand(), H, recurrent, s.saved(), N, steps, recurrent_part, N);
        if (s.cell == GRU)
            add_outer<ROWS, COLUMNS>(a + F * LANES, s.operand(), 1, b + 3 * H * LANES, s.saved(), H, steps, bias_part, H);
    }
}

// From the order of the slots to Keras' own: GRU update, reset, candidate.
void to_keras(const Shape& s, const float* mine, float* kernel, float* recurrent, float* bias) {
    const int F = s.features, H = s.units, N = s.outputs();
    const float* own = mine + (F + 1) * N;
    if (s.cell == LSTM) {
        std::memcpy(kernel, mine, 4 * F * N);
        std::memcpy(bias, mine + F * N, 4 * N);
        std::memcpy(recurrent, own, 4 * H * N);
        return;
    }
    for (int k = 0; k <= F; ++k) {
        float* row = k < F ? kernel + k * N : bias;
        std::memcpy(row, mine + k * N + H, 8 * H);
        std::memcpy(row + 2 * H, mine + k * N, 4 * H);
    }
    std::memcpy(recurrent, own, 4 * H * N);
    std::memcpy(bias + N, bias, 8 * H);
    std::memcpy(bias + N + 2 * H, own + H * N, 4 * H);
}

template <class F>
void in_parallel(int64_t count, int threads, F&& f) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        const FlushSubnormal flush;
        for (int64_t i; (i = next++) < count;) f(i);
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(work);
    work();
    for (auto& thread : others) thread.join();
}

}  // namespace

extern "C" {

int32_t hepdask_width() { return WIDTH; }

// Floats of memory a tile of so many steps needs.
int64_t hepdask_floats(const Layer* layer, int64_t steps, int32_t kept) {
    const Shape s(*layer);
    return kept ? (steps + 1) * (s.operand() + s.cells()) + steps * s.saved() : 2 * (s.operand() + s.cells()) + s.saved();
}

int64_t hepdask_weights(const Layer* layer) { return Shape(*layer).weights(); }

// Last state of each lane, (count * 16, H). Memory is aligned to 64 bytes.
void hepdask_forward(const Layer* layer, const Input* input, const Tiles* tiles, float* memory, int32_t kept, int32_t threads, float* state) {
    const Packed packed(*layer);
    in_parallel(tiles->count, threads, [&](int64_t tile) {
        const Memory own{packed.shape, memory + tiles->memory[tile], tiles->steps[tile], kept != 0};
        forward_tile(packed, *input, *tiles, tile, own, state + tile * LANES * packed.shape.units);
    });
}

// Gradients of the weights from the gradient of the last states; uses up the memory of the forward pass.
void hepdask_backward(const Layer* layer, const Tiles* tiles, float* memory, int32_t threads, const float* state_gradient, float* kernel, float* recurrent, float* bias) {
    const Packed packed(*layer);
    const Shape& s = packed.shape;
    // one sum a tile, added up in their order: the same for any number of threads
    const int64_t floats = s.weights();
    std::vector<float> all(tiles->count * floats), total(floats);
    in_parallel(tiles->count, threads, [&](int64_t tile) {
        const Memory own{s, memory + tiles->memory[tile], tiles->steps[tile], true};
        backward_tile(packed, state_gradient + tile * LANES * s.units, own, all.data() + tile * floats);
    });
    for (int64_t tile = 0; tile < tiles->count; ++tile)
        for (int64_t i = 0; i < floats; ++i) total[i] += all[tile * floats + i];
    to_keras(s, total.data(), kernel, recurrent, bias);
}

// 19 scaled features of particles as rows, (n, F): what a tile of the stored columns computes, for tests and others.
void hepdask_expand(const Input* input, int64_t count, int32_t features, float* rows) {
    for (int64_t from = 0; from < count; from += LANES) {
        alignas(64) int64_t place[LANES];
        for (int lane = 0; lane < LANES; ++lane) place[lane] = from + lane < count ? from + lane : -1;
        std::vector<float> raw(features * LANES + LANES);
        float* tile = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(raw.data()) + 63) & ~uintptr_t(63));
        expand(*input, place, features, tile);
        for (int lane = 0; lane < LANES && from + lane < count; ++lane)
            for (int f = 0; f < features; ++f) rows[(from + lane) * features + f] = tile[f * LANES + lane];
    }
}
}
