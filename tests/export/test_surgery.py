"""Graph tools: what they say of a graph, and that they leave the rest of it alone."""

from __future__ import annotations

import numpy as np
import onnx
import quant_graphs as small
from small_bundle import SIZE, Exported

from export import surgery


def test_copy_is_another_graph() -> None:
    model = small.small()
    other = surgery.copy(model)
    surgery.replace_nodes(other, [])
    assert model.graph.node and not other.graph.node


def test_who_makes_and_who_reads() -> None:
    model = small.small()
    made, read = surgery.producers(model), surgery.consumers(model)
    assert made["cat1"].op_type == "Concat" and "image" not in made
    assert [n.name for n in read["cat2"]] == ["lungs.skip4.0", "backbone.features.transition1.norm"]
    assert "" not in read and "logits" not in read
    twice = onnx.helper.make_node("Add", ["cat2", "cat2"], ["twice"], "twice")
    model.graph.node.append(twice)
    assert [n.name for n in surgery.consumers(model)["cat2"]].count("twice") == 1


def test_a_scalar_stays_one_and_a_view_is_stored_in_order() -> None:
    model = small.small()
    surgery.set_weight(model, "step", np.array(0.5, np.float32))
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    surgery.set_weight(model, "turned", turned)
    stored = surgery.weights(model)
    assert stored["step"].shape == () and stored["step"] == np.float32(0.5)
    np.testing.assert_array_equal(stored["turned"], turned)
    before = len(model.graph.initializer)
    surgery.set_weight(model, "turned", np.zeros(1, np.int8))
    assert len(model.graph.initializer) == before
    assert surgery.weights(model)["turned"].dtype == np.int8


def test_dead_nodes_and_their_weights_go() -> None:
    model = small.small()
    whole = {n.name for n in model.graph.node}
    surgery.drop_dead(model)
    assert {n.name for n in model.graph.node} == whole, "nothing was dead"
    order = [n.name for n in model.graph.node]
    del model.graph.output[2]  # lung_mask
    surgery.drop_dead(model)
    left = [n.name for n in model.graph.node]
    assert left == [n for n in order if n in left], "the order is kept"
    assert whole - set(left) == {n for n in whole if n.startswith("lungs.")} | {
        "relu.lungs.skip4.0.out.relu",
        "sigmoid.lung_mask",
    }
    assert not [t.name for t in model.graph.initializer if t.name.startswith("lungs.")]
    onnx.checker.check_model(model, full_check=True)


def test_rewire_changes_the_named_nodes_only() -> None:
    model = small.small()
    readers = surgery.consumers(model)["cat2"]
    surgery.rewire(readers[:1], "cat2", "other")
    assert [n.name for n in surgery.consumers(model)["cat2"]] == [readers[1].name]
    assert readers[0].input[0] == "other"


def test_shapes_at_a_batch_size(exported: Exported) -> None:
    for batch in (1, 3):
        shape = surgery.shapes(exported.graph, batch)
        assert shape["image"] == (batch, 1, SIZE, SIZE)
        assert shape["logits"] == (batch, 3)
        assert shape["relu_1"] == (batch, 64, SIZE // 4, SIZE // 4)  # what the first dense layer reads
        assert shape["encoder.blocks.0.fc1.weight"] == (192, 48)
    assert exported.graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the graph itself stays dynamic"
