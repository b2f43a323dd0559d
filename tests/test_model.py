"""The model, its training step, and the sampler, all inside one process."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import quatrains
from conftest import ROOT

DEFAULTS = SimpleNamespace(**{name: getattr(quatrains, name) for name in quatrains.SETTINGS})


@pytest.fixture(scope="module", autouse=True)
def device():
    assert quatrains.load_tensorflow(use_gpu=False) == "/cpu:0"


def small_model(words=12, phrase_len=4, **changes):
    """A model of few words whose predictions are far from even."""
    settings = SimpleNamespace(**vars(DEFAULTS) | {"gru_dim": 6} | changes)
    quatrains.keras.utils.set_random_seed(3)
    rng = np.random.default_rng(5)
    model = quatrains.build_model(
        rng.normal(0, 1, (words, 5)).astype("float32"), phrase_len, settings
    )
    kernel, bias = model.get_layer("dense").get_weights()
    model.get_layer("dense").set_weights([kernel * 3, rng.normal(0, 1, bias.shape)])
    return model


def test_layers_and_hyperparameters_are_the_published_ones():
    import keras

    model = quatrains.build_model(np.ones((4705, 300), np.float32), 4, DEFAULTS)
    assert [layer.name for layer in model.layers] == ["embedding", "GRU", "dense"]
    embedding, gru, dense = model.layers
    assert type(embedding) is keras.layers.Embedding
    assert (embedding.input_dim, embedding.output_dim) == (4705, 300)
    assert embedding.trainable
    assert not embedding.mask_zero
    assert (embedding.get_weights()[0] == 1).all()
    assert type(gru) is keras.layers.GRU
    assert (gru.units, gru.dropout, gru.recurrent_dropout) == (128, 0.5, 0.5)
    assert gru.reset_after
    assert gru.recurrent_activation is keras.activations.sigmoid
    for penalty in (gru.kernel_regularizer, gru.recurrent_regularizer, gru.bias_regularizer):
        assert type(penalty) is keras.regularizers.L2
        assert float(penalty.l2) == pytest.approx(0.02)
    assert type(dense) is keras.layers.Dense
    assert dense.units == 4705
    assert dense.activation is keras.activations.softmax
    assert dense.kernel_regularizer is None
    assert type(model.optimizer) is keras.optimizers.RMSprop
    assert float(model.optimizer.learning_rate) == pytest.approx(0.003)
    assert (model.optimizer.rho, model.optimizer.momentum) == (0.9, 0.0)
    assert model.loss == "sparse_categorical_crossentropy"
    assert model.count_params() == 4705 * 300 + 3 * 128 * (300 + 128 + 2) + 129 * 4705
    assert model.input_shape == (None, 4)
    assert model.output_shape == (None, 4705)


def test_an_epoch_reports_weighted_training_and_plain_validation():
    model = small_model(dropout=0.0, learning_rate=1e-9)
    rng = np.random.default_rng(2)
    phrases = rng.integers(0, 12, (50, 4)).astype(np.int32)
    targets = rng.integers(0, 12, 50).astype(np.int32)
    weights = rng.uniform(1, 9, 50).astype(np.float32)
    training = quatrains.Samples(phrases[:40], targets[:40], weights[:40])
    validation = quatrains.Samples(phrases[40:], targets[40:], np.ones(10, np.float32))
    before = model.predict(phrases, verbose=0)
    metrics = quatrains.build_epoch(model, training, validation, batch_size=16)(rng)

    # Steps of 16, 16 and 8 samples, so small that the model stays what it was.
    probabilities = model.predict(phrases, verbose=0)
    assert probabilities == pytest.approx(before, rel=1e-4)
    cross_entropy = -np.log(probabilities[np.arange(50), targets])
    hits = probabilities.argmax(1) == targets
    penalty = 0.02 * sum((weight**2).sum() for weight in model.get_layer("GRU").get_weights())
    assert penalty > 0.1
    assert metrics == pytest.approx(
        {
            "loss": (weights * cross_entropy)[:40].mean() + penalty,
            "acc": hits[:40].mean(),
            "val_loss": cross_entropy[40:].mean() + penalty,
            "val_acc": hits[40:].mean(),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("phrase_len", [1, 4, 9], ids=["a word", "unrolled", "looped"])
def test_steps_are_those_of_keras(phrase_len):
    """Two epochs leave the same weights as Keras's own layers, loss and optimizer, step by step.

    With dense gradients, as in 2017: Keras 3's own fit takes the square of each part of a gradient
    when a word stands several times in a batch, rather than of their sum.
    """
    import keras
    import tensorflow as tf

    ours = small_model(dropout=0.0, phrase_len=phrase_len)
    theirs = small_model(dropout=0.0, phrase_len=phrase_len)
    assert ours.get_layer("GRU").unroll == (phrase_len < 9)
    theirs.set_weights(untrained := ours.get_weights())
    draw = np.random.default_rng(3)
    phrases = draw.integers(0, 12, (150, phrase_len)).astype(np.int32)
    targets = draw.integers(0, 12, 150).astype(np.int32)
    training = quatrains.Samples(phrases, targets, draw.uniform(1, 9, 150).astype(np.float32))
    epoch = quatrains.build_epoch(ours, training, training, batch_size=16)
    rng = np.random.default_rng(4)
    orders = []
    for _ in range(2):
        # The first thing that an epoch draws is its order.
        orders.append(copy.deepcopy(rng).permutation(150))
        epoch(rng)
    assert not np.array_equal(*orders)
    for batch in (batch for order in orders for batch in np.split(order, range(16, 150, 16))):
        with tf.GradientTape() as tape:
            predicted = theirs(phrases[batch], training=True)
            losses = keras.losses.sparse_categorical_crossentropy(targets[batch], predicted)
            loss = tf.reduce_mean(training.weights[batch] * losses) + sum(theirs.losses)
        gradients = tape.gradient(loss, [weight.value for weight in theirs.trainable_weights])
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        theirs.optimizer.apply(dense, theirs.trainable_weights)
    for our, their in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert our == pytest.approx(their, abs=2e-4)
    assert np.abs(ours.get_weights()[0] - untrained[0]).max() > 0.01


def test_dropout_masks_are_those_of_keras():
    """One mask a sample and gate for all steps, over the inputs and over the state."""
    import tensorflow as tf

    model = small_model(dropout=0.3)
    gru = model.get_layer("GRU")
    batch = 2000
    bits = tf.random.stateless_uniform((3, batch, 6), (1, 2), None, None, tf.int32)
    vectors = np.random.default_rng(1).normal(size=(batch, 4, 5)).astype(np.float32)
    masks = quatrains.make_masks(bits, 0.3)
    inputs, states = masks[:, :, :5].numpy(), masks[:, :, 5:11].numpy()
    state = quatrains.run_gru(gru, tf.constant(vectors), masks).numpy()

    assert (inputs.shape, states.shape) == ((3, batch, 5), (3, batch, 6))
    for masks in (inputs, states):
        assert set(np.unique(masks)) == {np.float32(0), np.float32(1 / 0.7)}
        # Each place of each mask is hidden three times in ten, whatever the others are.
        assert (masks == 0).mean(1) == pytest.approx(0.3, abs=0.05)
        flat = (masks == 0).transpose(0, 2, 1).reshape(-1, batch)
        assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.1

    kernel, recurrent, (bias, recurrent_bias) = gru.get_weights()
    expected = np.zeros((batch, 6))
    for step in range(4):
        gates = [slice(6 * g, 6 * g + 6) for g in range(3)]
        x = [vectors[:, step] * inputs[g] @ kernel[:, i] + bias[i] for g, i in enumerate(gates)]
        h = [
            expected * states[g] @ recurrent[:, i] + recurrent_bias[i] for g, i in enumerate(gates)
        ]
        update, reset = (1 / (1 + np.exp(-(x[gate] + h[gate]))) for gate in (0, 1))
        candidate = np.tanh(x[2] + reset * h[2])
        expected = update * expected + (1 - update) * candidate
    assert state == pytest.approx(expected, abs=1e-5)


def test_training_learns():
    model = small_model(dropout=0.1, regularization=0.0, learning_rate=0.01)
    phrases = np.arange(48).reshape(12, 4).astype(np.int32) % 12
    samples = quatrains.Samples(phrases, (phrases[:, 0] + 5) % 12, np.ones(12, np.float32))
    rng = np.random.default_rng(1)
    epoch = quatrains.build_epoch(model, samples, samples, batch_size=5)
    losses = [epoch(rng)["loss"] for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def chi_square(drawn, probabilities):
    counts = np.bincount(drawn, minlength=len(probabilities))
    expected = probabilities * len(drawn)
    return ((counts - expected) ** 2 / expected).sum()


def test_sampler_draws_from_the_models_own_distribution():
    model = small_model()
    sampler = quatrains.build_sampler(model, 4, max_words=3)
    rows = sampler(np.zeros((40_000, 4), np.int32), np.array([1, 2], np.int32), 1.0, 0).numpy()
    assert rows.shape == (40_000, 3)
    assert rows.dtype == np.int32
    first = model.predict(np.zeros((1, 4)), verbose=0)[0]
    assert first.max() > 3 * np.median(first)
    # 11 degrees of freedom: above 40 once in 30,000 seeds.
    assert chi_square(rows[:, 0], first) < 40
    for word in np.argsort(first)[-3:]:
        after = model.predict(np.array([[0, 0, 0, word]]), verbose=0)[0]
        assert chi_square(rows[rows[:, 0] == word, 1], after) < 40
        pairs = rows[rows[:, 0] == word]
        next_word = np.bincount(pairs[:, 1]).argmax()
        third = model.predict(np.array([[0, 0, word, next_word]]), verbose=0)[0]
        assert chi_square(pairs[pairs[:, 1] == next_word, 2], third) < 40


def test_temperature_and_top_k_change_the_distribution():
    model = small_model()
    sampler = quatrains.build_sampler(model, 4, max_words=1)
    start, seed = np.zeros((20_000, 4), np.int32), np.array([1, 2], np.int32)
    first = model.predict(np.zeros((1, 4)), verbose=0)[0].astype(float)
    for temperature in (0.5, 2.0):
        tempered = first ** (1 / temperature) / (first ** (1 / temperature)).sum()
        assert chi_square(sampler(start, seed, temperature, 0).numpy()[:, 0], tempered) < 40
    for top_k in (1, 3):
        kept = sampler(start, seed, 1.0, top_k).numpy()[:, 0]
        likeliest = np.argsort(first)[-top_k:]
        assert set(kept) == set(likeliest)
        shares = np.bincount(kept, minlength=12)[likeliest] / len(kept)
        assert shares == pytest.approx(first[likeliest] / first[likeliest].sum(), abs=0.02)
    assert set(sampler(start, seed, 1.0, 99).numpy()[:, 0]) == set(range(12))


def test_quatrains_stop_at_a_break_or_at_max_words():
    sampler = quatrains.build_sampler(small_model(), 4, max_words=5)
    drawn = quatrains.draw_quatrains(sampler, 500, np.random.default_rng(1))
    assert len(drawn) == 500
    assert 0 not in {number for row in drawn for number in row}
    assert {len(row) for row in drawn} == {0, 1, 2, 3, 4, 5}
    again = quatrains.draw_quatrains(sampler, 500, np.random.default_rng(1))
    other = quatrains.draw_quatrains(sampler, 500, np.random.default_rng(2))
    assert drawn == again != other


def test_an_opening_is_what_the_next_words_follow():
    model = small_model()
    sampler = quatrains.build_sampler(model, 4, max_words=4)
    rng = np.random.default_rng(1)
    for opening in ([3], [1, 2, 3, 4]):
        drawn = quatrains.draw_quatrains(sampler, 20_000, rng, opening)
        assert all(row[: len(opening)] == opening and len(row) <= 4 for row in drawn)
    opening = [5, 6]
    drawn = quatrains.draw_quatrains(sampler, 20_000, rng, opening)
    after = model.predict(np.array([[0, 0, 5, 6]]), verbose=0)[0]
    third = np.array([row[2] if len(row) > 2 else 0 for row in drawn])
    assert chi_square(third, after) < 40


def test_a_saved_model_loads_in_plain_keras(tmp_path):
    model = small_model()
    path = tmp_path / "model.keras"
    model.save(path)
    phrases = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.int32)
    np.save(tmp_path / "expected.npy", model.predict(phrases, verbose=0))
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "given = model.predict(np.array([[1, 2, 3, 4], [0, 0, 0, 0]]), verbose=0)\n"
        "np.testing.assert_allclose(given, np.load(sys.argv[2]), rtol=1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "expected.npy")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "model.keras").exists()


def test_a_gpu_that_tensorflow_does_not_see_is_refused(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(quatrains.InputError, match="use_gpu = True, but TensorFlow sees no GPU"):
        quatrains.load_tensorflow(use_gpu=True)


@pytest.mark.parametrize("count", [1, 3])
def test_gpus_get_memory_growth_and_the_first_is_used(monkeypatch, capsys, count):
    import tensorflow as tf

    grown = []
    gpus = [f"GPU:{number}" for number in range(count)]
    monkeypatch.setattr(tf.config, "list_physical_devices", {"GPU": gpus}.get)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on))
    )
    assert quatrains.load_tensorflow(use_gpu=True) == "/gpu:0"
    assert grown == [(gpu, True) for gpu in gpus]
    several = "TensorFlow sees 3 GPUs; the first one is used.\n"
    assert capsys.readouterr().out == (several if count > 1 else "")
