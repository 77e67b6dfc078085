"""Policies of other systems as ours: tt-xla's, TT-Transformers', and rules of which the first match wins."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bombus.policies.errors import PolicyError, Problem, closest
from bombus.policies.files import parse_json
from bombus.policies.mixed_precision import MixedPrecision, PolicyLike, as_precision
from bombus.policies.patterns import GROUPS, is_exact, matches
from bombus.policies.policy import DEFAULT, Policy
from bombus.policies.spelling import as_policy

# Their blocks of 16 that share an exponent run along the outputs of a weight.
_TT_XLA = {"bf16": "bf16", "bfp_bf8": "bfp8(axis=out)", "bfp_bf4": "bfp4(axis=out)"}
_TT_TRANSFORMERS = {"bf16": "bf16", "bfp8": "bfp8(axis=out)", "bfp4": "bfp4(axis=out)"}
_LAYERS = {
    "ff1_3": "ffn.{gate,intermediate}",
    "ff2": "ffn.output",
    "wqkv": "self_attention.{query,key,value}",
    "wo": "self_attention.output",
}
_FIDELITY = "fidelity_cfg"
# What is no weight, and the values of it that say what happens here anyway.
_OTHERS: Mapping[str, tuple[str, ...]] = {"kv_cache": (), "activation": ("mixed",), _FIDELITY: ()}
_SECTIONS = ("precision_cfg", _FIDELITY)
_ALIASES = {"ff1_ff3": "ff1_3"}
_FORM = "precision_cfg = {ff1_3: bfp4, wo: bfp8}, fidelity_cfg = {...}"


def from_tt_xla(data: str | Mapping[str, str]) -> MixedPrecision:
    """tt-xla's weight overrides: a type for every weight, or names and globs of the checkpoint with a type each.

    There a later entry overwrites an earlier one, whatever it is; here an exact name beats a glob, so an exact name
    that a later glob matches is left out. Block formats are for linear layers there and for kernels here, and leave
    embeddings and norms alone. A glob may also match our own path of a parameter.

    Raises PolicyError for an unknown type and for a pattern that tt-xla reads otherwise.
    """
    entries = {DEFAULT: data} if isinstance(data, str) else data
    if not isinstance(entries, Mapping):
        raise PolicyError(
            Problem(subject="overrides", message="are not a map", expected="pattern: type"), where="tt-xla"
        )
    problems = [
        Problem(subject=f"rule {pattern!r}", message=f"has no type {name!r}", expected=", ".join(_TT_XLA))
        for pattern, name in entries.items()
        if not isinstance(name, str) or name not in _TT_XLA
    ]
    problems += [
        Problem(
            subject=f"rule {pattern!r}",
            message="is a name or a glob there, and something else here",
            remedy="write it with *, ? or [...]",
        )
        for pattern in entries
        if re.search(r"^re:|[{}]", str(pattern)) or pattern in GROUPS
    ]
    if problems:
        raise PolicyError(problems, where="tt-xla")
    return MixedPrecision(_in_order({pattern: _kernels_only(_TT_XLA[name]) for pattern, name in entries.items()}))


def from_first_match(rules: Mapping[str, Any], *, default: Any = "int8") -> MixedPrecision:
    """Rules of which the first that matches wins, by expressions on modules' names, as some guides have them.

    There a pattern is a regular expression that matches at the start of a name, or a text anywhere in it; what no
    pattern matches has the default. Names are the checkpoint's, or our paths. fp16, bf16 and fp32 are understood.

    Raises PolicyError for a pattern that is no expression and for an unknown format.
    """
    names = {"fp16": "f16", "fp32": "f32"}
    spelled = {pattern: names.get(value, value) for pattern, value in reversed(list(rules.items()))}
    expressions = {f"re:(?:{pattern}).*|.*{re.escape(pattern)}.*": value for pattern, value in spelled.items()}
    return MixedPrecision({**expressions, DEFAULT: names.get(default, default)})


def from_tt_transformers(
    source: str | Mapping[str, Any],
    *,
    parent: PolicyLike = None,
    num_blocks: int | None = None,
    ignore: Iterable[str] = (),
) -> MixedPrecision:
    """TT-Transformers' decoder configuration: the object or text of its JSON file, or its `--optimizations` text.

    parent: the policy that decides what the configuration does not name; its rules come first. Its exact names of
        the checkpoint's tensors, which are not translated, keep their rank.
    num_blocks: what the decoders' numbers must stay below.
    ignore: fields to leave out, of those that have no counterpart here: kv_cache, activation, fidelity_cfg.

    Raises PolicyError for these fields and for everything that is not known.
    """
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    problems = [
        Problem(subject="ignore", message=f"cannot hold {field!r}", remedy=closest(field, _OTHERS))
        for field in ignore
        if field not in _OTHERS
    ]
    rules: dict[str, Policy] = {}
    unsupported: list[tuple[str, str]] = []
    for (component, value), decoders in _settings(source, num_blocks, problems).items():
        blocks = _spelled(decoders)
        subject = f"{component} of decoder {blocks}"
        if component in _OTHERS:
            if component not in ignore and value not in _OTHERS[component]:
                unsupported.append((component, subject))
        elif component not in _LAYERS:
            known = (*_LAYERS, *_OTHERS)
            problems.append(Problem(subject=subject, message="is not a component", remedy=closest(component, known)))
        elif value not in _TT_TRANSFORMERS:
            expected = ", ".join(_TT_TRANSFORMERS)
            problems.append(Problem(subject=subject, message=f"cannot be {value}", expected=expected))
        else:
            rules[f"decoder.blocks.{blocks}.{_LAYERS[component]}.kernel"] = as_policy(_TT_TRANSFORMERS[value])
    fields = tuple(dict.fromkeys(component for component, _ in unsupported))
    problems += [
        Problem(subject=subject, message="has no counterpart here", remedy=f"leave it out with ignore={fields}")
        for _, subject in unsupported
    ]
    if problems:
        raise PolicyError(problems, where="TT-Transformers")
    base = as_precision(parent)
    inherited = {name: policy for name, policy in base.rules.items() if not _is_overruled(name, rules)}
    return MixedPrecision(inherited, base.default).merge(MixedPrecision(rules), on_conflict="replace")


def _kernels_only(format_name: str) -> Policy:
    policy = as_policy(format_name)
    return Policy(params={"kernel": policy.params, DEFAULT: None}) if policy.params.is_low else policy


def _in_order(rules: Mapping[str, Policy]) -> dict[str, Policy]:
    """The rules of which the later always wins, without the exact names that would win here."""
    patterns = list(rules)
    globs = [pattern for pattern in patterns if not is_exact(pattern)]
    kept = {}
    for pattern, policy in rules.items():
        if pattern in globs:
            globs.remove(pattern)  # now only the later ones
        if pattern == DEFAULT or not _is_overruled(pattern, globs):
            kept[pattern] = policy
    return kept


def _is_overruled(name: str, patterns: Iterable[str]) -> bool:
    return is_exact(name) and any(matches(pattern, name) for pattern in patterns)


def _settings(
    source: str | Mapping[str, Any], num_blocks: int | None, problems: list[Problem]
) -> Mapping[tuple[str, str], Sequence[str]]:
    """(component, value) -> the decoders that have it."""
    settings = defaultdict(list)
    for decoder, sections in _decoders(source).items():
        number = re.fullmatch(r"0|[1-9]\d{0,5}", decoder)
        if decoder != "*" and not (number and (num_blocks is None or int(decoder) < num_blocks)):
            expected = "a number" if num_blocks is None else f"a number below {num_blocks}"
            problems.append(Problem(subject=f"decoder {decoder!r}", message="is not in the model", expected=expected))
            continue
        for setting in _components(f"decoder {decoder}", sections, problems):
            settings[setting].append(decoder)
    return settings


def _decoders(source: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A decoder's number -> its sections; "*" for every decoder, which only a text of options has."""
    if isinstance(source, str) and not source.lstrip().startswith("{"):
        try:
            return {"*": parse_json("{" + re.sub(r"\w+", r'"\g<0>"', source).replace("=", ":") + "}")}
        except PolicyError as error:
            problem = Problem(subject="optimizations", message="are malformed", expected=_FORM, found=source)
            raise PolicyError(problem, where="TT-Transformers") from error
    data = parse_json(source, where="TT-Transformers") if isinstance(source, str) else source
    decoders = data.get("decoders") if isinstance(data, Mapping) else None
    if not isinstance(decoders, Mapping) or len(data) > 1 or "*" in decoders:
        form = '{"decoders": {"31": {"precision_cfg": {"FF2": "BFP8"}}}}'
        problem = Problem(subject="decoder configuration", message="is malformed", expected=form)
        raise PolicyError(problem, where="TT-Transformers")
    return {str(number): sections for number, sections in decoders.items()}


def _components(subject: str, sections: Any, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """The (component, value) pairs of a decoder, in their lower-case names."""
    if not isinstance(sections, Mapping) or not all(isinstance(values, Mapping) for values in sections.values()):
        problems.append(Problem(subject=subject, message="is not a map of maps"))
        return
    found = set()
    for section, values in sections.items():
        if section not in _SECTIONS:
            problems.append(
                Problem(subject=f"{section} of {subject}", message="is not known", remedy=closest(section, _SECTIONS))
            )
        elif section == _FIDELITY and values:
            yield _FIDELITY, ""
        else:
            for name, value in values.items():
                component = _ALIASES.get(str(name).lower(), str(name).lower())
                if component in found:
                    problems.append(Problem(subject=f"{component} of {subject}", message="is named twice"))
                found.add(component)
                yield component, str(value).lower()


def _spelled(decoders: Sequence[str]) -> str:
    """Decoders as a pattern: "*", "31" or "{0..3,7}"."""
    if "*" in decoders:
        return "*"
    numbers = sorted(map(int, decoders))
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    words = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
    return words if len(numbers) == 1 else f"{{{words}}}"
