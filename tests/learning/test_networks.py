"""The registry of networks, and what a run folder can make again from a name and arguments."""

from __future__ import annotations

import ast
import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from runkit import Net, job_in

import rehearsal_kit
from rehearsal_kit.base.errors import RunFolderError
from rehearsal_kit.learning.networks import registry
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.network import Network, why_not_again
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.networks.registry import NETWORKS, network_class
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.rank.run_spec import keep_spec, read_network


def stored(tmp_path, network):
    spec = job_in(tmp_path / "run", network=network)
    keep_spec(spec, ranks=1)
    return spec.run, json.loads(spec.run.settings.read_text())["network"]


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return [*first] == [*second] and all(torch.equal(first[name], second[name]) for name in first)


def test_every_module_of_the_folder_is_in_the_registry_and_known_to_type_checkers():
    folder = Path(registry.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "network", "registry"}
    assert set(NETWORKS.values()) == modules
    (typed,) = (node for node in ast.parse(Path(registry.__file__).read_text()).body if type(node) is ast.If)
    imported = {alias.asname: each.module for each in typed.body for alias in each.names if alias.asname}
    assert imported == {name: f"{registry.__package__}.{module}" for name, module in NETWORKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_is_public_and_made_again_from_its_run_folder_bit_for_bit(tmp_path, name):
    kind = network_class(name)
    assert getattr(rehearsal_kit, name) is kind
    assert name in rehearsal_kit.__all__
    network = kind(seed=3)
    assert isinstance(network, Network)
    assert why_not_again(network) == ""
    run, kept = stored(tmp_path, network)
    assert kept["arguments"] == network.arguments
    again = read_network(run)
    assert type(again) is kind
    assert same(again, network)


def test_a_run_of_an_earlier_version_says_another_module_and_is_found(tmp_path):
    network = ConvNet(width=4, seed=3)
    run, _ = stored(tmp_path, network)
    settings = json.loads(run.settings.read_text())
    settings["network"]["class"] = "rehearsal_kit.models.networks:ConvNet"
    run.settings.write_text(json.dumps(settings))
    assert same(read_network(run), network)


def test_a_run_is_gone_on_with_after_the_source_of_a_network_of_ours_was_written_anew(tmp_path):
    network = ConvNet(width=4, seed=3)
    run, kept = stored(tmp_path, network)
    assert kept["source"] == ""
    settings = json.loads(run.settings.read_text())
    settings["network"]["source"] = "of a version before"
    run.settings.write_text(json.dumps(settings))
    assert same(read_network(run), network)


def other_activation():
    network = ConvNet(width=4)
    network.features[2] = torch.nn.GELU()
    return network


def other_head():
    network = ResNet(classes=4, width=4, stem="small")
    network.fc = torch.nn.Linear(network.fc.in_features, 7)
    return network


def one_buffer_more():
    network = ConvNet(width=4)
    network.register_buffer("seen", torch.zeros(1))
    return network


def one_layer_twice():
    network = PtychoNN(size="small")
    network.phase = network.amplitude
    return network


def hooked():
    network = ConvNet(width=4)
    network.register_forward_hook(lambda module, inputs, outputs: outputs)
    return network


def other_forward():
    network = ConvNet(width=4)
    network.forward = lambda image: {}
    return network


ALTERED = [other_activation, other_head, one_buffer_more, lambda: ConvNet(width=4).double(), one_layer_twice]


@pytest.mark.parametrize("altered", [hooked, other_forward])
def test_one_that_computes_something_else_is_said_so(altered):
    assert "was altered after it was made" in why_not_again(altered())


@pytest.mark.parametrize("altered", ALTERED)
def test_one_of_ours_that_was_altered_is_said_so_and_not_quietly_made_again_as_another(tmp_path, altered):
    network = altered()
    assert "was altered after it was made" in why_not_again(network)
    run, kept = stored(tmp_path, network)
    assert kept["arguments"] is None
    with pytest.raises(RunFolderError, match=r"was altered .*give it again: network=\.\.\."):
        read_network(run)
    assert same(read_network(run, altered()), network)


def test_weights_frozen_parts_and_modes_do_not_alter_a_network():
    network = ResNet(classes=4, width=4, stem="small").eval()
    network.conv1.requires_grad_(False)
    torch.nn.init.zeros_(network.fc.weight)
    assert why_not_again(network) == ""


def test_an_own_network_may_call_anything_its_arguments(tmp_path):
    network = Net()
    network.arguments = Namespace(depth=3)
    run, kept = stored(tmp_path, network)
    assert kept["arguments"] is None
    with pytest.raises(RunFolderError, match=r"runkit:Net, which is not one of ours.*network=\.\.\."):
        read_network(run)
    assert same(read_network(run, Net()), network)


def test_what_cannot_be_made_again_is_said_with_its_reason():
    class Local(ConvNet):
        pass

    class Script(ConvNet):
        pass

    Script.__module__, Script.__qualname__ = "__main__", "Script"
    assert re.match("the class Net of the network, from runkit, is not one of ours", why_not_again(Net()))
    for kind in (Local, Script):
        assert re.match(f"the class {kind.__name__} of the network cannot be imported", why_not_again(kind()))
