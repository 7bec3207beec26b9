"""A network or strategy of one's own on the command line: found where it is said to be."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
from runkit import Net, job_in

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.cli.main import main
from rehearsal_kit.cluster.own_code import made_by
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.run_spec import keep_spec

CODE = """
import torch
from beside_my_network import SIZE

class Mine(torch.nn.Linear):
    def __init__(self):
        super().__init__(SIZE, 2)

class Sized(torch.nn.Linear):
    def __init__(self, size):
        super().__init__(size, 2)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_my_network.py").write_text("SIZE = 3\n")
    path = tmp_path / "my_network.py"
    path.write_text(CODE)
    yield path
    module = sys.modules.pop("my_network", None)
    sys.modules.pop("beside_my_network", None)
    if module is not None and "my_network" in cloudpickle.list_registry_pickle_by_value():
        sys.modules["my_network"] = module
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["my_network"]


def test_a_file_is_run_from_where_it_is_and_what_it_makes_can_be_sent(file):
    network = made_by(f"{file}:Mine")
    assert (type(network).__name__, network.in_features) == ("Mine", 3)
    assert b"beside_my_network" not in cloudpickle.dumps(network)


def test_an_installed_module_will_do():
    assert made_by("rehearsal_kit.learning.strategies.replay:ER") == ER()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my_network.py", "FILE.py:NAME"),
        ("nowhere.py:Mine", "nowhere.py is not there"),
        ("my_network:Mine", "not an installed module"),
        ("{file}:Yours", "has no class or function Yours; it has Mine, Sized"),
        ("{file}:Sized", "cannot be called without arguments"),
    ],
)
def test_what_cannot_be_made_says_what_to_type(file, text, said, monkeypatch):
    monkeypatch.chdir(file.parent)  # nothing is looked for in the current folder by its name alone
    with pytest.raises(SettingsError, match=said):
        made_by(text.format(file=file))


def test_a_replay_says_which_option_names_the_network(tmp_path, capsys):
    spec = job_in(tmp_path / "run", network=Net(), strategy=ER())
    keep_spec(spec, ranks=1)
    assert main(["replay", str(spec.run.path)]) == 1
    said = capsys.readouterr().err
    assert "--network FILE.py:NAME" in said
    assert "runkit:Net" in said
