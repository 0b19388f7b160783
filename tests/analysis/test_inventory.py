import json
import re

from graphopt.analysis.costs import total_macs
from graphopt.analysis.inventory import inventory
from graphopt.model.model import Model
from graphopt.pipeline.selection import Selection
from graphopt.testing.builders import conv_bn_relu
from graphopt.testing.nesting import in_branches, in_function


def test_the_figures_are_the_models():
    model = Model.from_proto(conv_bn_relu())
    found = inventory(model)
    assert found.parameters == model.parameter_count
    assert found.macs == total_macs(model) > 0
    assert sum(count for _, count in found.ops) == model.node_count
    assert sum(layer.parameters for layer in found.layers) == model.parameter_count


def test_layers_are_named_on_request_so_that_a_user_can_select_them():
    found = inventory(Model.from_proto(conv_bn_relu()))
    conv = next(layer for layer in found.layers if layer.op == "Conv")
    assert not any(conv.name in line for line in found.lines())
    assert any(line.split()[0] == conv.name for line in found.lines(layers=True) if line.strip())


def test_each_node_that_a_selection_can_name_is_listed_on_request():
    proto = conv_bn_relu()
    proto.graph.node[0].name = ""
    model = Model.from_proto(proto)
    found = inventory(model)
    first = [line.split()[0] for line in found.lines(wiring=True) if line.strip()]
    for node in model.editor.nodes():
        assert node.name in first
        assert len(Selection.of(model, only=[node.name]).blocked) == model.node_count - 1
    assert len(found.lines(wiring=True)) == len(found.lines()) + model.node_count + 1


def test_a_node_is_told_with_the_sizes_around_it_but_not_its_weights():
    lines = inventory(Model.from_proto(conv_bn_relu())).lines(wiring=True)
    told = next(line.split(maxsplit=2) for line in lines if " Conv " in line and "->" in line)
    assert re.fullmatch(r"input \[[\d, ]+\] -> \S+ \[[\d, ]+\]", told[2]), told


def test_what_is_inside_bodies_counts_and_is_said_to():
    plain, found = (inventory(Model.from_proto(proto)) for proto in (conv_bn_relu(), in_branches(conv_bn_relu())))
    assert (found.nodes, found.bodies) == (2 * plain.nodes + 1, 2 * plain.nodes)
    assert (found.macs, found.parameters) == (2 * plain.macs, plain.parameters)
    told = "\n".join(found.lines())
    assert f"nodes   {found.nodes}, {found.bodies} of them in bodies of If, Loop and Scan" in told
    assert "each body as run once" in told and "each body" not in "\n".join(plain.lines())


def test_what_local_functions_do_is_said_not_to_count():
    found = inventory(Model.from_proto(in_function(conv_bn_relu())))
    assert found.functions == ("graphopt.testing.Inner",)
    assert "note: what local functions hold and do is not counted (1: graphopt.testing.Inner)" in found.notes()


def test_as_json():
    found = json.loads(json.dumps(inventory(Model.from_proto(conv_bn_relu())).as_dict()))
    assert list(found)[:2] == ["schema_id", "schema_version"]
    assert (found["schema_id"], found["schema_version"]) == ("graphopt/inspect", 1)
    assert {"name", "op", "macs", "parameters", "bytes"} == set(found["layers"][0])
    assert {"name", "op", "inputs", "outputs"} == set(found["wiring"][0])
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
