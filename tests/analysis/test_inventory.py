import json

from graphopt.analysis.costs import total_macs
from graphopt.analysis.inventory import inventory
from graphopt.model.model import Model
from graphopt.testing.builders import conv_bn_relu


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


def test_as_json():
    found = json.loads(json.dumps(inventory(Model.from_proto(conv_bn_relu())).as_dict()))
    assert {"name", "op", "macs", "parameters", "bytes"} == set(found["layers"][0])
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
