"""Products of activations with each other and with parameters: what both operands and the result share is a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from string import ascii_letters
from typing import Any

from torch import Tensor

from tas.nn.labels import Heads, along, condense, fixed, spread, varying_dims
from tas.nn.rules.base import Call, Constant
from tas.nn.rules.parameter import read_by_parameter
from tas.nn.rules.shape import elementwise
from tas.nn.rules.tried import unknown


def contraction(call: Call, left: Any, right: Any, letters: tuple[str, str, str]) -> Any:
    """A product summed over some dimensions, in the letters of einsum.

    Where an operand has different channels along several dimensions, the one that both operands and the result share
    (the head) is what can be cut; then one that the result has. What is summed over stays.
    """
    first, second, result = letters
    constant, table = ("", None)
    for item, word in ((left, first), (right, second)):
        constant, table = (word, item) if isinstance(item, Constant) else (constant, table)
    left, right = (fixed(item.shape) if isinstance(item, Constant) else item for item in (left, right))
    chosen = [_reduced(call, labels, word, letters) for labels, word in ((left, first), (right, second))]
    met = next((letter for letter in chosen if letter is not None and letter in constant), None)
    if met is not None and table is not None:
        labels, word = (left, first) if met in first and constant == second else (right, second)
        vector = call.labels.channel_vector(labels, word.index(met))
        if not read_by_parameter(call, table, constant.index(met), vector):
            _count(call, (left, right), letters, {})
            return call.refuse(f"{call.op} multiplies it with a tensor that is not the weight of a layer")
        _count(call, (left, right), letters, {met: vector})
        return spread(vector, result.index(met), call.shape) if met in result else fixed(call.shape)
    for letter, other in ((chosen[0], 1), (chosen[1], 0)):
        current = chosen[other]
        is_head = letter is not None and letter in letters[other] and letter in result
        if is_head and current is not None and current != letter:
            call.labels.merge_along((left, right)[other], [letters[other].index(current)], call.module)
            chosen[other] = letter
    vectors: dict[str, Tensor] = {}
    for labels, word, own in ((left, first, chosen[0]), (right, second, chosen[1])):
        for letter in dict.fromkeys(letter for letter in chosen if letter is not None and letter in word):
            if own not in (None, letter):  # what the other has there is summed over, and stays
                continue
            vector = call.labels.channel_vector(labels, word.index(letter))
            if letter in vectors:
                call.labels.union(vectors[letter], vector, call.module)
            vectors.setdefault(letter, vector)
    for letter in vectors:
        if letter in first and letter in second and letter in result:
            _note_heads(call, left, first.index(letter))
    for letter, vector in vectors.items():
        if (
            letter not in result
        ):  # what is dropped would have to be zero here, and norms or biases make it something else
            call.labels.freeze(vector, f"{call.op} sums over it; of attention, only whole heads are cut", call.module)
    _count(call, (left, right), letters, vectors)
    kept = sorted((letter for letter in vectors if letter in result), key=lambda letter: -len(vectors[letter]))
    for letter in kept[1:]:
        call.labels.freeze(vectors[letter], f"{call.op} pairs every channel with every other", call.module)
    return spread(vectors[kept[0]], result.index(kept[0]), call.shape) if kept else fixed(call.shape)


def _note_heads(call: Call, operand: Tensor, head: int) -> None:
    """Keep in mind which channels become heads: some forwards only work if those are the channels they read."""
    entry, varying = call.entry(), varying_dims(operand)
    dims = varying_dims(entry) if entry is not None else []
    if entry is None or len(dims) != 1 or len(varying) > 2 or head not in varying:
        return
    order = [*(dim for dim in range(operand.dim()) if dim not in varying), head, *(d for d in varying if d != head)]
    split, read = condense(operand.permute(order)).flatten(), along(entry, dims[0])
    if len(split) == len(read):
        call.labels.heads.append(Heads(call.module, split, read, tuple(entry.shape)))


def _reduced(call: Call, labels: Tensor, word: str, letters: tuple[str, str, str]) -> str | None:
    """The one letter along which this operand may be cut."""
    along = [word[dim] for dim in varying_dims(labels)]
    if not along:
        return None
    order = sorted(along, key=lambda letter: (sum(letter not in word for word in letters), letter not in letters[2]))
    call.labels.merge_along(labels, [word.index(letter) for letter in along if letter != order[0]], call.module)
    return order[0]


def _sizes(operands: tuple[Any, Any], letters: tuple[str, str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for operand, word in zip(operands, letters, strict=False):
        for letter, size in zip(word, operand.shape, strict=True):
            found[letter] = max(size, found.get(letter, 1))
    return found


def _count(call: Call, operands: tuple[Any, Any], letters: tuple[str, str, str], vectors: Mapping[str, Tensor]) -> None:
    """Note the multiply-adds of one sample; what sums over nothing is none, as for torch's counter."""
    if set(letters[0]) | set(letters[1]) <= set(letters[2]):
        return
    others = prod(size for letter, size in _sizes(operands, letters).items() if letter not in vectors)
    factors = list(vectors.values())
    if others % call.batch == 0:
        others //= call.batch
    elif factors:  # samples and heads stand on one dimension
        factors[0] = factors[0].view(call.batch, -1)[0]
    call.count(call.draft("other"), others, tuple(factors))


def matrix_product(call: Call) -> Any:
    """Products of two activations, stacked along any number of dimensions in front."""
    tensors = [value for value in call.arguments.values() if isinstance(value, Tensor | Constant)]
    left, right = tensors[-2:]
    if min(len(left.shape), len(right.shape)) < 2:
        return call.refuse(f"{call.op} multiplies with a vector")
    front = "abcdefgh"[: max(len(left.shape), len(right.shape)) - 2]
    words = [front[len(front) - len(operand.shape) + 2 :] for operand in (left, right)]
    result = contraction(call, left, right, (words[0] + "nk", words[1] + "km", front + "nm"))
    if len(tensors) == 3:  # baddbmm and the like add something
        result = elementwise(sum_call(call, [result, tensors[0]]))
    return result


def einsum(call: Call) -> Any:
    """Products of two activations in any order of dimensions."""
    tensors, equation = call.arguments["tensors"], call.arguments["equation"].replace(" ", "")
    words, _, result = _spelled_out(equation, tensors).partition("->")
    words = words.split(",")
    if any(len(set(word)) < len(word) for word in words):
        return unknown(call)
    if len(words) > 2 and {*result} == {*"".join(words)} and not call.constants():  # sums over nothing
        return elementwise(sum_call(call, [_laid_out(*pair, result) for pair in zip(tensors, words, strict=True)]))
    if len(words) != 2:
        return unknown(call)
    return contraction(call, tensors[0], tensors[1], (words[0], words[1], result))


def _laid_out(labels: Tensor, word: str, result: str) -> Tensor:
    """Labels in the order of the result's letters."""
    moved = labels.permute([word.index(letter) for letter in result if letter in word])
    return moved[tuple(slice(None) if letter in word else None for letter in result)]


def _spelled_out(equation: str, operands: Sequence[Any]) -> str:
    """The equation with letters for the dimensions in front that it leaves out, and with its result."""
    words, arrow, result = equation.partition("->")
    if not arrow:  # what stands once, in the order of the alphabet
        once = sorted(letter for letter in words if letter.isalpha() and words.count(letter) == 1)
        result = "".join(["..." * ("..." in words), *once])
    front = [
        len(operand.shape) - len(word) + 3 if "..." in word else 0
        for word, operand in zip(words.split(","), operands, strict=True)
    ]
    others = [letter for letter in ascii_letters if letter not in equation][: max(front)]
    filled = [
        word.replace("...", "".join(others[len(others) - count :]))
        for word, count in zip(words.split(","), front, strict=True)
    ]
    return f"{','.join(filled)}->{result.replace('...', ''.join(others))}"


def sum_call(call: Call, operands: list[Any]) -> Call:
    """The sum of some operands, in the place of this call."""
    return replace(call, op="add", arguments={"tensors": operands})


LABELS = dict.fromkeys(("matmul", "bmm", "mm", "baddbmm", "addmm"), matrix_product) | {"einsum": einsum}
