"""Jinja's sandbox, narrowed to what chat templates use, with a budget: see template_limits and template_operations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import pass_context, pass_environment
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from bombus.loader.template_functions import Functions, Generation
from bombus.loader.template_limits import Budget
from bombus.loader.template_operations import (
    CALL,
    FILTERS,
    METHODS,
    OPERATION,
    before_filter,
    before_method,
    check_format,
    spend_on_search,
)

_LOOP = frozenset(
    (
        *("changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem"),
        *("revindex", "revindex0"),
    )
)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering. What a template calls, joins or writes comes through here, and is counted.

    `spend`, `made`, `sized`, `contains`, `joined` and `cut` are called by what chat_template puts into a
    template.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, budget: Budget) -> None:
        # The optimizer computes what is constant while it compiles, on nobody's budget.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[loopcontrols, Generation],
        )
        self.budget = budget
        # Jinja's own functions, which look up attributes in the environment that they are given.
        self._library = self.overlay()
        self._library.filters = {**DEFAULT_FILTERS, "tojson": _tojson}
        self._library.tests = DEFAULT_TESTS
        self.filters = _FILTERS
        self.tests = _TESTS
        self._functions = Functions(budget)
        self.globals = self._functions.by_name()

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may see an attribute: of few types, and few of them."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        return any(isinstance(obj, kind) and attr in names for kind, names in METHODS)

    def wrap_str_format(self, value: Any) -> None:
        """None: str.format is no method that a template may use."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]; to look up a long key takes as long as it is."""
        self.budget.spend(self.budget.size(argument) // 64)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call."""
        self, obj, budget = __self, __obj, __self.budget
        # Jinja's own, for functions that want the context: none here does.
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        owner = getattr(obj, "__self__", None)
        if owner is self or owner is self._functions:
            return obj(*args, **kwargs)
        budget.spend(CALL + sum(map(budget.size, (*args, *kwargs.values()))) // 64)
        if isinstance(obj, Macro | LoopContext):
            budget.spend(2 * CALL)
        elif isinstance(obj, BuiltinMethodType | MethodType) and isinstance(owner, str):
            before_method(budget, obj.__name__, owner, args, kwargs)
        elif (
            callable(obj)
            and not isinstance(obj, Undefined)
            and not isinstance(owner, dict | list | tuple | LoopContext)
        ):
            raise SecurityError(f"a {type(obj).__name__} may not be called")
        budget.enter()
        try:
            result = __context.call(obj, *args, **kwargs)
        finally:
            budget.leave()
        return result if isinstance(owner, dict | LoopContext) or result is owner else budget.keep(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """left operator right."""
        budget = self.budget
        size = budget.size(left) + budget.size(right)
        budget.spend(OPERATION + size // 64)
        if operator == "+" and isinstance(left, list) and isinstance(right, list):
            return budget.join_lists(left, right)
        if operator == "+":
            budget.check_text(size)
        elif operator == "*":
            for times, value in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(value, str | list | tuple):
                    budget.check_text(budget.size(value) * times)
        elif operator == "%" and isinstance(left, str):
            check_format(budget, left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.check_bits(left.bit_length() * right)
        result = budget.keep(super().call_binop(context, operator, left, right))
        if isinstance(result, int):
            budget.check_bits(result.bit_length())
        return result

    def written(self, value: Any) -> str:
        """A value as text."""
        size = self.budget.size(value)
        self.budget.spend(OPERATION + size // 64)
        if isinstance(value, str):
            return value
        self.budget.check_text(size)
        return str(self.budget.keep(str(value)))

    def concat(self, pieces: Iterable[str]) -> str:
        """Pieces as one text: the output of a template, of a macro, of a block."""
        size, kept = 0, []
        for piece in pieces:
            size += len(piece)
            self.budget.check_text(size)
            kept.append(piece)
        return str(self.budget.keep("".join(kept)))

    def joined(self, *values: Any) -> str:
        """value ~ value ~ ..."""
        return self.concat([self.written(value) for value in values])

    def spend(self, steps: int) -> bool:
        """True, and takes the steps of a round of a loop, or of a call of a macro."""
        self.budget.spend(OPERATION + steps)
        return True

    def made(self, value: Any) -> Any:
        """A list, tuple or dict that a template writes."""
        return self.budget.keep(value)

    def sized(self, value: Any) -> Any:
        """A value that is compared."""
        self.budget.spend(self.budget.size(value) // 64)
        return value

    def contains(self, value: Any, container: Any) -> bool:
        """value in container."""
        size = self.budget.size(container)
        if isinstance(container, str):
            spend_on_search(self.budget, size, self.budget.size(value))
        else:
            self.budget.spend(OPERATION + (size + self.budget.size(value)) // 16)
        return value in container

    def cut(self, value: Any, *arguments: Any) -> Any:
        """value[start:stop:step]."""
        result = self.sized(value)[slice(*arguments)]
        return result if result is value else self.budget.keep(result)

    def filtered(self, name: str, context: Context, value: Any, args: Any, kwargs: Any) -> Any:
        """The result of a filter; a list where Jinja has a generator."""
        before_filter(self.budget, name, value, args, kwargs)
        result = self._library.call_filter(name, value, args, kwargs, context=context, eval_ctx=context.eval_ctx)
        if isinstance(result, Iterator):
            result = [item for item in result if self.spend(0)]
        if isinstance(result, int) and not isinstance(value, int):
            self.budget.check_bits(result.bit_length())
        # What was there before is not made.
        old = result is value or name in ("d", "default", "first", "last", "max", "min")
        return result if old else self.budget.keep(result)

    def tested(self, name: str, context: Context, value: Any, args: Any, kwargs: Any) -> bool:
        """The result of a test."""
        if name == "in" and args:
            return self.contains(value, args[0])
        self.budget.spend(CALL + sum(map(self.budget.size, (value, *args, *kwargs.values()))) // 8)
        return self._library.call_test(name, value, args, kwargs, context=context, eval_ctx=context.eval_ctx)


@pass_context
def _finalize(context: Context, value: Any) -> str:
    return context.environment.written(value)  # type: ignore[attr-defined]


@pass_environment
def _tojson(
    environment: Sandbox,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes JSON: Jinja's own filter is for HTML, and writes "<" as an escape."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return environment.concat(encoder.iterencode(value))


def _counted(method: str, name: str) -> Callable[..., Any]:
    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(context.environment, method)(name, context, value, args, kwargs)

    return run


_FILTERS: dict[str, Callable[..., Any]] = {name: _counted("filtered", name) for name in FILTERS}
_TESTS: dict[str, Any] = {name: _counted("tested", name) for name in DEFAULT_TESTS}
