"""The masks of the dropouts: their bits, and that Keras's own layers use them."""

import functools
import math

import numpy as np
import pytest

from quatrains import hash_dropout, hashed_dropouts, keras, tf

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

    @tf.function(autograph=False)
    def draw(seed):
        return hash_dropout(tf.ones((ROWS, COLUMNS)), rate, seed)

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


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 5), (4, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_shape_and_type_comes_back(shape, dtype):
    values = np.random.default_rng(3).uniform(1, 2, shape).astype(dtype)
    hidden = hash_dropout(tf.constant(values), 0.5, (1, 2))
    assert (hidden.dtype, hidden.shape) == (dtype, shape)
    mask = hash_dropout(tf.ones(shape, dtype), 0.5, (1, 2)).numpy()
    assert set(np.unique(mask)) <= {0, 2}
    assert np.array_equal(hidden, values * mask)


def test_noise_shape_is_shared_along_its_ones():
    values = np.random.default_rng(4).uniform(1, 2, (32, 5, 9)).astype("float32")
    # Keras gives it as a list, and sides that it was not told as tensors.
    for shape in ((32, 1, 9), (1, 5, 9), (32, 5, 1)):
        hidden = hash_dropout(tf.constant(values), 0.5, (1, 2), [tf.constant(shape[0]), *shape[1:]])
        mask = hash_dropout(tf.ones(shape), 0.5, (1, 2)).numpy()
        assert np.array_equal(hidden, values * mask)
        assert 0.3 < (mask == 0).mean() < 0.7


@pytest.mark.parametrize("seed", [(0, 0), (1, 2), (2**31 - 3, 2**31 - 3)], ids=str)
def test_masks_are_the_same_compiled_and_not(seed):
    ones, seed = tf.ones((65, 33)), tf.constant(seed, tf.int32)
    eager = hash_dropout(ones, 0.3, seed)
    for xla in (False, True):
        compiled = tf.function(hash_dropout, jit_compile=xla, autograph=False)
        assert np.array_equal(compiled(ones, 0.3, seed), eager)
    other = hash_dropout(ones, 0.3, tf.add(seed, (0, 1)))
    assert not np.array_equal(other, eager)


def test_places_of_a_mask_are_independent(masks):
    parts = [masks, *(masks[:, :-lag] * masks[:, lag:] for lag in (*LAGS, 4, 5, 256, 1024, 76800))]
    check_normal([part.sum(1) / math.sqrt(part.shape[1]) for part in parts], 1)


def test_masks_are_independent(masks):
    check_normal(upper(masks @ masks.T), masks.shape[1])
    for lag in LAGS:
        shifted = masks[:, :-lag] @ masks[:, lag:].T
        check_normal(shifted[~np.eye(len(masks), dtype=bool)], masks.shape[1] - lag)


def test_both_halves_of_a_hash_are_independent(masks):
    first, second = masks[:, ::2], masks[:, 1::2]
    both = first * second
    check_normal(first @ second.T, first.shape[1])
    check_normal(both.reshape(1600, -1).sum(1), both.size / 1600)
    check_normal(upper(both @ both.T), both.shape[1])


def test_samples_and_columns_are_independent(masks):
    grids = masks.reshape(-1, ROWS, COLUMNS)
    check_normal(grids.sum(2), COLUMNS)
    check_normal(grids.sum(1), ROWS)
    for grid in grids[:5]:
        check_normal(upper(grid @ grid.T), COLUMNS)
        check_normal(upper(grid.T @ grid), ROWS)
        pairs = grid[:, :-1] * grid[:, 1:]
        check_normal(upper(pairs @ pairs.T), COLUMNS - 1)


def test_pairs_and_parities_are_independent(masks):
    for lag in (1, 2, 300):
        pairs = masks[:, :-lag] * masks[:, lag:]
        check_normal(upper(pairs @ pairs.T), masks.shape[1] - lag)
    for gates in (3, 4, 6):
        parities = functools.reduce(np.multiply, (masks[i : 94 + i] for i in range(gates)))
        check_normal(parities.reshape(1504, -1).sum(1), parities.size / 1504)


def draw_masks(generator, shape, rate, count):
    """The masks that this generator of Keras will have drawn next, and what it is at then."""
    (s, k), bound = generator.state.numpy().tolist(), 2**31 - 2
    ones = tf.ones(shape)
    seeds = [(s % bound, (k + i) % bound) for i in range(count)]
    return [hash_dropout(ones, rate, seed).numpy() for seed in seeds]


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "looped"])
def test_a_gru_hides_the_same_at_all_words_by_sample_and_gate(unroll):
    layer = keras.layers.GRU(
        6, dropout=0.3, recurrent_dropout=0.5, bias_initializer="normal", unroll=unroll
    )
    layer.build((20, 4, 5))
    x = np.random.default_rng(5).normal(size=(20, 4, 5)).astype("float32")
    layer.cell.seed_generator.state.assign([2**31, 2**32 - 3])
    inputs_and_states = draw_masks(layer.cell.seed_generator, (20, 5), 0.3, 3)
    layer.cell.seed_generator.state.assign([2**31, 2**32])
    inputs_and_states += draw_masks(layer.cell.seed_generator, (20, 6), 0.5, 3)
    layer.cell.seed_generator.state.assign([2**31, 2**32 - 3])

    @tf.function(jit_compile=True, autograph=False)
    def call(x):
        with hashed_dropouts():
            return layer(x, training=True)

    given = call(x)
    assert layer.cell.seed_generator.state.numpy().tolist() == [2**31, 2**32 + 3]
    kernel, recurrent, (bias, recurrent_bias) = map(np.array, layer.get_weights()[:3])
    state = np.zeros((20, 6))
    for word in range(4):
        gates = []
        for gate in range(3):
            part = slice(6 * gate, 6 * gate + 6)
            of_input = x[:, word] * inputs_and_states[gate] @ kernel[:, part] + bias[part]
            of_state = state * inputs_and_states[3 + gate] @ recurrent[:, part]
            gates.append((of_input, of_state + recurrent_bias[part]))
        update, reset = (1 / (1 + np.exp(-sum(parts))) for parts in gates[:2])
        state = update * state + (1 - update) * np.tanh(gates[2][0] + reset * gates[2][1])
    assert given.numpy() == pytest.approx(state, abs=1e-5)


LAYERS = {
    "of elements": (keras.layers.Dropout(0.3), (20, 4, 5)),
    "with a shape": (keras.layers.Dropout(0.3, noise_shape=(None, 1, None)), (20, 1, 5)),
    "of columns": (keras.layers.SpatialDropout1D(0.3), (20, 1, 5)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_dropout_layers_hide_by_these_masks(layer, shape):
    x = np.random.default_rng(6).uniform(1, 2, (20, 4, 5)).astype("float32")

    @tf.function(jit_compile=True, autograph=False)
    def call(x):
        with hashed_dropouts():
            return layer(x, training=True), layer(x, training=False)

    for mask in draw_masks(layer.seed_generator, shape, 0.3, 3):
        hidden, whole = call(x)
        assert np.array_equal(hidden, x * mask)
        assert np.array_equal(whole, x)


def test_tensorflows_own_dropout_is_back_afterwards():
    theirs = tf.nn.experimental.stateless_dropout
    with hashed_dropouts():
        assert tf.nn.experimental.stateless_dropout is hash_dropout
    assert tf.nn.experimental.stateless_dropout is theirs
    with pytest.raises(ZeroDivisionError), hashed_dropouts():
        1 / 0  # noqa: B018
    assert tf.nn.experimental.stateless_dropout is theirs
