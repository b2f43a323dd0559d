"""Downloading GloVe from a server on this machine, which may misbehave."""

import contextlib
import functools
import hashlib
import io
import re
import socket
import threading
import zipfile

import pytest

import quatrains
from conftest import QUICK
from quatrains import keras

PACKED = io.BytesIO()
with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("glove.6B.50d.txt", "king" + 50 * " 0.5" + "\neagle" + 50 * " 0.25" + "\n")
ARCHIVE = PACKED.getvalue()
GOOD = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ARCHIVE), ARCHIVE)
ANSWERS = {
    "good": GOOD,
    "404": b"HTTP/1.0 404 Not Found\r\n\r\n",
    "wrong": GOOD.replace(b"eagle", b"raven"),
    "cut": GOOD[:-100],
    "stalled": GOOD[:-100],  # The connection stays open.
}


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """A function that downloads GloVe into the working directory, given the server's answer. Its
    attribute `requests` lists the answers that were requested."""
    listener, connections = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        with contextlib.suppress(OSError):  # The listener is shut down.
            while True:
                connections.append(listener.accept()[0])
                connections[-1].settimeout(None)
                how = connections[-1].recv(4096).split(b"/")[1].decode()
                fetch.requests.append(how)
                connections[-1].sendall(ANSWERS[how])
                if how != "stalled":
                    connections[-1].close()

    def fetch(how):
        port = listener.getsockname()[1] if how in ANSWERS else 1
        monkeypatch.setattr(quatrains, "GLOVE_URL", f"http://127.0.0.1:{port}/{how}/")
        return quatrains.find_glove("auto", 50)

    fetch.requests = []
    monkeypatch.chdir(tmp_path)
    get_file = functools.partial(keras.utils.get_file, cache_dir=tmp_path)
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setattr(quatrains, "GLOVE_SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    set_timeout = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and 1))
    threading.Thread(target=serve, daemon=True).start()
    yield fetch
    listener.shutdown(socket.SHUT_RDWR)
    for connection in (listener, *connections):
        connection.close()


def test_glove_is_downloaded_once_and_again_if_the_file_is_damaged(fetch):
    path = fetch("good")
    assert path.read_bytes() == ARCHIVE
    assert fetch("good") == path
    assert fetch.requests == ["good"]

    path.write_bytes(ARCHIVE[:-100])
    assert fetch("404") is None
    assert fetch("good").read_bytes() == ARCHIVE
    assert fetch.requests == ["good", "404", "good"]
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("how", ["404", "wrong", "cut", "stalled", "no server", "no cache"])
def test_a_failed_download_is_one_line_and_never_used(fetch, tmp_path, capsys, how):
    if how == "no cache":
        (tmp_path / "datasets").write_text("a file")
    assert fetch(how) is None
    announced, line = re.findall(r"^GloVe: .*$", capsys.readouterr().out, re.MULTILINE)
    assert re.fullmatch(r".* downloading 862 MB once\. .* glove = \"none\" .*", announced)
    assert re.fullmatch(r"GloVe: not available \(.+\); words are random\. .*\"none\" .*", line)
    assert socket.getdefaulttimeout() is None
    if how == "no cache":
        (tmp_path / "datasets").unlink()
    assert fetch("good").read_bytes() == ARCHIVE
    assert fetch.requests == [*[how] * (how in ANSWERS), "good"]


def train(**settings):
    return quatrains.train(**QUICK | {"glove": "auto", "embedding_dim": 50} | settings)


MISTAKES = {
    "gives 0 samples, but needs 20": {"phrase_len": 99},
    "prompt has 'kinq', which is not in the corpus .*king": {"prompt": "kinq"},
    "build_model must turn 2 phrases into": {},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_reported_before_a_download(fetch, verses, monkeypatch, message):
    fetch("404")
    if not MISTAKES[message]:
        build_model = quatrains.build_model
        monkeypatch.setattr(quatrains, "build_model", lambda e, s: build_model(e[1:], s))
    with pytest.raises(quatrains.UsageError, match=message):
        train(**MISTAKES[message])
    assert fetch.requests == ["404"]
