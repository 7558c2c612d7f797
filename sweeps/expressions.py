"""Arithmetic in a spec: derived quantities and constraints, checked when read."""

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
}
_ALLOWED = (
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name),
    *(ast.Constant, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: As written.
        names: The parameters it reads; a dotted config key is one name.
        is_condition: It says yes or no, as a constraint must.
        texts: (parameter, text) of each comparison of the two.
    """

    text: str
    names: frozenset[str]
    is_condition: bool
    texts: tuple[tuple[str, str], ...]
    _body: ast.expr

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Compute the expression.

        Raises:
            ValueError: If the arithmetic has no finite result.
        """
        evaluator = SimpleEval(functions=dict(FUNCTIONS), names=dict(values))
        try:
            result = evaluator.eval(self.text, previously_parsed=self._body)
        except (ArithmeticError, InvalidExpression, TypeError, ValueError) as error:
            raise ValueError(f"{self.text!r} has no value here: {error}") from error
        if isinstance(result, complex) or (isinstance(result, float) and not math.isfinite(result)):
            raise ValueError(f"{self.text!r} has no finite value here: {result}")
        return result


class _JoinDots(ast.NodeTransformer):
    """Read `model.head.weight` as one name."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.copy_location(ast.Name(id=ast.unparse(node), ctx=ast.Load()), node)


def parse(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ValueError: If it is not arithmetic on parameters, with what is wrong.
    """
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"must be an expression, but got {text!r}: {error.msg}") from error
    body = _JoinDots().visit(body)
    calls = {node.func for node in ast.walk(body) if isinstance(node, ast.Call)}
    for node in ast.walk(body):
        if not isinstance(node, _ALLOWED):
            raise ValueError(f"{ast.unparse(node)!r} is not arithmetic, in {text!r}")
        if isinstance(node, ast.Constant) and not isinstance(node.value, int | float | str):
            raise ValueError(f"{ast.unparse(node)!r} is not a number or a text, in {text!r}")
    for call in calls:
        if not isinstance(call, ast.Name) or call.id not in FUNCTIONS:
            raise ValueError(
                f"{ast.unparse(call)!r} is not a function here; there are {', '.join(FUNCTIONS)}"
            )
    return Expression(
        text=text.strip(),
        names=frozenset(
            node.id for node in ast.walk(body) if isinstance(node, ast.Name) and node not in calls
        ),
        is_condition=_is_condition(body),
        texts=tuple(_texts(body)),
        _body=body,
    )


def _texts(body: ast.expr) -> Iterator[tuple[str, str]]:
    for node in ast.walk(body):
        if isinstance(node, ast.Compare):
            for pair in pairwise([node.left, *node.comparators]):
                for name, text in (pair, pair[::-1]):
                    if isinstance(name, ast.Name) and isinstance(text, ast.Constant):
                        if isinstance(text.value, str):
                            yield name.id, text.value


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(_is_condition(value) for value in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _is_condition(node.operand)
    return isinstance(node, ast.Compare)
