"""Chat templates: a conversation to a prompt, by a Jinja template that comes with the checkpoint and is not trusted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Template
from jinja2.visitor import NodeTransformer

from bombus.loader.template_limits import Budget, LimitReached, Limits
from bombus.loader.template_operations import FILTERS
from bombus.loader.template_sandbox import Sandbox
from bombus.policies.errors import GenerationError, Problem

LIMITS = Limits()
_REMEDY = "use another template, or pass the prompt as text"
_NOT_NEEDED: dict[type[nodes.Node], str] = {
    nodes.Block: "block",
    nodes.Extends: "extends",
    nodes.FromImport: "from",
    nodes.Import: "import",
    nodes.Include: "include",
    nodes.ScopedEvalContextModifier: "autoescape",
}
_BLOCKS = (nodes.AssignBlock, nodes.CallBlock, nodes.FilterBlock, nodes.For, nodes.If, nodes.Macro, nodes.With)


def render_chat_template(source: str, variables: Mapping[str, Any], *, limits: Limits = LIMITS) -> str:
    """The text that a template makes of variables: text, numbers, lists and dicts, as in JSON.

    It is rendered as transformers does it, in Jinja's sandbox, with the filters and methods that templates of models
    use, and within limits: of the text, of what is made on the way, of steps and of time. Raises GenerationError for
    a template that fails, that reaches for more, or that refuses the conversation.
    """
    budget = Budget(limits)
    try:
        problems: list[str] = []
        values = {name: budget.plain(value, name, problems) for name, value in variables.items()}
        if problems:
            raise LimitReached("is given values that are not plain", "text, numbers, lists, dicts", ", ".join(problems))
        environment = Sandbox(budget)
        template = Template.from_code(environment, _compiled(source, limits), environment.globals)
        text = environment.concat(template.generate(values))
        text.encode("utf-8")  # half of a surrogate pair is in no text
        return text
    except LimitReached as error:
        problem = Problem(
            subject="chat template", message=error.message, expected=error.expected, found=error.found, remedy=_REMEDY
        )
    except RecursionError:
        problem = Problem(subject="chat template", message="is nested too deeply", remedy=_REMEDY)
    except TemplateSyntaxError as error:
        problem = Problem(subject="chat template", message=f"failed: {error.message} (line {error.lineno})")
    except TemplateError as error:
        problem = Problem(subject="chat template", message=f"failed: {str(error)[:2000]}")
    except Exception as error:  # a template can go wrong in every way that Python can
        text = f"{type(error).__name__}: {error}"
        problem = Problem(subject="chat template", message=f"failed: {text[:2000]}")
    raise GenerationError(problem)


@lru_cache(maxsize=16)
def _compiled(source: str, limits: Limits) -> CodeType:
    if len(source) > limits.template:
        raise LimitReached("is too long", f"at most {limits.template:,} characters", f"{len(source):,}")
    environment = Sandbox(Budget(limits))
    tree = environment.parse(source)
    parts = list(tree.find_all(nodes.Node))
    for node in parts:
        if type(node) in _NOT_NEEDED:
            raise LimitReached(f"uses the tag {_NOT_NEEDED[type(node)]!r}", "a template that stands alone")
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            raise LimitReached(f"uses the filter {node.name!r}", f"one of {', '.join(sorted(FILTERS))}")
    names = {node.name for node in parts if isinstance(node, nodes.Name)}
    scopes = len(names) * sum(isinstance(node, _BLOCKS) for node in parts)
    for found, most in ((len(parts), limits.nodes), (scopes, limits.scopes)):
        if found > most:
            raise LimitReached("has too many parts", f"at most {most:,}", f"{found:,}")
    code = environment.compile(_Counting().visit(tree))
    assert isinstance(code, CodeType)
    return code


class _Counting(NodeTransformer):
    """Has a template say what it does: every round of a loop and every call is counted, and what it joins,
    compares and makes goes through the Sandbox."""

    def visit_Template(self, node: nodes.Template) -> nodes.Node:
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._counted(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        test = node.test and _steps(node.test)
        self._counted(node)
        if node.test is not None:
            node.test = nodes.And(_through("spend", nodes.Const(test)), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("joined", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._made(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._made(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _through("cut", node.node, *(nodes.Const(None) if part is None else part for part in parts))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if any(operand.op in ("in", "notin") for operand in node.ops):
            if len(node.ops) > 1:
                raise LimitReached("compares in a chain with 'in'", "one comparison at a time")
            found = _through("contains", node.expr, node.ops[0].expr)
            return found if node.ops[0].op == "in" else nodes.Not(found)
        # With a constant a comparison ends after as many characters.
        if not any(isinstance(part, nodes.Const) for part in (node.expr, *(operand.expr for operand in node.ops))):
            node.expr = _through("sized", node.expr)
            for operand in node.ops:
                operand.expr = _through("sized", operand.expr)
        return node

    def _counted(self, node: Any) -> nodes.Node:
        steps = _steps(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_through("spend", nodes.Const(steps)), lineno=node.lineno))
        return node

    def _made(self, node: Any) -> nodes.Node:
        constant = _is_constant(node)
        self.generic_visit(node)
        return node if constant else _through("made", node)


def _through(name: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


def _steps(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node))


def _is_constant(node: nodes.Node) -> bool:
    within = (nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair)
    return all(isinstance(part, within) for part in node.find_all(nodes.Node))
