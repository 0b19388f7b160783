from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from graphopt.data.callable import function_samples, is_reference, load_function
from graphopt.data.readers import read_samples
from graphopt.errors import GraphoptError

X = "x:float32[1,2]"


def feed(value=0.0):
    return {"x": np.full((1, 2), value, np.float32)}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current directory; modules imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refused(source, interface, **keywords):
    with pytest.raises(GraphoptError) as caught:
        read_samples(source, interface, **keywords)
    return caught.value


def test_a_function_of_the_current_directory_is_found_and_may_import_its_neighbour(workplace, make_interface):
    (workplace / "neighbour_a.py").write_text("import numpy as np\nX = np.ones((1, 2), np.float32)\n")
    (workplace / "mine_a.py").write_text(
        "def feeds():\n    import neighbour_a\n    yield {'x': neighbour_a.X}\n    yield {'x': neighbour_a.X * 2}\n"
    )
    path = list(sys.path)
    samples = read_samples("mine_a:feeds", make_interface(X))
    assert [f["x"][0, 0] for f in samples] == [1, 2]
    assert samples.source == "mine_a:feeds"
    assert sys.path == path


def test_labels_come_as_the_second_of_a_pair(make_interface):
    samples = read_samples(lambda: ([feed(1), feed(2)], [4, 5]), make_interface(X))
    assert samples.labels.tolist() == [4, 5]
    assert len(samples) == 2


def test_a_tuple_of_two_feeds_is_two_feeds(make_interface):
    samples = read_samples(lambda: (feed(1), feed(2)), make_interface(X))
    assert len(samples) == 2
    assert samples.labels is None


def test_samples_can_be_walked_again_though_a_generator_cannot(make_interface):
    samples = read_samples(lambda: (feed(i) for i in range(3)), make_interface(X))
    assert len(list(samples)) == len(list(samples)) == 3


def test_an_endless_generator_ends_at_the_limit(make_interface):
    endless = lambda: (feed(i) for i in itertools.count())  # noqa: E731
    assert len(read_samples(endless, make_interface(X), limit=5)) == 5
    with pytest.raises(GraphoptError) as caught:
        function_samples(endless, make_interface(X), "endless", max_bytes=100)
    assert caught.value.code == "GO-701"


def test_the_limit_cuts_labels_too(make_interface):
    samples = read_samples(lambda: ([feed(i) for i in range(4)], np.arange(4)), make_interface(X), limit=2)
    assert samples.labels.tolist() == [0, 1]


def test_an_error_in_the_function_names_type_text_and_line(workplace, make_interface):
    (workplace / "mine_b.py").write_text("def feeds():\n    value = 1\n    return value['x']\n")
    error = refused("mine_b:feeds", make_interface(X))
    assert error.code == "GO-606"
    assert "TypeError" in error.why
    assert "line 3 of mine_b.py" in error.why


@pytest.mark.parametrize("body", ["import no_such_module_xyz", "1 +", "raise SystemExit(3)", "1 / 0"])
def test_a_module_that_does_not_import_is_the_users_error(workplace, make_interface, body):
    (workplace / "mine_c.py").write_text(body + "\n")
    error = refused("mine_c:feeds", make_interface(X))
    assert error.code == "GO-606"
    assert error.exit_code == 6


@pytest.mark.parametrize("reference", ["no_such_module_abc:f", "math:no_such_function", "math:pi"])
def test_a_reference_to_nothing_callable_is_refused(reference):
    with pytest.raises(GraphoptError) as caught:
        load_function(reference)
    assert caught.value.code == "GO-606"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (lambda: None, "GO-403"),
        (lambda: 5, "GO-403"),
        (feed, "GO-403"),
        (lambda: [np.zeros((1, 2), np.float32)], "GO-403"),
        (list, "GO-401"),
        (lambda: [{"y": np.zeros((1, 2), np.float32)}], "GO-402"),
        (lambda: [feed(np.nan)], "GO-404"),
        (lambda: ([feed()], [1, 2]), "GO-406"),
        (lambda: ([feed()], ["cat"]), "GO-406"),
    ],
)
def test_what_is_no_sequence_of_feeds_is_refused(make_interface, given, code):
    assert refused(given, make_interface(X)).code == code


def test_an_interrupt_is_not_the_functions_error(make_interface):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_samples(interrupted, make_interface(X))


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("a:b", True),
        ("a.b:c.d", True),
        ("a", False),
        ("a/b:c", False),
        ("C:\\x", False),
        ("a:", False),
        ("1a:b", False),
    ],
)
def test_references_are_told_from_paths(text, yes):
    assert is_reference(text) is yes
