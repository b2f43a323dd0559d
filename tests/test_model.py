"""The model, its training step, and the sampler, all inside one process."""

import ctypes.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import quatrains
from conftest import ROOT, SMALL, arguments, write_verses

TRAINING = SMALL | {"corpus": "verses.txt", "runs": 1}
DEFAULTS, _ = quatrains.read_settings(vars(quatrains), [])


@pytest.fixture(scope="module", autouse=True)
def keras():
    assert quatrains.load_tensorflow(use_gpu=False) == "/cpu:0"
    return quatrains.keras


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


def small_samples(count, words=12, phrase_len=4):
    draw = np.random.default_rng(2)
    phrases = draw.integers(0, words, (count, phrase_len)).astype(np.int32)
    targets = draw.integers(0, words, count).astype(np.int32)
    return phrases, targets, draw.uniform(1, 9, count).astype(np.float32)


def test_layers_and_hyperparameters_are_the_published_ones(keras):
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
    assert gru.activation is keras.activations.tanh
    assert gru.recurrent_activation is keras.activations.sigmoid
    for penalty in (gru.kernel_regularizer, gru.recurrent_regularizer, gru.bias_regularizer):
        assert type(penalty) is keras.regularizers.L2
        assert float(penalty.l2) == pytest.approx(0.02)
    assert type(dense) is keras.layers.Dense
    assert dense.units == 4705
    assert dense.activation is keras.activations.softmax
    assert dense.kernel_regularizer is None
    assert model.count_params() == 4705 * 300 + 3 * 128 * (300 + 128 + 2) + 129 * 4705
    assert model.input_shape == (None, 4)
    assert model.output_shape == (None, 4705)
    assert type(model.optimizer) is keras.optimizers.RMSprop
    assert float(model.optimizer.learning_rate) == pytest.approx(0.003)
    assert (model.optimizer.rho, model.optimizer.momentum) == (0.9, 0.0)
    assert model.loss == "sparse_categorical_crossentropy"
    assert model.jit_compile is True


def test_acc_is_the_share_of_words_guessed_right(keras):
    model = small_model()
    draw = np.random.default_rng(1)
    predicted = draw.random((5000, 12)).astype(np.float32)
    targets = draw.integers(0, 12, (5000, 1))
    theirs = keras.metrics.SparseCategoricalAccuracy()
    measured = model.compute_metrics(None, targets, predicted)
    assert [*measured] == ["loss", "acc", "cross_entropy"]
    assert float(measured["acc"]) == float(theirs(targets, predicted)) > 0.05


def test_an_epoch_reports_weighted_training_and_plain_validation():
    model = small_model(dropout=0.0, learning_rate=1e-9)
    phrases, targets, weights = small_samples(50)
    training = phrases[:40], targets[:40], weights[:40]
    validation = phrases[40:], targets[40:], weights[40:]
    rng = np.random.default_rng(2)
    before = model.predict(phrases, verbose=0)
    epoch = quatrains.build_epoch(model, training, validation, batch_size=16)
    first, metrics = epoch(rng), epoch(rng)
    assert first == pytest.approx(metrics, rel=1e-4)

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
            "cross_entropy": cross_entropy[:40].mean(),
            "val_loss": cross_entropy[40:].mean() + penalty,
            "val_acc": hits[40:].mean(),
            "val_cross_entropy": cross_entropy[40:].mean(),
        },
        rel=1e-4,
    )


class Watched:
    """A generator of random numbers that keeps what it has drawn."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.drawn = {"integers": [], "permutation": []}

    def __getattr__(self, name):
        def draw(*args, **kwargs):
            self.drawn[name].append(getattr(self.rng, name)(*args, **kwargs))
            return self.drawn[name][-1]

        return draw


def edited_model(**changes):
    """A small model with other layers, loss, metrics or optimizer, as an edit would make it."""
    keras = quatrains.keras
    keras.utils.set_random_seed(3)
    layers = changes.pop("layers", [keras.layers.LSTM(6, unroll=True)])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(12, 5),
            *layers,
            keras.layers.Dense(12, activation="softmax"),
        ]
    )
    how = {"optimizer": keras.optimizers.RMSprop(0.003), "jit_compile": True}
    model.compile(**how | {"loss": "sparse_categorical_crossentropy", "metrics": ["acc"]} | changes)
    return model


def use_lstm():
    return edited_model()


def use_adamw():
    optimizers = quatrains.keras.optimizers
    schedule = optimizers.schedules.CosineDecay(0.01, 15)
    return edited_model(optimizer=optimizers.AdamW(schedule, weight_decay=0.1))


def use_sgd_without_xla():
    keras = quatrains.keras
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=3)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    return edited_model(optimizer=optimizer, loss=loss, jit_compile=False)


def use_dropouts():
    layers = quatrains.keras.layers
    rnn = layers.SimpleRNN(6, dropout=0.3, recurrent_dropout=0.4, unroll=True)
    return edited_model(layers=[layers.SpatialDropout1D(0.3), rnn, layers.Dropout(0.3)])


STEPS = {
    "a word": lambda: small_model(dropout=0.0, phrase_len=1),
    "unrolled": lambda: small_model(dropout=0.0, phrase_len=4),
    "looped": lambda: small_model(dropout=0.0, phrase_len=9),
    "dropout": lambda: small_model(dropout=0.5),
    "LSTM": use_lstm,
    "AdamW, decaying": use_adamw,
    "SGD and another loss, without XLA": use_sgd_without_xla,
    "dropouts in three layers": use_dropouts,
}


@pytest.mark.parametrize("build", STEPS.values(), ids=STEPS)
def test_steps_are_those_of_keras(build):
    """Two epochs leave the same weights as Keras's own layers, loss and optimizer, step by step.

    With dense gradients, as in 2017: Keras 3's own fit takes the square of each part of a gradient
    when a word stands several times in a batch, rather than of their sum.
    """
    import tensorflow as tf

    ours, theirs = build(), build()
    untrained = ours.get_weights()
    theirs.set_weights(untrained)
    phrase_len = ours.input_shape[1]
    if "GRU" in (names := [layer.name for layer in ours.layers]):
        assert ours.layers[names.index("GRU")].unroll == (phrase_len < 9)
    training = phrases, targets, weights = small_samples(150, phrase_len=phrase_len)
    epoch = quatrains.build_epoch(ours, training, training, batch_size=16)
    rng = Watched(4)
    losses = [epoch(rng)["loss"] for _ in range(2)]
    orders, seeds = rng.drawn["permutation"], iter(rng.drawn["integers"])
    assert not np.array_equal(*orders)
    for order, reported in zip(orders, losses, strict=True):
        for variable in theirs.non_trainable_variables:
            variable.assign(next(seeds))
        sums = 0.0
        for batch in np.split(order, range(16, 150, 16)):
            with tf.GradientTape() as tape, quatrains.hashed_dropouts():
                predicted = theirs(phrases[batch], training=True)
                loss = theirs.compute_loss(None, targets[batch, None], predicted, weights[batch])
            gradients = tape.gradient(loss, [weight.value for weight in theirs.trainable_weights])
            dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
            theirs.optimizer.apply(dense, theirs.trainable_weights)
            sums += float(loss) * len(batch)
        assert reported == pytest.approx(sums / 150, rel=1e-4)
    compared = zip(ours.get_weights(), theirs.get_weights(), untrained, strict=True)
    for our, their, before in compared:
        assert our == pytest.approx(their, abs=2e-4)
        assert np.abs(our - before).max() > 1e-3


def test_measuring_and_writing_change_nothing_in_what_is_trained():
    phrases, targets, weights = samples = small_samples(100)
    none = phrases[:0], targets[:0], weights[:0]
    trained = []
    for measured in (none, samples):
        model, rng = small_model(dropout=0.5), np.random.default_rng(1)
        epoch = quatrains.build_epoch(model, samples, measured, batch_size=16)
        draw = quatrains.build_sampler(model, 4, max_words=5)
        losses = []
        for _ in range(2):
            losses.append(epoch(rng)["loss"])
            if measured is samples:
                model.evaluate(phrases, targets, verbose=0)
                model.predict(phrases, verbose=0)
                draw(20, np.random.default_rng(1))
        trained.append((losses, model.get_weights()))
    (losses, weights), (others, same) = trained
    assert losses == others
    assert all(map(np.array_equal, weights, same))


def train(folder, logs):
    """Train in this process; return the weights of the checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert quatrains.main(arguments(**TRAINING | {"logs": logs})) == 0
    return load_weights(folder / logs)


def load_weights(logs):
    return quatrains.keras.models.load_model(quatrains.find_checkpoint(logs)).get_weights()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with verses, and the weights of a training on them."""
    folder = write_verses(tmp_path_factory.mktemp("trained") / "verses.txt").parent
    return folder, train(folder, "first")


def test_a_seed_repeats_a_training_bit_by_bit(trained):
    folder, weights = trained
    assert all(map(np.array_equal, weights, train(folder, "second")))


def test_training_learns():
    model = small_model(dropout=0.1, regularization=0.0, learning_rate=0.01)
    phrases = np.arange(48).reshape(12, 4).astype(np.int32) % 12
    samples = phrases, (phrases[:, 0] + 5) % 12, np.ones(12, np.float32)
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
    drawn = quatrains.build_sampler(model, 4, max_words=3)(40_000, np.random.default_rng(1))
    assert len(drawn) == 40_000
    # A row ends before its break; what would come after does not matter.
    rows = np.array([[*row, 0, 0, 0][:3] for row in drawn])
    first = model.predict(np.zeros((1, 4)), verbose=0)[0]
    assert first.max() > 3 * np.median(first)
    # 11 degrees of freedom: above 40 once in 30,000 seeds.
    assert chi_square(rows[:, 0], first) < 40
    for word in (np.argsort(first[1:]) + 1)[-3:]:
        after = model.predict(np.array([[0, 0, 0, word]]), verbose=0)[0]
        pairs = rows[rows[:, 0] == word]
        assert chi_square(pairs[:, 1], after) < 40
        next_word = np.bincount(pairs[:, 1])[1:].argmax() + 1
        third = model.predict(np.array([[0, 0, word, next_word]]), verbose=0)[0]
        assert chi_square(pairs[pairs[:, 1] == next_word, 2], third) < 40


def first_words(drawn):
    return np.array([row[0] if row else 0 for row in drawn])


def test_temperature_and_top_k_change_the_distribution():
    model = small_model()
    sampler = quatrains.build_sampler(model, 4, max_words=1)
    first = model.predict(np.zeros((1, 4)), verbose=0)[0].astype(float)

    def draw(temperature, top_k):
        rng = np.random.default_rng(1)
        return first_words(sampler(20_000, rng, temperature=temperature, top_k=top_k))

    for temperature in (0.5, 2.0):
        tempered = first ** (1 / temperature) / (first ** (1 / temperature)).sum()
        assert chi_square(draw(temperature, 0), tempered) < 40
    for top_k in (1, 3):
        likeliest = np.argsort(first)[-top_k:]
        kept = draw(1.0, top_k)
        assert set(kept) == set(likeliest)
        shares = np.bincount(kept, minlength=12)[likeliest] / len(kept)
        assert shares == pytest.approx(first[likeliest] / first[likeliest].sum(), abs=0.02)
    assert set(draw(1.0, 99)) == set(range(12))


def test_quatrains_stop_at_a_break_or_at_max_words():
    sampler = quatrains.build_sampler(small_model(), 4, max_words=5)
    drawn = sampler(2500, np.random.default_rng(1))
    assert len(drawn) == 2500
    assert 0 not in {number for row in drawn for number in row}
    assert {len(row) for row in drawn} == {0, 1, 2, 3, 4, 5}
    assert drawn == sampler(2500, np.random.default_rng(1))
    others = (drawn[1000:2000], sampler(1000, np.random.default_rng(2)))
    assert drawn[:1000] not in others
    assert sampler(0, np.random.default_rng(1)) == []


def test_an_opening_is_what_the_next_words_follow():
    model = small_model()
    sampler = quatrains.build_sampler(model, 4, max_words=5)
    rng = np.random.default_rng(1)
    for opening in ([5, 6], [1, 2, 3, 4]):
        drawn = sampler(20_000, rng, opening)
        assert all(row[: len(opening)] == opening and len(row) <= 5 for row in drawn)
        assert max(map(len, drawn)) == 5
        after = model.predict(np.array([[0, 0, *opening][-4:]]), verbose=0)[0]
        assert chi_square(first_words(row[len(opening) :] for row in drawn), after) < 40


def test_a_model_that_is_none_of_ours_is_refused(keras):
    quatrains.check_model(small_model(), 12, 4)
    with pytest.raises(ValueError, match=r"\(2, 12\) .* not \(2, 13\) probabilities"):
        quatrains.check_model(small_model(), 13, 4)
    with pytest.raises(ValueError, match=r"\(2, 4, 12\) .* not \(2, 12\) probabilities"):
        sequences = keras.layers.GRU(6, return_sequences=True)
        quatrains.check_model(edited_model(layers=[sequences]), 12, 4)
    linear = small_model()
    linear.layers[-1].activation = keras.activations.linear
    with pytest.raises(ValueError, match=r"from -\d.* probabilities"):
        quatrains.check_model(linear, 12, 4)
    for layers in (small_model().layers, edited_model().layers):
        with pytest.raises(ValueError, match="compile"):
            quatrains.check_model(keras.Sequential(layers), 12, 4)


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


@pytest.mark.parametrize(
    ("cuda", "driver", "lacks"),
    [
        (False, None, "CUDA, as tensorflow-cpu does"),
        (True, None, "NVIDIA's driver"),
        (True, "libcuda.so.1", 'libraries: pip install "tensorflow[and-cuda]"'),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see_is_refused(monkeypatch, cuda, driver, lacks):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: cuda)
    monkeypatch.setattr(ctypes.util, "find_library", {"cuda": driver}.get)
    with pytest.raises(quatrains.InputError) as refused:
        quatrains.load_tensorflow(use_gpu=True)
    told = "use_gpu = True, but TensorFlow sees no GPU, for it lacks "
    assert str(refused.value) == f"{told}{lacks}; mend that, or set use_gpu = False"


def run_with(folder, environment, *given):
    """Run the script on its verses with these variables, and without any that quiets TensorFlow."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    return subprocess.run(
        [sys.executable, ROOT / "quatrains.py", "--corpus", "verses.txt", *given],
        cwd=folder,
        env=bare | environment,
        capture_output=True,
        text=True,
    )


def test_without_a_gpu_one_line_says_so_and_tensorflow_none(verses):
    # No GPU is seen, were there one.
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
    done = run_with(verses.parent, hidden, "--use-gpu", "--glove", "none")
    assert done.returncode == 2
    (told,) = done.stderr.splitlines()
    assert told.startswith("quatrains: use_gpu = True, but TensorFlow sees no GPU, for it lacks ")
    settings, *lines, corpus = done.stdout.splitlines()
    assert settings == "Settings:"
    assert all(line.startswith("  ") for line in lines)
    assert corpus.startswith("Corpus: verses.txt has 60 quatrains, ")
    assert not (verses.parent / "logs").exists()


def test_what_tensorflow_says_can_be_had(verses):
    asked = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = run_with(verses.parent, asked, "--use-gpu", "--glove", "none")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) > 1


def test_kerass_own_settings_do_no_harm(trained, tmp_path):
    folder, weights = trained
    (tmp_path / "keras.json").write_text(json.dumps({"floatx": "float64", "backend": "jax"}))
    given = arguments(**TRAINING | {"logs": "third"})
    done = run_with(folder, {"KERAS_HOME": str(tmp_path)}, *given)
    assert (done.returncode, done.stderr) == (0, "")
    same = load_weights(folder / "third")
    assert {weight.dtype for weight in same} == {np.dtype("float32")}
    assert all(map(np.array_equal, weights, same))


@pytest.mark.parametrize("count", [1, 3])
def test_gpus_get_memory_growth_and_the_first_is_used(monkeypatch, count):
    import tensorflow as tf

    grown = []
    gpus = [f"GPU:{number}" for number in range(count)]
    monkeypatch.setattr(tf.config, "list_physical_devices", {"GPU": gpus}.get)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on))
    )
    assert quatrains.load_tensorflow(use_gpu=True) == "/gpu:0"
    assert grown == [(gpu, True) for gpu in gpus]
