"""The masks of dropout: their bits, and that Keras's own layers use them."""

import functools
import math

import numpy as np
import pytest

import quatrains
from quatrains import hash_dropout, keras, tf

# Rates and seeds. One generator of Keras gives [s, k], [s, k + 1] and so on, to gates and to steps.
# Layers differ in s, and every epoch gives each layer new seeds.
SEEDS = {
    "gates and steps": (0.5, [(123_456_789, 7 + k) for k in range(100)]),
    "layers": (0.3, [(s, k) for s in range(10) for k in range(10)]),
    "epochs": (0.5, np.random.default_rng(1).integers(0, 2**31 - 2, (100, 2)).tolist()),
}
ROWS, COLUMNS = 512, 300
LAGS = (1, 2, 3, 128, 300, 301, 512)


def make_mask(shape, rate, seed, dtype="float32"):
    return hash_dropout(tf.ones(shape, dtype), rate, seed, shape).numpy()


@pytest.fixture(scope="module", params=SEEDS)
def masks(request):
    """A hundred masks, one per row. Their elements have mean 0 and variance 1."""
    rate, seeds = SEEDS[request.param]
    rows = np.array([make_mask((ROWS, COLUMNS), rate, seed).ravel() for seed in seeds])
    return ((rows > 0) - (1 - rate)).astype("float32") / np.float32(rate * (1 - rate)) ** 0.5


def check_normal(sums, count):
    """Check that sums over `count` products of elements are normal, as if independent."""
    scores = np.asarray(sums, float).ravel() / math.sqrt(count)
    assert scores.size > 1200
    error = 1 / math.sqrt(scores.size)
    assert abs(scores.mean()) < 4 * error
    assert abs(scores.std() - 1) < min(0.1, 4 * error)
    # Independent scores exceed this maximum once in a thousand times.
    assert scores.size * math.erfc(np.abs(scores).max() / math.sqrt(2)) > 1e-3


def upper(square):
    """Return each pair once, from a matrix that has it twice."""
    return square[np.triu_indices(len(square), 1)]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_the_share_of_zeros_is_the_rate_and_the_rest_is_scaled_up(rate):
    shares = []
    for seed in np.random.default_rng(2).integers(0, 2**31 - 2, (10, 2)):
        mask = make_mask((1000, 999), rate, seed)
        assert np.unique(mask) == pytest.approx([0, 1 / (1 - rate)], rel=1e-6)
        shares.append((mask == 0).mean())
    error = math.sqrt(rate * (1 - rate) / mask.size)
    assert np.abs(np.array(shares) - rate).max() < 5 * error
    assert np.mean(shares) == pytest.approx(rate, abs=5 * error / math.sqrt(len(shares)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_masks_have_any_shape_and_type_and_are_shared_along_ones(dtype):
    rng = np.random.default_rng(3)
    for noise in ((7,), (3, 5), (32, 5, 9), (32, 1, 9), (1, 5, 9), (32, 5, 1)):
        values = rng.uniform(1, 2, noise if len(noise) < 3 else (32, 5, 9)).astype(dtype)
        # Keras passes a list, with a tensor for each unknown dimension.
        dropped = hash_dropout(
            tf.constant(values), 0.5, (1, 2), [tf.constant(noise[0]), *noise[1:]]
        )
        mask = make_mask(noise, 0.5, (1, 2), dtype)
        assert mask.size < 40 or 0.3 < (mask == 0).mean() < 0.7
        assert dropped.dtype == dtype
        assert np.array_equal(dropped, values * mask)


@pytest.mark.parametrize("seed", [(0, 0), (1, 2), (2**31 - 3, 2**31 - 3)], ids=str)
def test_masks_are_the_same_compiled_and_not(seed):
    ones, seed = tf.ones((65, 33)), tf.constant(seed, tf.int32)
    eager = hash_dropout(ones, 0.3, seed, ones.shape)
    for xla in (False, True):
        compiled = tf.function(hash_dropout, jit_compile=xla, autograph=False)
        assert np.array_equal(compiled(ones, 0.3, seed, ones.shape), eager)
    assert not np.array_equal(hash_dropout(ones, 0.3, tf.add(seed, (0, 1)), ones.shape), eager)


def test_masks_and_positions_are_independent(masks):
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


def test_pairs_and_parities_are_independent(masks):
    for lag in (1, 2, 300):
        pairs = masks[:, :-lag] * masks[:, lag:]
        check_normal(upper(pairs @ pairs.T), masks.shape[1] - lag)
    for gates in (3, 4, 6):
        parities = functools.reduce(np.multiply, (masks[i : 94 + i] for i in range(gates)))
        check_normal(parities.reshape(1504, -1).sum(1), parities.size / 1504)


def test_a_gru_takes_one_mask_per_gate_for_all_words(monkeypatch):
    calls, original = [], tf.nn.experimental.stateless_dropout

    def note_call(values, rate, seed, noise_shape):
        calls.append((rate, *noise_shape, seed))
        return hash_dropout(values, rate, seed, noise_shape)

    monkeypatch.setattr(quatrains, "hash_dropout", note_call)
    layer = keras.layers.GRU(6, dropout=0.3, recurrent_dropout=0.5, unroll=True)
    with pytest.raises(KeyboardInterrupt), quatrains.fast_dropout():
        layer(tf.ones((20, 4, 5)), training=True)
        raise KeyboardInterrupt
    assert tf.nn.experimental.stateless_dropout is original
    assert [call[:3] for call in calls] == 3 * [(0.3, 20, 5)] + 3 * [(0.5, 20, 6)]
    # As in "gates and steps" above.
    assert np.diff([call[3] for call in calls], axis=0).tolist() == 5 * [[0, 1]]
