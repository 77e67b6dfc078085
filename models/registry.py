"""The registry: which classes of transformers are which architecture and head here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from bombus.models.mapping import ParameterMapping
from bombus.models.spec import DecoderSpec
from bombus.policies.errors import Problem, SpecError, closest

HEADS = ("causal_lm", "sequence_classification", "token_classification", "question_answering", "base")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of models: `name` is transformers' model_type, `classes` its class names and their heads."""

    name: str
    spec: type[DecoderSpec]
    build: Callable[[Any], nnx.Module]
    mapping: ParameterMapping
    classes: Mapping[str, str]

    def class_name(self, head: str) -> str:
        """transformers' class for a head."""
        return next(name for name, known in self.classes.items() if known == head)


_ARCHITECTURES: dict[str, Architecture] = {}
_REFUSED: dict[str, tuple[str, str]] = {}


def register(architecture: Architecture) -> Architecture:
    """Make an architecture known. Raises ValueError when its name or a class is taken or a head is unknown."""
    taken = {name for known in _ARCHITECTURES.values() for name in (known.name, *known.classes)}
    clash = taken.intersection((architecture.name, *architecture.classes))
    unknown = set(architecture.classes.values()).difference(HEADS)
    if clash or unknown:
        raise ValueError(f"cannot register {architecture.name!r}: taken {sorted(clash)}, unknown heads {unknown}")
    _ARCHITECTURES[architecture.name] = architecture
    return architecture


def refuse(*names: str, because: str, remedy: str) -> None:
    """Make classes and model types known as ones that no architecture here is: why, and what to do instead."""
    _REFUSED.update(dict.fromkeys(names, (because, remedy)))


def architectures() -> tuple[Architecture, ...]:
    """Every architecture that can be loaded."""
    return tuple(_ARCHITECTURES.values())


def architecture_of(spec: DecoderSpec) -> Architecture:
    """The architecture that a spec belongs to."""
    return next(known for known in _ARCHITECTURES.values() if known.spec is type(spec))


def find_architecture(config: Mapping[str, Any], wanted: str | None = None) -> tuple[Architecture, str]:
    """(architecture, head) from config.json, or as `wanted`: a class of transformers or one of our heads.

    Raises SpecError, closest names first, when the family or the head is not supported.
    """
    classes = {name: (known, head) for known in _ARCHITECTURES.values() for name, head in known.classes.items()}
    if wanted in classes and str(config.get("model_type")) not in _REFUSED:
        return classes[wanted]
    family = _ARCHITECTURES.get(str(config.get("model_type")))
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise SpecError(
            Problem(subject="field 'architectures'", message="must be a list of names", found=repr(named)),
            where="config.json",
        )
    found = next((classes[name] for name in named if name in classes), None)
    refused = next((name for name in (*named, str(config.get("model_type"))) if name in _REFUSED), None)
    if found is None and refused is not None:
        because, remedy = _REFUSED[refused]
        problem = Problem(subject=f"architecture {refused!r}", message=f"is not supported: {because}", remedy=remedy)
        raise SpecError(problem, where="config.json")
    if found is None and not named and family is not None:
        found = (family, "base")
    if wanted is None and found is not None:
        return found
    family = found[0] if found else family
    if wanted is not None and family is not None and wanted in family.classes.values():
        return family, wanted
    asked = wanted or (named[0] if named else str(config.get("model_type")))
    choices = [*classes, *HEADS] if wanted else list(classes)
    raise SpecError(
        Problem(
            subject=f"architecture {asked!r}",
            message="is not supported",
            remedy=f"{closest(asked, choices)}; supported: {', '.join(sorted(_ARCHITECTURES))}",
        ),
        where=None if wanted else "config.json",
    )
