// GRU and LSTM over events of any length, forward and backward through time, without a single padded step
// more than the longest event of a tile needs. With the particle x, the state h, and s the sigmoid:
//
//   GRU    z = s(W_z x + U_z h + b_z)    r = s(W_r x + U_r h + b_r)
//          n = tanh(W_n x + b_n + r (U_n h + b'_n))    h' = z h + (1 - z) n
//   LSTM   i, f, o = s(W x + U h + b), each with its own    g = tanh(W_g x + U_g h + b_g)
//          c' = f c + i g    h' = o tanh(c')
//
// and the gradients of W, U and b from that of the last state, by the chain rule. (GRU: Cho et al. 2014, as
// Keras has it with reset_after=True; LSTM: Hochreiter and Schmidhuber 1997, Gers et al. 2000; backward:
// Werbos 1990.)
//
// Sixteen events ride in the lanes of SIMD registers: a tile. They end together and start when it is their
// turn, so that nothing has to be undone in the backward pass: before its first particle, a lane keeps its
// state at zero because its update gate is 1 (GRU) or its input gate is 0 (LSTM), and all its gradients
// vanish by themselves.
//
// The operand of a step is [x | 1 | h]: the particle's features, a one for the bias, the state. Weights are
// packed in the order in which a step reads them. Weight gradients are a matrix product over a few dozen
// steps at a time, each summed from zero before it is added, so that long events lose no digits.
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

// Weight gradients are computed in blocks.
constexpr int BLOCK_ROWS = REGISTER_COUNT == 32 ? 5 : 4, BLOCK_COLUMNS = REGISTER_COUNT == 32 ? 5 : 3;
constexpr int CHUNK_STEPS = 64;  // steps of one product of the weight gradient

// The angle is reduced by whole quarters of a turn, with pi/2 in three parts; then the Taylor series
// to +-pi/4.
inline void sine_cosine(Floats angle, Floats& sine, Floats& cosine) {
    Floats shifted = angle * 0.636619772f + ROUNDING;
    Floats n = shifted - ROUNDING;
    Floats r = angle - n * 1.5703125f - n * 4.83751297e-4f - n * 7.54978995e-8f;
    Floats q = r * r;
    Floats s = r + r * q * (-1.0f / 6 + q * (1.0f / 120 + q * (-1.0f / 5040 + q * (1.0f / 362880))));
    Floats c =
        1.0f + q * (-0.5f + q * (1.0f / 24 + q * (-1.0f / 720 + q * (1.0f / 40320 - q * (1.0f / 3628800)))));
    Ints turn = (Ints)shifted & 3;
    Floats odd_s = (turn & 1) != 0 ? c : s, odd_c = (turn & 1) != 0 ? s : c;
    sine = (turn & 2) != 0 ? -odd_s : odd_s;
    cosine = ((turn + 1) & 2) != 0 ? -odd_c : odd_c;
}

// sinh from exp(x) and exp(-x); near zero, where their difference has lost its digits, its Taylor series.
inline Floats hyperbolic_sine(Floats x, Floats growth, Floats shrink) {
    Floats q = x * x;
    Floats series = x + x * q * (1.0f / 6 + q * (1.0f / 120 + q * (1.0f / 5040 + q * (1.0f / 362880))));
    return q < 1.0f ? series : 0.5f * (growth - shrink);
}

// ---- the layer

enum Cell : int32_t { GRU = 0, LSTM = 1 };
constexpr int GATE_SLOTS = 4;  // numbers that are kept of each unit, see Shape

}  // namespace

extern "C" {

// A recurrent layer with its weights in Keras' layout; GRU with reset_after=True.
struct Layer {
    int32_t cell, features, units;
    const float *kernel, *recurrent, *bias;  // (F, 3H), (H, 3H), (2, 3H); LSTM (F, 4H), (H, 4H), (4H)
};

// Where the features come from: rows of features, or the stored columns, from which all 19 are made and
// scaled here.
struct Input {
    const float* rows;        // (particles, features), or null
    const float* columns[9];  // (particles) each, as are kind and charge
    const int8_t *kind, *charge;
    const float *shift, *factor;  // (19), scaled = (feature - shift) * factor
    const int32_t* chosen;        // (features), which of the 19
};

// Tiles of sixteen events (the last one of fewer): where their particles begin and how many there are, the
// steps of the longest.
struct Tiles {
    int64_t count;
    const int64_t *first, *length;  // (count * 16), of each lane
    const int64_t* steps;           // (count), of the longest event
    const int64_t* memory_start;    // (count + 1), where the tile's floats are in the memory
};
}

namespace {

// The gates of a unit are kept in four slots. GRU: candidate, update, reset, recurrent part of the candidate.
// Input weights act on the first three, recurrent ones on the last three. LSTM: input, forget, cell, output;
// both on all.
struct Shape {
    Cell cell;
    int features, units;

    explicit Shape(const Layer& layer)
        : cell(Cell(layer.cell)), features(layer.features), units(layer.units) {}
    int gates() const { return cell == GRU ? 3 : 4; }
    int outputs() const { return gates() * units; }
    int recurrent_slot() const { return cell == GRU ? 1 : 0; }  // the first on which recurrent weights act
    // floats of a tile and a step: [x | 1 | h], the slots, LSTM's c
    int operand_floats() const { return (features + 1 + units) * LANES; }
    int slot_floats() const { return GATE_SLOTS * units * LANES; }
    int cell_floats() const { return cell == LSTM ? units * LANES : 0; }
    int weight_count() const { return (features + units + (cell == GRU ? 2 : 1)) * outputs(); }
};

// Units that are computed at once, by cell, each with a sum for every gate; states whose gradients are.
constexpr int MAX_UNITS[2] = {MAX_SUMS / 3 > 8 ? 8 : MAX_SUMS / 3,
                              MAX_SUMS / 4 > 6 ? 6 : (MAX_SUMS / 4 ? MAX_SUMS / 4 : 1)};
constexpr int MAX_STATES = MAX_SUMS;

// A layer's weights in the order in which the steps forward and backward read them.
struct PackedWeights {
    Shape shape;
    std::vector<float> forward, backward;

    explicit PackedWeights(const Layer& layer) : shape(layer) {
        const int F = shape.features, H = shape.units, N = shape.outputs(), G = shape.gates();
        // Keras' order is update, reset, candidate: the candidate comes last here too, its recurrent part
        // with it
        const int unit_blocks = block_count(H, MAX_UNITS[shape.cell]);
        for (int b = 0; b < unit_blocks; ++b) {
            const int from = block_begin(b, H, unit_blocks), to = block_begin(b + 1, H, unit_blocks);
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
        const int state_blocks = block_count(H, MAX_STATES);
        for (int b = 0; b < state_blocks; ++b)
            for (int n = 0; n < N; ++n)
                for (int j = block_begin(b, H, state_blocks); j < block_begin(b + 1, H, state_blocks); ++j)
                    backward.push_back(layer.recurrent[j * N + n]);
    }
};

// ---- features

// The features that the network takes, scaled, of the 19 that follow from the stored columns:
//
//   E = pT cosh eta, px = pT cos phi, py = pT sin phi, pz = pT sinh eta, nine columns as they are,
//   the kind of particle one-hot, the charge
//
// A place of -1 is a lane without a particle.
inline void expand_columns(const Input& input, const int64_t* place, int features, float* to) {
    alignas(64) float column[11][LANES];
    for (int c = 0; c < 9; ++c)
        for (int lane = 0; lane < LANES; ++lane)
            column[c][lane] = place[lane] < 0 ? 0.0f : input.columns[c][place[lane]];
    for (int lane = 0; lane < LANES; ++lane) {
        column[9][lane] = place[lane] < 0 ? -1.0f : float(input.kind[place[lane]]);
        column[10][lane] = place[lane] < 0 ? 0.0f : float(input.charge[place[lane]]);
    }
    alignas(64) float feature[19][LANES];
    for (int at = 0; at < LANES; at += VECTOR_FLOATS) {
        auto from = [&](int c) { return *reinterpret_cast<const Floats*>(&column[c][at]); };
        auto put = [&](int f, Floats value) { *reinterpret_cast<Floats*>(&feature[f][at]) = value; };
        Floats pt = from(0), eta = from(1), sine, cosine;
        Floats growth = exponential(clamp(eta, -80.0f, 80.0f)), shrink = 1.0f / growth;
        sine_cosine(from(2), sine, cosine);
        put(0, pt * (0.5f * (growth + shrink)));
        put(1, pt * cosine);
        put(2, pt * sine);
        put(3, pt * hyperbolic_sine(eta, growth, shrink));
        for (int c = 0; c < 9; ++c) put(4 + c, from(c));
        for (int kind = 0; kind < 5; ++kind)
            put(13 + kind, from(9) == float(kind) ? Floats{} + 1.0f : Floats{});
        put(18, from(10));
    }
    for (int f = 0; f < features; ++f) {
        const int c = input.chosen[f];
        const float shift = input.shift[c], factor = input.factor[c];
        store(to + f * LANES, map([=](Floats x) { return (x - shift) * factor; }, load(feature[c])));
    }
}

inline void copy_rows(const Input& input, const int64_t* place, int features, float* to) {
    for (int lane = 0; lane < LANES; ++lane)
        if (place[lane] < 0)
            for (int f = 0; f < features; ++f) to[f * LANES + lane] = 0.0f;
        else
            for (int f = 0; f < features; ++f) to[f * LANES + lane] = input.rows[place[lane] * features + f];
}

// ---- forward

struct Step {
    const float* now;   // [x | 1 | h]
    float* next;        // h of the next step
    float* saved;       // the four slots
    const float* cell;  // LSTM: c, and that of the next step
    float* next_cell;
    Lanes started;  // 1 in lanes whose event has begun, 0 before
};

// J units from `from` on; returns where the next weights are.
template <int J>
const float* gru_units(const Shape& s, const Step& step, int from, const float* weights) {
    Lanes sums[3 * J], candidate[J];
#pragma GCC unroll 32
    for (int n = 0; n < 3 * J; ++n) sums[n] = broadcast(weights[n]);
    weights += 3 * J;
    const float* recurrent_bias = weights;
    weights = add_products(sums, step.now, s.features, weights + J);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        candidate[j] = sums[2 * J + j];
        sums[2 * J + j] = broadcast(recurrent_bias[j]);
    }
    const float* state = step.now + (s.features + 1) * LANES;
    weights = add_products(sums, state, s.units, weights);
    const int slot = s.units * LANES;
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        const int at = (from + j) * LANES;
        const Lanes z = map([](Floats x, Floats on) { return on > 0.0f ? sigmoid(x) : Floats{} + 1.0f; },
                            sums[j], step.started);
        const Lanes r = map(sigmoid, sums[J + j]);
        const Lanes n = map([](Floats x, Floats r, Floats h) { return tanh(x + r * h); }, candidate[j], r,
                            sums[2 * J + j]);
        store(step.next + at,
              map([](Floats z, Floats h, Floats n) { return n + z * (h - n); }, z, load(state + at), n));
        store(step.saved + at, n);
        store(step.saved + slot + at, z);
        store(step.saved + 2 * slot + at, r);
        store(step.saved + 3 * slot + at, sums[2 * J + j]);
    }
    return weights;
}

// The same for LSTM.
template <int J>
const float* lstm_units(const Shape& s, const Step& step, int from, const float* weights) {
    Lanes sums[4 * J];
#pragma GCC unroll 32
    for (int n = 0; n < 4 * J; ++n) sums[n] = broadcast(weights[n]);
    weights = add_products(sums, step.now, s.features, weights + 4 * J);
    weights = add_products(sums, step.now + (s.features + 1) * LANES, s.units, weights);
    const int slot = s.units * LANES;
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
        const int at = (from + j) * LANES;
        const Lanes i =
            map([](Floats x, Floats on) { return on > 0.0f ? sigmoid(x) : Floats{}; }, sums[j], step.started);
        const Lanes f = map(sigmoid, sums[J + j]), g = map(tanh, sums[2 * J + j]),
                    o = map(sigmoid, sums[3 * J + j]);
        const Lanes c = map([](Floats f, Floats c, Floats i, Floats g) { return f * c + i * g; }, f,
                            load(step.cell + at), i, g);
        store(step.next_cell + at, c);
        store(step.next + at, map([](Floats o, Floats c) { return o * tanh(c); }, o, c));
        store(step.saved + at, i);
        store(step.saved + slot + at, f);
        store(step.saved + 2 * slot + at, g);
        store(step.saved + 3 * slot + at, o);
    }
    return weights;
}

// The memory of a tile: operands of all steps and one more, slots of all steps, cells of all steps and one
// more. Where no backward pass follows, two operands, one set of slots and two cells serve all steps in turn.
struct TileMemory {
    const Shape& s;
    float* start;
    int64_t steps;
    bool keeps_all;

    float* operand(int64_t t) const { return start + (keeps_all ? t : t & 1) * s.operand_floats(); }
    float* saved(int64_t t) const {
        return start + (keeps_all ? steps + 1 : 2) * s.operand_floats() +
               (keeps_all ? t * s.slot_floats() : 0);
    }
    float* cell(int64_t t) const {
        return saved(keeps_all ? steps : 0) + (keeps_all ? 0 : s.slot_floats()) +
               (keeps_all ? t : t & 1) * s.cell_floats();
    }
};

// The last state (16, H) of the events of a tile.
void forward_tile(const PackedWeights& packed, const Input& input, const Tiles& tiles, int64_t tile,
                  const TileMemory& memory, float* out) {
    const Shape& s = packed.shape;
    const int64_t *first = tiles.first + tile * LANES, *length = tiles.length + tile * LANES;
    const int64_t steps = memory.steps;
    const int F = s.features, H = s.units, unit_blocks = block_count(H, MAX_UNITS[s.cell]);
    std::memset(memory.operand(0) + (F + 1) * LANES, 0, 4 * H * LANES);
    if (s.cell == LSTM) std::memset(memory.cell(0), 0, 4 * s.cell_floats());
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
        else expand_columns(input, place, F, now);
        store(now + F * LANES, broadcast(1.0f));
        const Step step{now,
                        memory.operand(t + 1) + (F + 1) * LANES,
                        memory.saved(t),
                        memory.cell(t),
                        memory.cell(t + 1),
                        load(started)};
        const float* weights = packed.forward.data();
        for (int b = 0; b < unit_blocks; ++b) {
            const int from = block_begin(b, H, unit_blocks),
                      units = block_begin(b + 1, H, unit_blocks) - from;
            if (s.cell == GRU)
                with_constant<MAX_UNITS[GRU]>(
                    units, [&](auto J) { weights = gru_units<J>(s, step, from, weights); });
            else
                with_constant<MAX_UNITS[LSTM]>(
                    units, [&](auto J) { weights = lstm_units<J>(s, step, from, weights); });
        }
    }
    const float* state = memory.operand(steps) + (F + 1) * LANES;
    for (int lane = 0; lane < LANES; ++lane)
        for (int j = 0; j < H; ++j) out[lane * H + j] = state[j * LANES + lane];
}

// ---- backward

// What the step before will need, on its way while this one is computed.
inline void prefetch(const float* from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(from + i);
}

// From the gradient d of a step's h' (and dc of its c') to those of its gates before their activation, which
// take the places of what was saved of the gates, and to the part of the gradient of h that does not go
// through them.
void gru_gates(const Shape& s, const float* state, float* saved, const float* gradient, float* direct) {
    const int slot = s.units * LANES;
    for (int at = 0; at < slot; at += LANES) {
        float *n_ = saved + at, *z_ = n_ + slot, *r_ = z_ + slot, *h_ = r_ + slot;
        const Lanes d = load(gradient + at), n = load(n_), z = load(z_), r = load(r_);
        const Lanes dn =
            map([](Floats d, Floats z, Floats n) { return d * (1.0f - z) * (1.0f - n * n); }, d, z, n);
        store(direct + at, map([](Floats d, Floats z) { return d * z; }, d, z));
        store(z_, map([](Floats d, Floats h, Floats n, Floats z) { return d * (h - n) * z * (1.0f - z); }, d,
                      load(state + at), n, z));
        store(r_,
              map([](Floats dn, Floats h, Floats r) { return dn * h * r * (1.0f - r); }, dn, load(h_), r));
        store(h_, map([](Floats dn, Floats r) { return dn * r; }, dn, r));
        store(n_, dn);
    }
}

void lstm_gates(const Shape& s, const float* cell, const float* next_cell, float* saved,
                const float* gradient, float* cell_gradient, float* direct) {
    const int slot = s.units * LANES;
    for (int at = 0; at < slot; at += LANES) {
        float *i_ = saved + at, *f_ = i_ + slot, *g_ = f_ + slot, *o_ = g_ + slot;
        const Lanes d = load(gradient + at), i = load(i_), f = load(f_), g = load(g_), o = load(o_);
        const Lanes t = map(tanh, load(next_cell + at));
        const Lanes dc =
            map([](Floats dc, Floats d, Floats o, Floats t) { return dc + d * o * (1.0f - t * t); },
                load(cell_gradient + at), d, o, t);
        store(o_, map([](Floats d, Floats t, Floats o) { return d * t * o * (1.0f - o); }, d, t, o));
        store(i_, map([](Floats dc, Floats g, Floats i) { return dc * g * i * (1.0f - i); }, dc, g, i));
        store(g_, map([](Floats dc, Floats i, Floats g) { return dc * i * (1.0f - g * g); }, dc, i, g));
        store(f_, map([](Floats dc, Floats c, Floats f) { return dc * c * f * (1.0f - f); }, dc,
                      load(cell + at), f));
        store(cell_gradient + at, map([](Floats dc, Floats f) { return dc * f; }, dc, f));
        store(direct + at, broadcast(0.0f));
    }
}

// Adds to the gradient of the state before a step the part that goes through the gates.
void state_gradient(const PackedWeights& packed, const float* gates, float* gradient) {
    const int H = packed.shape.units, unit_blocks = block_count(H, MAX_STATES), N = packed.shape.outputs();
    const float* weights = packed.backward.data();
    for (int b = 0; b < unit_blocks; ++b) {
        const int from = block_begin(b, H, unit_blocks);
        with_constant<MAX_STATES>(block_begin(b + 1, H, unit_blocks) - from, [&](auto J) {
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

// Gradients of a tile in the order of the slots: kernel and bias (F + 1, N), recurrent kernel (H, N); GRU:
// recurrent bias of the candidate (H).
void backward_tile(const PackedWeights& packed, const float* last_gradient, const TileMemory& memory,
                   float* gradients) {
    const Shape& s = packed.shape;
    const int F = s.features, H = s.units, N = s.outputs();
    std::vector<float> raw(3 * H * LANES + LANES);
    float* gradient = aligned(raw.data());
    float *direct = gradient + H * LANES, *cell_gradient = direct + H * LANES;
    std::memset(cell_gradient, 0, 4 * H * LANES);
    for (int lane = 0; lane < LANES; ++lane)
        for (int j = 0; j < H; ++j) gradient[j * LANES + lane] = last_gradient[lane * H + j];
    float *input_part = gradients, *recurrent_part = input_part + (F + 1) * N,
          *bias_part = recurrent_part + H * N;
    for (int64_t end = memory.steps; end > 0; end -= CHUNK_STEPS) {
        const int64_t start = std::max<int64_t>(0, end - CHUNK_STEPS);
        for (int64_t t = end - 1; t >= start; --t) {
            float* saved = memory.saved(t);
            if (t > 0) prefetch(memory.saved(t - 1), s.slot_floats());
            if (s.cell == GRU) gru_gates(s, memory.operand(t) + (F + 1) * LANES, saved, gradient, direct);
            else lstm_gates(s, memory.cell(t), memory.cell(t + 1), saved, gradient, cell_gradient, direct);
            state_gradient(packed, saved + s.recurrent_slot() * H * LANES, direct);
            std::swap(gradient, direct);
        }
        const int steps = int(end - start);
        const float *a = memory.operand(start), *state = a + (F + 1) * LANES, *b = memory.saved(start);
        const float* recurrent = b + s.recurrent_slot() * H * LANES;
        add_outer_product<BLOCK_ROWS, BLOCK_COLUMNS>(a, s.operand_floats(), F + 1, b, s.slot_floats(), N,
                                                     steps, input_part, N);
        add_outer_product<BLOCK_ROWS, BLOCK_COLUMNS>(state, s.operand_floats(), H, recurrent, s.slot_floats(),
                                                     N, steps, recurrent_part, N);
        if (s.cell == GRU)
            add_outer_product<BLOCK_ROWS, BLOCK_COLUMNS>(a + F * LANES, s.operand_floats(), 1,
                                                         b + 3 * H * LANES, s.slot_floats(), H, steps,
                                                         bias_part, H);
    }
}

// Gradients from the order of the slots to Keras' own: GRU update, reset, candidate.
void to_keras(const Shape& s, const float* gradients, float* kernel, float* recurrent, float* bias) {
    const int F = s.features, H = s.units, N = s.outputs();
    const float* recurrent_part = gradients + (F + 1) * N;
    if (s.cell == LSTM) {
        std::memcpy(kernel, gradients, 4 * F * N);
        std::memcpy(bias, gradients + F * N, 4 * N);
        std::memcpy(recurrent, recurrent_part, 4 * H * N);
        return;
    }
    for (int k = 0; k <= F; ++k) {
        float* row = k < F ? kernel + k * N : bias;
        std::memcpy(row, gradients + k * N + H, 8 * H);
        std::memcpy(row + 2 * H, gradients + k * N, 4 * H);
    }
    std::memcpy(recurrent, recurrent_part, 4 * H * N);
    std::memcpy(bias + N, bias, 8 * H);
    std::memcpy(bias + N + 2 * H, recurrent_part + H * N, 4 * H);
}

// Calls f(i) for i below count, each once, on so many threads.
template <class Function>
void in_parallel(int64_t count, int threads, Function&& f) {
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

// Floats of memory that a tile of so many steps requires; keeps_all where a backward pass follows.
int64_t hepdask_recurrent_memory(const Layer* layer, int64_t steps, int32_t keeps_all) {
    const Shape s(*layer);
    return keeps_all ? (steps + 1) * (s.operand_floats() + s.cell_floats()) + steps * s.slot_floats()
                     : 2 * (s.operand_floats() + s.cell_floats()) + s.slot_floats();
}

// Last state of each lane, (count * 16, H). Memory is aligned to 64 bytes.
void hepdask_recurrent_forward(const Layer* layer, const Input* input, const Tiles* tiles, float* memory,
                               int32_t keeps_all, int32_t threads, float* states) {
    const PackedWeights packed(*layer);
    in_parallel(tiles->count, threads, [&](int64_t tile) {
        const TileMemory own{packed.shape, memory + tiles->memory_start[tile], tiles->steps[tile],
                             keeps_all != 0};
        forward_tile(packed, *input, *tiles, tile, own, states + tile * LANES * packed.shape.units);
    });
}

// Gradients of the weights from the gradient of the last states; uses up the memory of the forward pass.
void hepdask_recurrent_backward(const Layer* layer, const Tiles* tiles, float* memory, int32_t threads,
                                const float* state_gradient, float* kernel, float* recurrent, float* bias) {
    const PackedWeights packed(*layer);
    const Shape& s = packed.shape;
    // one sum per tile, added up in their order: the same for any number of threads
    const int64_t floats = s.weight_count();
    std::vector<float> by_tile(tiles->count * floats), total(floats);
    in_parallel(tiles->count, threads, [&](int64_t tile) {
        const TileMemory own{s, memory + tiles->memory_start[tile], tiles->steps[tile], true};
        backward_tile(packed, state_gradient + tile * LANES * s.units, own, by_tile.data() + tile * floats);
    });
    for (int64_t tile = 0; tile < tiles->count; ++tile)
        for (int64_t i = 0; i < floats; ++i) total[i] += by_tile[tile * floats + i];
    to_keras(s, total.data(), kernel, recurrent, bias);
}

// 19 scaled features of particles as rows, (n, F): what a tile of the stored columns computes, for tests and
// others.
void hepdask_recurrent_features(const Input* input, int64_t count, int32_t features, float* rows) {
    for (int64_t from = 0; from < count; from += LANES) {
        alignas(64) int64_t place[LANES];
        for (int lane = 0; lane < LANES; ++lane) place[lane] = from + lane < count ? from + lane : -1;
        std::vector<float> raw(features * LANES + LANES);
        float* tile = aligned(raw.data());
        expand_columns(*input, place, features, tile);
        for (int lane = 0; lane < LANES && from + lane < count; ++lane)
            for (int f = 0; f < features; ++f) rows[(from + lane) * features + f] = tile[f * LANES + lane];
    }
}
}
