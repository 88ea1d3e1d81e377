"""Every message that the pages on what goes wrong quote exists, word for word, in the source it is said to be of."""

import ast
import functools
import re
from pathlib import Path

import pytest
import torch

import latephase

ROOT = Path(__file__).parents[1]
PAGES = ("troubleshooting", "numerics")
PAGE = "\n".join((ROOT / f"docs/{name}.md").read_text() for name in PAGES)
QUOTED = re.findall(r"^ *> (?:([\w/.]+): )?`(.+)`$", PAGE, re.MULTILINE)
NAMED = re.findall(r"^ *> torch(?:/csrc)?: ([^`\n]+)$", PAGE, re.MULTILINE)


def text(node: ast.AST) -> str:
    """A string as it is written, with a NUL where a value is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left) + text(node.right)
    return "\0"


@functools.cache
def ours() -> list[str]:
    """Every string in the library's sources."""
    paths = Path(latephase.__file__).parent.rglob("*.py")
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return [text(node) for path in paths for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def pattern(message: str) -> re.Pattern:
    """A message in which `...` stands for whatever was put in, or left out."""
    return re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) > 40
    assert len(NAMED) == 3


@pytest.mark.parametrize(("file", "message"), QUOTED)
def test_a_quoted_message_exists(file: str, message: str) -> None:
    if file:
        assert file.startswith("torch/")
        text = Path(torch.__file__).parents[1].joinpath(file).read_text()
        assert message.split("...")[0] in text
        return
    words = max(message.split("..."), key=len)
    assert len(words) > 12, "the quotation must have words of its own"
    assert any(pattern(message).search(text) for text in ours()), message


def test_pytorch_speaks_of_a_modified_variable() -> None:
    weight = torch.ones(2, requires_grad=True)
    product = (weight * weight).exp()
    with torch.no_grad():
        product.zero_()
    with pytest.raises(RuntimeError) as error:
        product.sum().backward()
    assert NAMED[1] in str(error.value)
