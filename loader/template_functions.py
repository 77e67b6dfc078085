"""The functions and the tag that chat templates have beside Jinja's own: see template_limits."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace

from bombus.loader.template_limits import Budget, LimitReached
from bombus.loader.template_operations import CALL

_LONGEST_DATE_FORMAT = 200
_LONGEST_MESSAGE = 2000


class TemplateNamespace(Namespace):
    """Jinja's, that does not write its attributes: they may be large, and lead back to itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Generation(Extension):
    """The tag `generation`, which marks what the model wrote; in a prompt it is what is in it."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own)

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements in the tag, with variables of their own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Functions:
    """What a template may call by name, within a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def by_name(self) -> dict[str, Any]:
        """Function by the name that it has in a template."""
        return {
            "dict": self.make_dict,
            "namespace": self.make_namespace,
            "raise_exception": self.fail,
            "range": self.make_range,
            "strftime_now": self.write_date,
        }

    def make_range(self, *arguments: int) -> range:
        """range, of no more numbers than a template needs."""
        most = self._budget.limits.numbers
        for number in arguments:
            self._budget.check_bits(number.bit_length())
        result = range(*arguments)
        if len(result) > most:
            raise LimitReached("makes too long a range", f"at most {most:,} numbers", f"{len(result):,}")
        return result

    def make_namespace(self, *args: Any, **kwargs: Any) -> TemplateNamespace:
        """namespace."""
        return TemplateNamespace(self.make_dict(*args, **kwargs))

    def make_dict(self, *args: Any, **kwargs: Any) -> Any:
        """dict."""
        self._budget.spend(CALL + sum(map(self._budget.size, args)) + len(kwargs))
        return self._budget.keep(dict(*args, **kwargs))

    def fail(self, message: Any) -> NoReturn:
        """raise_exception: the template refuses the conversation."""
        self._budget.size(message)
        raise TemplateError(str(message)[:_LONGEST_MESSAGE])

    def write_date(self, form: str) -> str:
        """strftime_now: the local date and time."""
        if len(form) > _LONGEST_DATE_FORMAT:
            raise LimitReached("has too long a format of a date", f"at most {_LONGEST_DATE_FORMAT} characters")
        return datetime.now().strftime(form)
