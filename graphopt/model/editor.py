"""The one way to edit a model's graph.

Arrays become read-only, names stay unique and deterministic, links stay consistent, graph outputs keep their names.
Dead code may be left behind: ``Model.finish`` removes it, sorts, and infers shapes anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.errors import PassError
from graphopt.model import algorithms
from graphopt.model.arrays import Array, frozen
from graphopt.model.constants import attribute_value, node_value, settled
from graphopt.model.ends import Ends
from graphopt.model.graph import EditConstant, EditGraph, EditNode, EditVariable, node_bodies
from graphopt.model.links import Links, new_ancestors


class GraphEditor:
    """Reads and edits one model's graph.

    Ask the editor for the readers of a tensor: gs's own ``tensor.outputs`` may be behind until the next ``nodes()``.

    Tensors and nodes compare by identity. A tensor or node of another model (or of a clone) must not be passed in.

    Args:
        graph: the top-level graph.
        keep: makes a new weight read-only, and decides where it is held.
    """

    def __init__(self, graph: EditGraph, keep: Callable[[Array], Array] = frozen) -> None:
        self._graph = graph
        self._keep = keep
        self._names: set[str] | None = None
        self._suffixes: dict[str, int] = {}
        self._links = Links()
        self._tensors: dict[str, gs.Tensor] | None = None
        self._bodies: list[EditGraph] | None = None
        self._known_ends: Ends | None = None
        self._removed: dict[int, gs.Node] = {}

    # Reading

    def nodes(self) -> list[gs.Node]:
        """The top-level nodes, in graph order; a snapshot that edits do not disturb."""
        self._compact()
        return list(self._graph.nodes)

    def all_nodes(self) -> Iterator[tuple[gs.Node, gs.Graph]]:
        """Every node with the graph it is in, subgraph bodies included; a snapshot."""
        self._compact()
        found = [(node, level) for level in self._levels() for node in level.nodes]
        return iter(found)

    def tensor(self, name: str) -> gs.Tensor | None:
        """The tensor of that name; where bodies repeat a name, the outermost."""
        found = self._index().get(name)
        if found is None or found.name != name:
            self._tensors = None
            found = self._index().get(name)
        return found

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that computes ``tensor``; ``None`` for inputs and initializers."""
        return tensor.inputs[0] if tensor.inputs else None

    def consumers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The nodes that read ``tensor``, each once; nodes of bodies that capture it included."""
        unique = {id(node): node for node in self._links.readers(tensor)}
        return list(unique.values())

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is an output of the graph or of any body."""
        return self._ends().is_output(tensor)

    def is_input(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is an input of the graph (overridable ones included) or of any body."""
        return self._ends().is_input(tensor)

    def constant(self, tensor: gs.Tensor) -> Array | None:
        """The value of an initializer or of a Constant node's output, read-only; ``None`` if it is not constant.

        An overridable input is not constant: its value may be given at run time.
        """
        if isinstance(tensor, gs.Constant):
            return settled(tensor)
        node = self.producer(tensor)
        if node is None or node.op != "Constant" or node.domain:
            return None
        return node_value(node)

    def unique_name(self, hint: str) -> str:
        """``hint``, or ``hint_1``, ``hint_2``, …: a name that no tensor or node of the model has; it is reserved."""
        names = self._known_names()
        name, suffix = hint, self._suffixes.get(hint, 0)
        while not name or name in names:
            suffix += 1
            name = f"{hint}_{suffix}"
        self._suffixes[hint] = suffix
        names.add(name)
        return name

    # Editing

    def add_constant(self, hint: str, value: Array) -> gs.Constant:
        """A new initializer; ``value`` is made read-only."""
        constant = EditConstant(self.unique_name(hint), self._keep(value))
        self._register(constant)
        return constant

    def add_node(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        *,
        attrs: Mapping[str, Any] | None = None,
        outputs: int | Sequence[gs.Tensor] = 1,
        name: str = "",
        domain: str = "",
    ) -> gs.Node:
        """Adds a node; ``finish`` places it just before its first consumer.

        It joins the innermost graph that its inputs and outputs belong to.

        Args:
            op: operator type.
            inputs: its inputs; ``gs.Variable.empty()`` where an optional one is left out.
            attrs: its attributes; numpy arrays become tensors.
            outputs: how many new output tensors, or existing tensors it computes from now on (their former producer
                gets fresh, unused outputs).
            name: its name, made unique; the default is made from ``op``.
            domain: its operator domain.
        """
        given = [] if isinstance(outputs, int) else list(outputs)
        home = self._home_of([*inputs, *given])
        name = self.unique_name(name or op)
        if isinstance(outputs, int):
            hints = [f"{name}_out"] if outputs == 1 else [f"{name}_out{i}" for i in range(outputs)]
            given = [self._new_variable(hint, home) for hint in hints]
        for tensor in given:
            self._release(tensor)
        values = {key: attribute_value(value) for key, value in (attrs or {}).items()}
        node = EditNode(op, name, values, list(inputs), given, domain or None)
        node.home = home
        home.nodes.append(node)
        if any(isinstance(value, gs.Graph) for value in values.values()):
            self._bodies = None
        return node

    def new_output(self, node: gs.Node, index: int) -> gs.Tensor:
        """Gives the node a new tensor as output ``index``; the old one is left without a producer.

        Readers keep reading the old tensor: let another node compute it (``add_node(..., outputs=[old])``).
        """
        old = node.outputs[index]
        fresh = self._new_variable(f"{old.name}_inner", getattr(node, "home", None) or self._graph)
        node.outputs[index] = fresh
        return fresh

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Makes ``tensor`` the node's input ``index``; missing inputs before it become empty."""
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        if node.inputs[index] is not tensor:
            self._links.replace(node, index, tensor)

    def set_attr(self, node: gs.Node, name: str, value: Any | None) -> None:
        """Sets an attribute; ``None`` removes it."""
        old = node.attrs.get(name)
        if value is None:
            node.attrs.pop(name, None)
        else:
            node.attrs[name] = attribute_value(value)
        if isinstance(old, gs.Graph) or isinstance(value, gs.Graph):
            self._bodies = None

    def set_constant(self, node: gs.Node, index: int, value: Array) -> gs.Constant:
        """Gives this one use of a constant a new value; other users of a shared initializer keep theirs.

        Returns:
            The constant that is now the node's input: the same one where nobody else uses it, else a new one.

        Raises:
            PassError: GO-801 for an overridable input or a tensor that is not constant.
        """
        current = node.inputs[index]
        if self.constant(current) is None:
            raise PassError("GO-801", "not a constant", where=f"input {index} of node {node.name!r}")
        if isinstance(current, EditConstant) and len(self._links.readers(current)) == 1 and not self.is_output(current):
            current._values = self._keep(value)
            return current
        fresh = self.add_constant(current.name, value)
        self.set_input(node, index, fresh)
        return fresh

    def replace_uses(self, old: gs.Tensor, new: gs.Tensor, *, consumers: Collection[gs.Node] | None = None) -> None:
        """Makes every reader of ``old`` (or only ``consumers``) read ``new``.

        If ``old`` is an output of its graph and ``consumers`` is not given, the output is computed by ``new`` from now
        on and keeps its name: ``new`` takes the name over, or an Identity copies it where ``new`` cannot be renamed
        (an input, an initializer, another output, a tensor of another level, a name that a body uses for its own).

        New nodes that compute ``new`` from ``old`` (a quantizer put behind a tensor) keep reading ``old``.
        """
        if old is new:
            return
        wanted = None if consumers is None else {id(node) for node in consumers}
        between = new_ancestors(new)
        readers = [n for n in self.consumers(old) if (wanted is None or id(n) in wanted) and id(n) not in between]
        self._links.move(old, new, readers)
        if consumers is None:
            self._move_output(old, new)

    def remove_node(self, node: gs.Node) -> None:
        """Removes a node whose outputs nobody reads.

        Raises:
            PassError: GO-801 if an output is still in use.
        """
        for tensor in node.outputs:
            if tensor.name and (self._links.readers(tensor) or self.is_output(tensor)):
                raise PassError("GO-801", f"tensor {tensor.name!r} is still used", where=f"removing node {node.name!r}")
        if node_bodies(node):
            self._bodies = None
            algorithms.detach([node])
        self._links.drop(node)
        self._removed[id(node)] = node

    def bypass(self, node: gs.Node, input_index: int = 0) -> None:
        """Removes a node that passes an input through: readers of its first output read that input instead.

        An Identity that a graph output needs to keep its name stays.
        """
        old, new = node.outputs[0], node.inputs[input_index]
        if self.is_output(old) and not self._can_rename(old, new) and node.op == "Identity":
            self.replace_uses(old, new, consumers=self.consumers(old))
            return
        self.replace_uses(old, new)
        if not any(self._links.readers(t) or self.is_output(t) for t in node.outputs if t.name):
            self.remove_node(node)

    def freeze_input(self, tensor: gs.Tensor) -> gs.Constant:
        """Turns an overridable input into an initializer that can no longer be given at run time.

        Raises:
            PassError: GO-801 if the input has no default value.
        """
        default = self._graph.envelope.defaults.pop(tensor.name, None)
        if default is None:
            raise PassError("GO-801", "the input has no default value", where=f"input {tensor.name!r}")
        self._graph.inputs = [t for t in self._graph.inputs if t is not tensor]
        self._graph.envelope.constants.append(default)
        self.replace_uses(tensor, default, consumers=self.consumers(tensor))
        self._ends().replace_output(tensor, default)
        self._ends().remove_input(tensor)
        self._tensors = None
        return default

    def remove_dead_code(self) -> int:
        """Removes nodes that no output needs, bodies included; ``Model.finish`` does so too after an edit.

        Returns:
            How many nodes were removed.
        """
        self._compact()
        removed = algorithms.remove_dead_code(self._graph)
        if removed:
            self._bodies = self._tensors = None
        return removed

    def flush(self) -> None:
        """Takes removed nodes out of the graph's list; reading through the editor does it by itself."""
        self._compact()

    # Inside

    def _levels(self) -> list[EditGraph]:
        if self._bodies is None:
            self._compact()
            self._bodies = list(self._graph.bodies())
            self._known_ends = None
        return [self._graph, *self._bodies]

    def _ends(self) -> Ends:
        levels = self._levels()
        if self._known_ends is None:
            self._known_ends = Ends(levels)
        return self._known_ends

    def _compact(self) -> None:
        self._links.settle()
        if not self._removed:
            return
        removed, self._removed = self._removed, {}
        for level in {id(n.home): n.home for n in removed.values() if n.home is not None}.values():
            level.nodes[:] = [node for node in level.nodes if id(node) not in removed]

    def _index(self) -> dict[str, gs.Tensor]:
        if self._tensors is None:
            index: dict[str, gs.Tensor] = {}
            for level in self._levels():
                found = [*level.inputs, *level.envelope.constants, *level.outputs]
                for node in level.nodes:
                    found += [*node.inputs, *node.outputs]
                for tensor in found:
                    index.setdefault(tensor.name, tensor)
            index.pop("", None)
            self._tensors = index
        return self._tensors

    def _known_names(self) -> set[str]:
        if self._names is None:
            names = {node.name for level in self._levels() for node in level.nodes}
            for level in self._levels():
                for node in level.nodes:
                    names.update(t.name for t in (*node.inputs, *node.outputs))
                names.update(t.name for t in (*level.inputs, *level.outputs, *level.envelope.constants))
                names.update(level.envelope.values)
            self._names = names
        return self._names

    def _register(self, tensor: gs.Tensor) -> None:
        if self._tensors is not None:
            self._tensors[tensor.name] = tensor

    def _new_variable(self, hint: str, home: EditGraph) -> EditVariable:
        variable = EditVariable(self.unique_name(hint))
        variable.home = home
        self._register(variable)
        return variable

    def _home_of(self, tensors: Sequence[gs.Tensor]) -> EditGraph:
        homes = [getattr(t, "home", None) or self._graph for t in tensors]
        return max(homes, key=_depth, default=self._graph)

    def _release(self, tensor: gs.Tensor) -> None:
        """Takes a tensor from the node that computes it."""
        for node in list(tensor.inputs):
            self.new_output(node, next(i for i, t in enumerate(node.outputs) if t is tensor))

    def _can_rename(self, old: gs.Tensor, new: gs.Tensor) -> bool:
        if isinstance(new, gs.Constant) or not new.inputs:
            return False
        home = getattr(old, "home", None)
        if getattr(new, "home", None) is not home or self.is_output(new):
            return False
        # Earlier in the graph than ``old``, the name would be that of an outer tensor in bodies that use it themselves.
        return not self._ends().is_taken_within(home or self._graph, old.name)

    def _move_output(self, old: gs.Tensor, new: gs.Tensor) -> None:
        if not self.is_output(old):
            return
        if not self._can_rename(old, new):
            self.add_node("Identity", [new], outputs=[old], name=f"{old.name}_copy")
            return
        self._ends().replace_output(old, new)
        name = old.name
        old.name = self.unique_name(f"{name}_replaced")
        new.name = name
        new.dtype, new.shape, new.type, new.inferred = old.dtype, old.shape, old.type, old.inferred
        self._register(old)
        self._register(new)


def _depth(graph: EditGraph) -> int:
    depth, parent = 0, graph.parent
    while parent is not None:
        depth, parent = depth + 1, parent.parent
    return depth
