"""The masks of the dropouts: their bits, and that Keras's own layers use them."""

import functools
import math
from unittest import mock

import numpy as np
import pytest

from quatrains import hash_dropout, keras, tf

# Rates and seeds. One generator of Keras gives [s, k], [s, k + 1] and so on, to gates and to steps;
# layers differ in s, and every epoch draws both anew.
SEEDS = {
    "gates and steps": (0.5, [(123_456_789, 7 + k) for k in range(100)]),
    "layers": (0.3, [(s, k) for s in range(10) for k in range(10)]),
    "epochs": (0.5, np.random.default_rng(1).integers(0, 2**31 - 2, (100, 2)).tolist()),
}
ROWS, COLUMNS = 512, 300
LAGS = (1, 2, 3, 128, 300, 301, 512)


@pytest.fixture(scope="module", params=SEEDS)
def masks(request):
    """A hundred masks, a row each; their elements have the mean 0 and the variance 1."""
    rate, seeds = SEEDS[request.param]
    draw = tf.function(functools.partial(hash_dropout, tf.ones((ROWS, COLUMNS)), rate))
    drawn = np.array([draw(seed).numpy().ravel() for seed in np.array(seeds)])
    return ((drawn > 0) - (1 - rate)).astype("float32") / np.float32(rate * (1 - rate)) ** 0.5


def check_normal(sums, count):
    """Sums over `count` independent products of elements are normal; so these must be."""
    scores = np.asarray(sums, float).ravel() / math.sqrt(count)
    assert scores.size > 1200
    error = 1 / math.sqrt(scores.size)
    assert abs(scores.mean()) < 4 * error
    assert abs(scores.std() - 1) < min(0.1, 4 * error)
    # Independent scores have such a maximum more than once in a thousand times.
    assert scores.size * math.erfc(np.abs(scores).max() / math.sqrt(2)) > 1e-3


def upper(square):
    """Every pair once, of a matrix that has each twice."""
    return square[np.triu_indices(len(square), 1)]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_so_many_are_hidden_and_the_others_make_up_for_it(rate):
    ones = tf.ones((1000, 999))
    shares = []
    for seed in np.random.default_rng(2).integers(0, 2**31 - 2, (10, 2)):
        values = hash_dropout(ones, rate, seed).numpy()
        assert np.unique(values) == pytest.approx([0, 1 / (1 - rate)], rel=1e-6)
        shares.append((values == 0).mean())
    error = math.sqrt(rate * (1 - rate) / values.size)
    assert np.abs(np.array(shares) - rate).max() < 5 * error
    assert np.mean(shares) == pytest.approx(rate, abs=5 * error / math.sqrt(len(shares)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_shape_and_type_comes_back_and_noise_is_shared_along_ones(dtype):
    draw = np.random.default_rng(3)
    for noise in ((1,), (7,), (3, 5), (32, 5, 9), (32, 1, 9), (1, 5, 9), (32, 5, 1)):
        shape = noise if len(noise) < 3 else (32, 5, 9)
        values = draw.uniform(1, 2, shape).astype(dtype)
        # Keras gives it as a list, and sides that it was not told as tensors.
        hidden = hash_dropout(tf.constant(values), 0.5, (1, 2), [tf.constant(noise[0]), *noise[1:]])
        assert (hidden.dtype, hidden.shape) == (dtype, shape)
        mask = hash_dropout(tf.ones(noise, dtype), 0.5, (1, 2)).numpy()
        assert set(np.unique(mask)) <= {0, 2}
        assert mask.size < 40 or 0.3 < (mask == 0).mean() < 0.7
        assert np.array_equal(hidden, values * mask)


@pytest.mark.parametrize("seed", [(0, 0), (1, 2), (2**31 - 3, 2**31 - 3)], ids=str)
def test_masks_are_the_same_compiled_and_not(seed):
    ones, seed = tf.ones((65, 33)), tf.constant(seed, tf.int32)
    eager = hash_dropout(ones, 0.3, seed)
    for xla in (False, True):
        compiled = tf.function(hash_dropout, jit_compile=xla, autograph=False)
        assert np.array_equal(compiled(ones, 0.3, seed), eager)
    assert not np.array_equal(hash_dropout(ones, 0.3, tf.add(seed, (0, 1))), eager)


def test_masks_and_their_places_are_independent(masks):
    parts = [masks, *(masks[:, :-lag] * masks[:, lag:] for lag in (*LAGS, 4, 5, 256, 1024, 76800))]
    check_normal([part.sum(1) / math.sqrt(part.shape[1]) for part in parts], 1)
    check_normal(upper(masks @ masks.T), masks.shape[1])
    for lag in LAGS:
        shifted = masks[:, :-lag] @ masks[:, lag:].T
        check_normal(shifted[~np.eye(len(masks), dtype=bool)], masks.shape[1] - lag)


def test_samples_and_columns_are_independent(masks):
    grids = masks.reshape(-1, ROWS, COLUMNS)
    check_normal(grids.sum(2), COLUMNS)
    check_normal(grids.sum(1), ROWS)
    for grid in grids[:5]:
        check_normal(upper(grid @ grid.T), COLUMNS)
        check_normal(upper(grid.T @ grid), ROWS)
        pairs = grid[:, :-1] * grid[:, 1:]
        check_normal(upper(pairs @ pairs.T), COLUMNS - 1)


def test_halves_of_hashes_pairs_and_parities_are_independent(masks):
    first, second = masks[:, ::2], masks[:, 1::2]
    both = first * second
    check_normal(first @ second.T, first.shape[1])
    check_normal(both.reshape(1600, -1).sum(1), both.size / 1600)
    check_normal(upper(both @ both.T), both.shape[1])
    for lag in (1, 2, 300):
        pairs = masks[:, :-lag] * masks[:, lag:]
        check_normal(upper(pairs @ pairs.T), masks.shape[1] - lag)
    for gates in (3, 4, 6):
        parities = functools.reduce(np.multiply, (masks[i : 94 + i] for i in range(gates)))
        check_normal(parities.reshape(1504, -1).sum(1), parities.size / 1504)


def draw_masks(generator, shape, rate, count, skip=0):
    """The masks that this generator of Keras will have drawn next, after some others."""
    (s, k), bound = generator.state.numpy().tolist(), 2**31 - 2
    seeds = [(s % bound, (k + skip + number) % bound) for number in range(count)]
    return [hash_dropout(tf.ones(shape), rate, seed).numpy() for seed in seeds]


def call_hashed(layer, x, training=True):
    """Call a layer of Keras, compiled, as the script's training steps do."""
    compiled = tf.function(layer, jit_compile=True, autograph=False)
    with mock.patch.object(tf.nn.experimental, "stateless_dropout", hash_dropout):
        return compiled(x, training=training).numpy()


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "looped"])
def test_a_gru_hides_the_same_at_all_words_by_sample_and_gate(unroll):
    layer = keras.layers.GRU(
        6, dropout=0.3, recurrent_dropout=0.5, bias_initializer="normal", unroll=unroll
    )
    layer.build((20, 4, 5))
    x = np.random.default_rng(5).normal(size=(20, 4, 5)).astype("float32")
    generator = layer.cell.seed_generator
    generator.state.assign([2**31, 2**32 - 3])
    of_inputs = draw_masks(generator, (20, 5), 0.3, 3)
    of_states = draw_masks(generator, (20, 6), 0.5, 3, skip=3)
    given = call_hashed(layer, x)
    assert generator.state.numpy().tolist() == [2**31, 2**32 + 3]
    kernel, recurrent, (bias, recurrent_bias) = map(np.array, layer.get_weights()[:3])
    state = np.zeros((20, 6))
    for word in range(4):
        gates = []
        for gate in range(3):
            part = slice(6 * gate, 6 * gate + 6)
            of_input = x[:, word] * of_inputs[gate] @ kernel[:, part] + bias[part]
            of_state = state * of_states[gate] @ recurrent[:, part]
            gates.append((of_input, of_state + recurrent_bias[part]))
        update, reset = (1 / (1 + np.exp(-sum(parts))) for parts in gates[:2])
        state = update * state + (1 - update) * np.tanh(gates[2][0] + reset * gates[2][1])
    assert given == pytest.approx(state, abs=1e-5)


LAYERS = [
    (keras.layers.Dropout(0.3), (20, 4, 5)),
    (keras.layers.Dropout(0.3, noise_shape=(None, 1, None)), (20, 1, 5)),
    (keras.layers.SpatialDropout1D(0.3), (20, 1, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["elements", "a shape", "columns"])
def test_the_dropout_layers_hide_by_these_masks(layer, shape):
    x = np.random.default_rng(6).uniform(1, 2, (20, 4, 5)).astype("float32")
    for mask in draw_masks(layer.seed_generator, shape, 0.3, 3):
        assert np.array_equal(call_hashed(layer, x), x * mask)
        assert np.array_equal(call_hashed(layer, x, training=False), x)
