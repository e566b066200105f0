"""Trackers: the calls they get, what a resumed fit does to them, and what happens when one is missing or fails."""

import sys
import tomllib
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fusemix import tracking
from fusemix.errors import DataError, FusemixError, MissingExtraError
from fusemix.tracking import Tracker, tracker

CONFIG = {"dim": 512, "lr": 1e-3}


@pytest.fixture(params=["trackio", "wandb"])
def library(request, monkeypatch):
    """A stand-in that takes the arguments that trackio and wandb share, and remembers the calls."""
    module = ModuleType(request.param)
    module.calls = []

    def init(*, project, name, config, resume):
        sys.stdout.write("a greeting\n")
        module.calls.append(("init", project, name, config, resume))

    module.init = init
    module.log = lambda numbers, *, step: module.calls.append(("log", numbers, step))
    module.finish = lambda: module.calls.append(("finish",))
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_trackio_and_wandb_get_the_same_calls_and_leave_stdout_alone(library, tmp_path, capsys):
    with tracker(library.__name__, "shoes", CONFIG, tmp_path) as track:
        track({"step": 10, "epoch": 0.5, "loss": 2.0})
        track({"step": 20.0, "epoch": 1.0, "loss": 1.0, "val": 30.0})
    assert library.calls == [
        ("init", "fusemix", "shoes", CONFIG, "allow"),
        ("log", {"epoch": 0.5, "loss": 2.0}, 10),
        ("log", {"epoch": 1.0, "loss": 1.0, "val": 30.0}, 20),
        ("finish",),
    ]
    printed = capsys.readouterr()
    assert printed.out == "" and "a greeting" in printed.err


def test_a_tracker_that_cannot_start_says_so_before_the_training(library, tmp_path):
    def init(**given):
        raise RuntimeError("no API key.\nmore lines")

    library.init = init
    with pytest.raises(FusemixError, match=r"cannot start: no API key; set it up, or fit without --track"):
        tracker(library.__name__, "shoes", CONFIG, tmp_path)


def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on():
    calls = []

    def log(numbers, step):
        calls.append(step)
        raise ConnectionError("the network is gone")

    track = Tracker("wandb", log, lambda: calls.append("finish"))
    with pytest.warns(RuntimeWarning, match="wandb failed and is told no more: the network is gone; the training goes"):
        track({"step": 1, "loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        track({"step": 2, "loss": 1.0})
        track.close()
    assert calls == [1]


def test_an_interruption_is_no_failure_of_the_tracker():
    def log(numbers, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tracker("wandb", log, lambda: None)({"step": 1})


@pytest.mark.parametrize(("name", "extra"), [("trackio", "track"), ("wandb", "wandb"), ("tensorboard", "tensorboard")])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(name, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        tracker(name, "shoes", CONFIG, tmp_path)
    assert str(caught.value) == f'--track {name} needs {name}, which is not installed: pip install "fusemix[{extra}]"'


def test_every_extra_that_a_message_names_is_one_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for name, extra in tracking.EXTRAS.items():
        (need,) = project["optional-dependencies"][extra]
        assert need.startswith(f"{name}>=")


def test_a_misspelt_tracker_is_told(tmp_path):
    with pytest.raises(DataError, match="no tracker 'wanbd'; found: trackio, wandb, tensorboard; did you mean 'wandb'"):
        tracker("wanbd", "shoes", CONFIG, tmp_path)


def test_tensorboard_gets_every_number_and_a_resumed_fit_replaces_what_it_repeats(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append(("open", folder, purge_step))

        def add_text(self, name, text, step):
            written.append((name, text, step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            written.append(("close",))

    monkeypatch.setattr(tracking, "import_module", lambda name: SimpleNamespace(SummaryWriter=Writer))
    with tracker("tensorboard", "shoes", CONFIG, tmp_path) as track:
        track({"step": 7, "loss": 2.0, "val": 5.0})
        track({"step": 8, "loss": 1.0})
    assert written == [
        ("open", tmp_path / "tensorboard", 7),
        ("config", "    dim: 512\n    lr: 0.001\n", 7),
        ("loss", 2.0, 7), ("val", 5.0, 7), ("loss", 1.0, 8),
        ("close",),
    ]  # fmt: skip


def test_tensorboard_for_real(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 3):
        with tracker("tensorboard", "shoes", CONFIG, tmp_path) as track:
            for step in range(first, first + 5):
                track({"step": step, "loss": first + 1.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(0, 1.0), (1, 1.0), (2, 1.0), *((step, 4.0) for step in range(3, 8))]
