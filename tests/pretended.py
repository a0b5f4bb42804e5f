"""Pretended GPUs: tensors that claim to lie on one and behave as there, for machines that have none.

Every storage is the CPU's and says where it pretends to be. Operations between devices and generators of another
device are refused, waits of the host for a device and copies between devices are counted, and numbers are those of the
CPU. What is not seen: tensors that functions of torch make by themselves (they fit anywhere), kernels, and time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST, AUTOCAST, ATEN = torch.device("cpu"), torch.autocast, torch.ops.aten
WAITS = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.equal, ATEN.masked_select, ATEN._unique2, ATEN.unique_dim}
INDEXED = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}


class RefusedError(RuntimeError):
    """What CUDA would refuse."""


def claim_of(value: Any) -> torch.device | None:
    """Where a tensor pretends to be, and with it all views of it; None where nobody said."""
    is_plain = type(value) in (Tensor, torch.nn.Parameter) and not value.is_sparse
    return vars(value.untyped_storage()).get("claim") if is_plain else None


def put(found: Any, device: torch.device) -> Any:
    """Let every tensor in what was found pretend to be on a device."""
    for tensor in tree_leaves(found):
        if type(tensor) in (Tensor, torch.nn.Parameter):
            tensor.untyped_storage().claim = device  # type: ignore[attr-defined]
    return found


def named(device: Any) -> torch.device:
    """A device with its number."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


class Generator(torch.Generator):
    """The CPU's, for any device."""

    claim: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls)
        self.claim = named(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where it pretends to be."""
        return self.claim


class Moved(torch.autograd.Function):
    """A copy on another device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.home = claim_of(tensor) or HOST
        return put(tensor.clone(), device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return put(gradients[0].clone(), ctx.home), None


class Operations(TorchDispatchMode):
    """Refuses operations between devices; what one makes lies where it was made."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, leaves = func.overloadpacket, tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        # a single number may come from the host
        claims = {claim for tensor in tensors if (claim := claim_of(tensor)) and (tensor.dim() or claim != HOST)}
        if packet is ATEN.copy_:
            self.counts["copies"] += len(claims) > 1
            return func(*args, **(kwargs or {}))
        is_gpu = any(claim != HOST for claim in claims)
        if packet in INDEXED and claim_of(args[0]) != HOST and is_gpu:
            indices = [leaf for leaf in tree_leaves(args[1]) if leaf is not None]
            self.counts["waits"] += sum(leaf.dtype == torch.bool for leaf in indices)
            self.counts["copies"] += sum(claim_of(leaf) == HOST for leaf in indices)
            claims.discard(HOST)  # indices may come from the host, too
        if len(claims) > 1:
            found = [(tuple(tensor.shape), str(claim_of(tensor))) for tensor in tensors]
            raise RefusedError(f"Expected all tensors to be on the same device, but {func} found {found}")
        self.counts["waits"] += packet in WAITS and is_gpu
        made = func(*args, **(kwargs or {}))
        for claim in claims:
            put([leaf for leaf in tree_leaves(made) if not any(leaf is tensor for tensor in tensors)], claim)
        return made


class Calls(TorchFunctionMode):
    """Says where tensors lie, and takes the devices that are asked for."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, claim = dict(kwargs or {}), claim_of(args[0]) if args else None
        if claim is not None and getattr(func, "__name__", "") == "__get__":
            answers = {Tensor.device: claim, Tensor.is_cuda: claim != HOST, Tensor.is_cpu: claim == HOST}
            return answers[func.__self__] if func.__self__ in answers else func(*args)
        if func is Tensor.numpy and claim not in (None, HOST):
            raise TypeError(f"can't convert {claim} device type tensor to numpy. Use Tensor.cpu()")
        if func in (Tensor.cpu, Tensor.cuda):
            return self.move(args[0], HOST if func is Tensor.cpu else named((*args[1:], "cuda")[0] or "cuda"))
        if func is Tensor.to:
            return self.to(*args, **kwargs)
        if func is Tensor.pin_memory:
            self.counts["pinned"] += 1
            return args[0]
        self.counts["waits"] += func is Tensor.tolist and claim not in (None, HOST)
        device, generator = kwargs.get("device"), kwargs.get("generator")
        if device is not None:
            kwargs["device"] = HOST if named(device).type == "cuda" else device
        found = func(*args, **kwargs)
        if func is Tensor.__deepcopy__ and claim is not None:
            put(found, claim)
        elif device is not None and claim != named(device):
            put(found, named(device))
        elif not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            put(found, HOST)
        if generator is not None and claim_of(found) not in (None, generator.device):
            raise RefusedError(f"Expected a generator of {claim_of(found)} for {func}, not of {generator.device}")
        return found

    def move(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor itself, or a copy of it elsewhere."""
        if (claim_of(tensor) or HOST) == device:
            return tensor
        self.counts["copies to the host" if device == HOST else "copies"] += 1
        return Moved.apply(tensor, device)

    def to(self, tensor: Tensor, *args: Any, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
        """`Tensor.to`, whose arguments come in many forms."""
        for item in args:
            if isinstance(item, Tensor):
                options["dtype"], device = item.dtype, claim_of(item) or item.device
            elif isinstance(item, torch.dtype):
                options["dtype"] = item
            elif isinstance(item, str | torch.device) or type(item) is int:
                device = item
        target = (claim_of(tensor) or HOST) if device is None else named(device)
        if target.type not in ("cpu", "cuda"):
            return Tensor.to(tensor, device=target, **options)
        return self.move(Tensor.to(tensor, **options) if options else tensor, target)


@contextmanager
def pretended_gpus(count: int = 2) -> Iterator[Counter[str]]:
    """In the block this machine has GPUs, and a run uses the first.

    Yields:
        How often the host waited for a device ("waits"), and what went from one to another ("copies", "copies to the
        host").
    """
    counts: Counter[str] = Counter()
    seeds: dict[Any, int] = dict.fromkeys(range(count), 0)
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: counts.update(synchronised=1),
        "get_device_name": lambda device=None: "a pretended GPU",
        "manual_seed_all": lambda seed: seeds.update(dict.fromkeys(seeds, seed)),
        "get_rng_state": lambda device="cuda": torch.tensor([seeds[named(device).index]]),
        "set_rng_state": lambda state, device="cuda": seeds.update({named(device).index: int(state)}),
    }

    def autocast(kind: str, *args: Any, **options: Any) -> Any:
        return AUTOCAST("cpu" if kind == "cuda" else kind, *args, **options)

    accelerator: dict[str, Any] = {"is_available": lambda: True, "current_accelerator": lambda *_, **__: None}
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, **cuda))
        stack.enter_context(patch.multiple(torch.accelerator, **accelerator))
        stack.enter_context(patch.multiple(torch, Generator=Generator, autocast=autocast))
        stack.enter_context(patch("accelerate.PartialState", lambda **_: SimpleNamespace(device=named("cuda"))))
        stack.enter_context(Calls(counts))
        stack.enter_context(Operations(counts))
        yield counts
