"""GRU and LSTM in float64, one event after the other."""

import numpy as np

from hepdask.config import feature_names


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(weights, rows, gradient):
    """One event, in float64: its last state, and the gradients of the weights."""
    kernel, recurrent, bias = (
        w.astype(np.float64) for w in (weights.kernel, weights.recurrent, weights.bias)
    )
    units = len(recurrent)
    state, steps = np.zeros(units), []
    for x in rows.astype(np.float64):
        a, b = x @ kernel + bias[0], state @ recurrent + bias[1]
        z, r = sigmoid(a[:units] + b[:units]), sigmoid(a[units : 2 * units] + b[units : 2 * units])
        n = np.tanh(a[2 * units :] + r * b[2 * units :])
        steps.append((x, state, z, r, n, b[2 * units :]))
        state = z * state + (1 - z) * n
    last, d = state, gradient.astype(np.float64)
    found = [np.zeros_like(kernel), np.zeros_like(recurrent), np.zeros_like(bias)]
    for x, state, z, r, n, b in reversed(steps):
        dn = d * (1 - z) * (1 - n**2)
        gates = np.concatenate([d * (state - n) * z * (1 - z), dn * b * r * (1 - r)])
        of_input, of_state = np.concatenate([gates, dn]), np.concatenate([gates, dn * r])
        found[0] += np.outer(x, of_input)
        found[1] += np.outer(state, of_state)
        found[2] += np.stack([of_input, of_state])
        d = d * z + recurrent @ of_state
    return last, found


def lstm(weights, rows, gradient):
    kernel, recurrent, bias = (
        w.astype(np.float64) for w in (weights.kernel, weights.recurrent, weights.bias)
    )
    units = len(recurrent)
    state, cell, steps = np.zeros(units), np.zeros(units), []
    for x in rows.astype(np.float64):
        i, f, g, o = np.split(x @ kernel + state @ recurrent + bias, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        after = f * cell + i * g
        steps.append((x, state, i, f, g, o, cell, after))
        state, cell = o * np.tanh(after), after
    last, d, dc = state, gradient.astype(np.float64), np.zeros(units)
    found = [np.zeros_like(kernel), np.zeros_like(recurrent), np.zeros_like(bias)]
    for x, state, i, f, g, o, cell, after in reversed(steps):
        t = np.tanh(after)
        dc = dc + d * o * (1 - t**2)
        gates = np.concatenate(
            [dc * g * i * (1 - i), dc * cell * f * (1 - f), dc * i * (1 - g**2), d * t * o * (1 - o)]
        )
        found[0] += np.outer(x, gates)
        found[1] += np.outer(state, gates)
        found[2] += gates
        d, dc = recurrent @ gates, dc * f
    return last, found


def stored_particles(count, rng):
    columns = {name: rng.normal(size=count).astype(np.float32) for name in feature_names.STORED[3:9]}
    columns["Pt"] = rng.exponential(10, count).astype(np.float32)
    columns["Eta"] = rng.uniform(-5, 5, count).astype(np.float32)
    columns["Eta"][:5] = [0.0, 1e-4, -1e-6, 0.999, 1.001]
    columns["Phi"] = rng.uniform(-7, 7, count).astype(np.float32)
    columns["Phi"][:5] = [np.pi, -np.pi, np.pi / 2, 0.0, -np.pi / 4]
    columns["kind"] = rng.integers(0, 5, count).astype(np.int8)
    columns["Charge"] = rng.integers(-1, 2, count).astype(np.int8)
    return columns
