"""The conformance suite: what every pass has to hold, built-in or third-party.

``check_pass(MyPass)`` runs a pass over small models, or over yours, and raises one ``AssertionError`` that
lists every rule it breaks. The idea is scikit-learn's ``check_estimator``; the rules are those that the pass
manager relies on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from pydantic import ValidationError

from graphopt.data.samples import Samples
from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from graphopt.pipeline.checks import expected_interface, interface_difference
from graphopt.pipeline.contract import Pass, PassOptions, Safety
from graphopt.runtime.session import open_session
from graphopt.runtime.target import Target
from graphopt.testing import builders
from graphopt.testing.cards import HEADINGS, sections
from graphopt.testing.nesting import variants
from graphopt.testing.trial import MakeSamples, Trial, canonical, default_samples, run_instance, run_once
from graphopt.validation.equivalence import check_equivalence


@dataclass(frozen=True)
class Subject:
    """A pass on one model: two equal runs, and what the rules need to make more.

    Attributes:
        cls: the pass.
        options: its options.
        source: the model.
        before: the model's bytes before either run.
        samples: feeds of the model.
        make: makes feeds for another model.
        first: the run that the rules judge.
        second: an equal run, for the comparison.
    """

    cls: type[Pass[Any]]
    options: PassOptions
    source: Model
    before: bytes
    samples: Samples
    make: MakeSamples
    first: Trial
    second: Trial

    def again(self, source: Model, options: PassOptions | None = None) -> Trial:
        """Another run, on another model or with other options."""
        return run_once(self.cls, options or self.options, source, self.samples)

    def elsewhere(self, proto: onnx.ModelProto) -> Trial:
        """A run on another form of the model, with feeds of its own."""
        source = Model.from_proto(proto)
        return run_once(self.cls, self.options, source, self.make(source))


Rule = Callable[[Subject], Iterator[str]]
"""Yields one sentence for each violation."""


def check_pass(
    pass_: Pass[Any] | type[Pass[Any]],
    options: PassOptions | Mapping[str, Any] | None = None,
    models: Iterable[onnx.ModelProto] | None = None,
    *,
    untouched: Iterable[onnx.ModelProto] | None = None,
    samples: MakeSamples | None = None,
) -> None:
    """Check a pass against every rule of the contract.

    Args:
        pass_: the pass; of an instance, its class and its options are taken.
        options: the options to run with; by default those of the instance, or the class's defaults.
        models: what to run on; by default every model of ``graphopt.testing.builders``.
        untouched: models on which the pass has nothing to do; by default a lone Softmax.
        samples: makes feeds for a model; by default seeded synthetic ones.

    Raises:
        AssertionError: the rules that the pass breaks, one line each, with model and reason.
    """
    cls = pass_ if isinstance(pass_, type) else type(pass_)
    chosen = _options(pass_, options)
    found = list(_declaration(cls, chosen))
    idle = [builders.nothing_to_do()] if untouched is None else list(untouched)
    busy = [build(0) for build in builders.ALL.values()] if models is None else list(models)
    make = samples or default_samples
    for proto in idle:
        found += _on_model(cls, chosen, proto, make, (*_ALWAYS, _untouched))
    for proto in busy:
        found += _on_model(cls, chosen, proto, make, (*_ALWAYS, *_WHEN_MODIFIED))
    if found:
        lines = "\n".join(f"  - {line}" for line in found)
        raise AssertionError(f"{_name(cls)} breaks {len(found)} rule(s) of the pass contract:\n{lines}")


def _options(pass_: Pass[Any] | type[Pass[Any]], options: PassOptions | Mapping[str, Any] | None) -> PassOptions:
    if isinstance(options, PassOptions):
        return options
    if options is not None:
        return pass_.Options.model_validate(dict(options))
    if isinstance(pass_, type):
        return pass_.Options.model_validate({})
    given: PassOptions = pass_.options
    return given


def _name(cls: type[Pass[Any]]) -> str:
    return str(getattr(cls, "name", cls.__name__))


def _declaration(cls: type[Pass[Any]], options: PassOptions) -> Iterator[str]:
    """The rules about the class itself, before it runs on anything."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", _name(cls)):
        yield f"name: {_name(cls)!r} is not lower-case words joined by dashes"
    if not re.fullmatch(r"[A-Z]{3}", str(getattr(cls, "code", ""))):
        yield "code: not three capital letters"
    if not isinstance(getattr(cls, "safety", None), Safety):
        yield "safety: declares no safety class"
    missing = [heading for heading in HEADINGS if not sections(cls).get(heading) and heading != "Options"]
    missing += [] if "Options" in sections(cls) else ["Options"]
    if missing:
        yield f"card: the docstring lacks {', '.join(missing)}"
    yield from _options_rules(options)


def _options_rules(options: PassOptions) -> Iterator[str]:
    kind = type(options)
    silent = [key for key, field in kind.model_fields.items() if not field.description]
    if silent:
        yield f"options: no description of {', '.join(silent)}"
    if not kind.model_config.get("frozen") or kind.model_config.get("extra") != "forbid":
        yield "options: must be frozen and forbid unknown keys, as PassOptions is"
    try:
        back = kind.model_validate(json.loads(json.dumps(options.model_dump(mode="json"))))
    except (ValidationError, TypeError, ValueError) as error:
        yield f"options: do not survive a round trip through JSON: {error}"
        return
    if back != options:
        yield f"options: a round trip through JSON turns {options!r} into {back!r}"


def _on_model(
    cls: type[Pass[Any]],
    options: PassOptions,
    proto: onnx.ModelProto,
    make: MakeSamples,
    rules: Iterable[Rule],
) -> Iterator[str]:
    source = Model.from_proto(proto)
    before = canonical(source)
    samples = make(source)
    first, second = (run_once(cls, options, source, samples) for _ in range(2))
    label = proto.graph.name or "model"
    if first.fault:
        yield f"{label}: {first.fault}"
        return
    subject = Subject(cls, options, source, before, samples, make, first, second)
    for rule in rules:
        yield from (f"{label}: {line}" for line in rule(subject))


def _untouched(subject: Subject) -> Iterator[str]:
    if subject.first.modified:
        yield "no-op: changed a model on which it has nothing to do"


def _source_kept(subject: Subject) -> Iterator[str]:
    if canonical(subject.source) != subject.before:
        yield "source: the source model was edited; only ctx.model may be"


def _reasons(subject: Subject) -> Iterator[str]:
    """Refusals, skips and changes are all readable, and a refusal comes before the first edit."""
    refusal, result = subject.first.refusal, subject.first.result
    if refusal is not None:
        if not refusal.reason.strip():
            yield "reasons: refuses without a reason"
        if subject.first.raw != subject.before:
            yield "reasons: refuses after having edited the model"
    if result is None:
        return
    for skip in result.skipped:
        if not skip.where.strip() or not skip.reason.strip():
            yield f"reasons: a skipped place lacks its name or reason: {skip!r}"
    for site in result.applied:
        if not site.where.strip() or not site.what.strip():
            yield f"reasons: a changed place lacks its name or what was done: {site!r}"


def _flag(subject: Subject) -> Iterator[str]:
    """``modified`` agrees with the bytes, and with the places listed."""
    result = subject.first.result
    if result is None:
        return
    changed = subject.first.raw != subject.before
    if changed != result.modified:
        yield f"flag: says modified={result.modified}, but the bytes {'differ' if changed else 'are equal'}"
    if result.modified != bool(result.applied):
        yield f"flag: says modified={result.modified} with {len(result.applied)} changed places listed"


def _deterministic(subject: Subject) -> Iterator[str]:
    if canonical(subject.first.candidate) != canonical(subject.second.candidate):
        yield "deterministic: two equal runs give different bytes"
    elif subject.first.result is not None and subject.second.result is not None:
        one, two = subject.first.result, subject.second.result
        if (one.applied, one.skipped, one.summary) != (two.applied, two.skipped, two.summary):
            yield "deterministic: two equal runs report different things"


def _foreseeable(subject: Subject) -> Iterator[str]:
    """What a run on one copy says is what a run on another does: neither the file read anew nor an earlier run counts.

    So a run on a copy that is thrown away is a plan of the run that is kept.
    """
    reopened = subject.again(Model.from_proto(subject.source.to_proto()))
    rewrite = subject.cls(subject.options)
    used = [run_instance(rewrite, subject.source, subject.samples) for _ in range(2)][-1]
    for how, trial in (("on the model read anew", reopened), ("as an instance that has run before", used)):
        if (trial.fault, _told(trial)) != (subject.first.fault, _told(subject.first)):
            yield f"plan: {how} it reports other places, reasons or figures"
        elif trial.result is not None and canonical(trial.candidate) != canonical(subject.first.candidate):
            yield f"plan: {how} it gives other bytes"


def _told(trial: Trial) -> tuple[object, ...]:
    """What a run says of itself."""
    if trial.refusal is not None:
        return (trial.refusal.reason, trial.refusal.where)
    if trial.result is None:
        return ()
    return (trial.result.modified, trial.result.applied, trial.result.skipped, trial.result.summary)


def _places(subject: Subject) -> Iterator[str]:
    """Every place in the report is a node or a tensor of the model before or after."""
    result = subject.first.result
    if result is None:
        return
    known = _names(subject.source) | _names(subject.first.candidate)
    for where in [site.where for site in result.applied] + [skip.where for skip in result.skipped]:
        if where.strip() and where not in known:
            yield f"places: the report names {where!r}, which is no node or tensor"


def _names(model: Model) -> set[str]:
    nodes = [node for node, _ in model.editor.all_nodes()]
    tensors = {tensor.name for node in nodes for tensor in (*node.inputs, *node.outputs)}
    return tensors | {node.name or node.op for node in nodes} | {function for _, function in model.functions}


def _nested(subject: Subject) -> Iterator[str]:
    """Nodes that the pass changes on the top level are visited in branches and functions too, or it says why not."""
    for where, proto in variants(subject.source.to_proto()):
        trial = subject.elsewhere(proto)
        if trial.fault:
            yield f"nested: with its nodes {where} it {trial.fault}"
            continue
        result = trial.result
        said = trial.refusal is not None or result is None or result.skipped or result.notes
        if not trial.modified and not said:
            yield f"nested: leaves the same nodes alone {where}, and does not say why"


def _selection(subject: Subject) -> Iterator[str]:
    """With every node left out by ``skip``, nothing may change."""
    if not subject.source.editor.nodes():
        return
    trial = subject.again(subject.source, subject.options.model_copy(update={"skip": ("*",)}))
    if trial.fault:
        yield f"selection: with skip=['*'] it {trial.fault}"
    elif trial.raw != subject.before:
        yield "selection: changes the model although skip=['*'] leaves every node out"


def _interface(subject: Subject) -> Iterator[str]:
    """Inputs (but those declared dropped), outputs and papers stay; operator sets and IR version never go down."""
    before, after = subject.source, subject.first.candidate
    result = subject.first.result
    expected = before.interface if result is None else expected_interface(before.interface, result)
    if expected != after.interface:
        yield f"interface: {interface_difference(expected, after.interface)}"
    if dict(before.metadata) != {k: v for k, v in after.metadata.items() if k in before.metadata}:
        yield "metadata: entries of metadata_props were lost or changed"
    if after.opset < before.opset or after.ir_version < before.ir_version:
        yield f"versions: opset {before.opset} → {after.opset}, IR {before.ir_version} → {after.ir_version}"
    old, new = before.to_proto(), after.to_proto()
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        if getattr(old, field) != getattr(new, field):
            yield f"metadata: {field} {getattr(old, field)!r} became {getattr(new, field)!r}"


def _idempotent(subject: Subject) -> Iterator[str]:
    if not subject.cls.idempotent:
        return
    trial = subject.again(subject.first.candidate)
    if trial.fault:
        yield f"idempotent: run on its own result it {trial.fault}"
    elif trial.modified:
        applied = trial.result.applied if trial.result is not None else ()
        done = "; ".join(f"{site.where}: {site.what}" for site in applied[:3])
        yield f"idempotent: changes its own result again ({done}); if meant, declare idempotent = False"


def _resolved(subject: Subject) -> Iterator[str]:
    """The resolved options lead to the same bytes."""
    result = subject.first.result
    if result is None or result.resolved is None:
        return
    trial = subject.again(subject.source, result.resolved)
    if trial.fault:
        yield f"resolved: with its resolved options it {trial.fault}"
    elif canonical(trial.candidate) != canonical(subject.first.candidate):
        yield "resolved: its resolved options give other bytes than the run that resolved them"


def _opens(subject: Subject) -> Iterator[str]:
    """The result opens and runs in onnxruntime."""
    target = Target()
    try:
        session = open_session(subject.first.candidate, provider=target.provider, threads=target.threads)
        session.run(subject.samples[0])
    except GraphoptError as error:
        yield f"runtime: the result does not run in onnxruntime: {error}"


def _safety(subject: Subject) -> Iterator[str]:
    """EXACT and ROUNDING hold on the samples; a result with an oracle equals it within ROUNDING."""
    safety, result = subject.cls.safety, subject.first.result
    references = [] if safety is Safety.APPROXIMATE else [(subject.source, safety)]
    if result is not None and result.oracle is not None:
        references.append((result.oracle, Safety.ROUNDING))
    for reference, bound in references:
        try:
            found = check_equivalence(
                reference,
                subject.first.candidate,
                subject.samples,
                safety="exact" if bound is Safety.EXACT else "rounding",
                target=Target(),
            )
        except GraphoptError as error:
            yield f"safety: the outputs cannot be compared: {error}"
            continue
        if not found.passed:
            yield f"safety: {bound.name} does not hold: {found.message}"


def _if_modified(rule: Rule) -> Rule:
    def guarded(subject: Subject) -> Iterator[str]:
        if subject.first.modified:
            yield from rule(subject)

    return guarded


_ALWAYS: tuple[Rule, ...] = (_source_kept, _reasons, _flag, _deterministic, _foreseeable, _places, _selection)
_WHEN_MODIFIED: tuple[Rule, ...] = tuple(
    _if_modified(rule) for rule in (_interface, _idempotent, _resolved, _nested, _opens, _safety)
)
