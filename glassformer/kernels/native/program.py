"""A decoder's blocks as one list of native operations, for forward passes that nothing observes.

A program is prepared once for a number of sequences and new tokens: its operations hold the addresses of weights and
buffers. A forward pass sets what changes (input, positions, angles, cache) and makes one call. `Block.forward` on the
native modules runs the same operations, one per call, with the same bits.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.kernels.native import ops, rows
from glassformer.kernels.native.attention import MAX_HEAD, attend_native
from glassformer.kernels.native.library import load_library
from glassformer.kernels.native.ops import (
    ATTEND,
    FLOAT_FORMATS,
    LINEAR,
    PACKED_FORMATS,
    QUANTIZE,
    ROTATE,
    Op,
    activation_bytes,
)
from glassformer.kernels.packed_linear import PackedLinear
from glassformer.nn.attention import Attention
from glassformer.nn.block import Block
from glassformer.nn.mlp import MLP
from glassformer.nn.model import Decoder
from glassformer.nn.norm import LayerNorm, RMSNorm
from glassformer.nn.step import Step

# of modules that a program can do; a subclass from elsewhere may compute something else
CLASSES = (Block, Attention, MLP, nn.Linear, PackedLinear, RMSNorm, LayerNorm, nn.Identity, nn.ModuleList)
SOURCES = {one.__module__ for one in CLASSES} | {"glassformer.kernels.native.modules"}
MAX_PROGRAMS = 4  # of a model
MAX_ROWS = 1024  # of all programs of a model but the newest: their buffers take memory
SMALL = 1 << 18  # multiplications of a forward pass; below, one thread is faster than the barriers of several


class NativeDecoder(Decoder):
    """`Decoder` whose blocks run as one program if no tap, gradient or hook needs the values between them."""

    def hidden(self, ids: Int[Tensor, "B T"], step: Step) -> Float[Tensor, "B T D"]:
        if not can_run(step):
            return super().hidden(ids, step)
        return self.run_blocks(self.embed_input(ids, step), step)  # a program needs no masks

    def run_blocks(self, x: Float[Tensor, "B T D"], step: Step, first: int = 0) -> Float[Tensor, "B T D"]:
        if first == 0 and can_run(step) and x.dtype == torch.float32 and x.is_cpu and x.numel():
            programs = self.__dict__.setdefault("programs", Programs())
            with programs.lock:
                out = programs.run(self, x, step)
            if out is not None:
                return out
        return super().run_blocks(x, step, first)


def can_run(step: Step) -> bool:
    """Whether the arguments of a forward pass allow a program."""
    plain = step.tap is None and step.cache is not None and step.source is None and step.backend is attend_native
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and load_library() is not None


def unsupported(model: Decoder) -> str | None:
    """Return the part of a model that programs do not support, or None."""
    if model.relative_positions is not None:
        return "relative positions"
    for block in model.blocks:
        assert isinstance(block, Block)
        attn = block.attn
        if not isinstance(attn, Attention):
            return "latent attention"
        if not isinstance(block.mlp, MLP):
            return "experts"
        layers = (attn.q, attn.k, attn.v, attn.o, block.mlp.gate, block.mlp.up, block.mlp.down)
        if not all(layer is None or isinstance(layer, (nn.Linear, PackedLinear)) for layer in layers):
            return "other layers"
        if block.cross is not None:
            return "cross-attention"
        if attn.config.clip is not None or attn.config.qk_norm_over == "each" or attn.config.head_dim > MAX_HEAD:
            return "clipped, very large or separately normalized heads"
    return next(filter(None, map(_unusual, [*model.blocks.modules(), model.norm])), None)


def _unusual(module: nn.Module) -> str | None:
    """Return what makes a module compute or store other numbers than a program reads; None: nothing."""
    if not (isinstance(module, CLASSES) and type(module).__module__ in SOURCES) or "forward" in vars(module):
        return f"{type(module).__name__}: another class, or another forward"
    for name, p in module.named_parameters(recurse=False):
        dtypes = FLOAT_FORMATS if isinstance(module, nn.Linear) and name == "weight" else (torch.float32,)
        if p.dtype not in dtypes or not (p.is_cpu and p.is_contiguous()):
            return f"{name} of {type(module).__name__}: another dtype, device or layout"
    return None


class Programs:
    """The programs of one model, by their numbers of sequences and tokens. A copy of the model has its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_shape: OrderedDict[tuple[int, int], Program] = OrderedDict()
        self.structure: Structure | None = None

    @property
    def n_rows(self) -> int:
        return sum(batch * tokens for batch, tokens in self.by_shape)

    def __deepcopy__(self, memo: Any) -> Programs:
        return Programs()

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        return Programs, ()

    def run(self, model: Decoder, x: Float[Tensor, "B T D"], step: Step) -> Float[Tensor, "B T D"] | None:
        """Run a forward pass; None if programs do not support the model or its cache."""
        if self.structure is None or not self.structure.is_current():
            self.by_shape.clear()
            self.structure = Structure(model)
        if self.structure.reason is not None:
            return None
        shape = x.shape[0], x.shape[1]
        if shape not in self.by_shape:
            with torch.inference_mode(False), torch.no_grad():
                self.by_shape[shape] = Program(model, *shape)
            while len(self.by_shape) > MAX_PROGRAMS or (len(self.by_shape) > 1 and self.n_rows > MAX_ROWS):
                self.by_shape.popitem(last=False)
        self.by_shape.move_to_end(shape)
        return self.by_shape[shape].run(x, step)


class Structure:
    """The modules, hooks and addresses of weights that programs of a model were made for.

    reason: why there cannot be programs, or None.
    """

    def __init__(self, model: Decoder):
        self.parts = [model, *model.blocks.modules(), model.norm]
        self.attributes = [vars(part) for part in self.parts]
        self.parents = [part._modules for part in self.parts if part._modules]
        self.hooks = [hooks for part in self.parts[1:] for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self.tables = [table for part in self.parts for table in (part._parameters, part._buffers) if table]
        self.reason = "hooks" if any(self.hooks) else unsupported(model)
        self.state = self.look()

    def look(self) -> tuple[Any, ...]:
        """Return what changes if a module, its class, forward or hooks, or a weight is replaced."""
        weights = chain.from_iterable(map(dict.values, self.tables))
        return (
            list(map(type, self.parts)),
            any(map(dict.__contains__, self.attributes, repeat("forward"))),
            list(chain.from_iterable(map(dict.values, self.parents))),
            [value if value is None else value.data_ptr() for value in weights],
            any(self.hooks),
        )

    def is_current(self) -> bool:
        """Whether all this is as it was, before each forward pass: a program reads weights at fixed addresses."""
        return self.look() == self.state


class Inputs(NamedTuple):
    """The input of linear layers: float32 rows for float matrices, quantized rows for packed ones."""

    x: Tensor | None
    quantized: Tensor | None


class Program:
    """The operations of one forward pass over `batch` sequences with `tokens` new tokens each."""

    def __init__(self, model: Decoder, batch: int, tokens: int):
        config = model.config
        self.batch, self.tokens, self.rows = batch, tokens, batch * tokens
        self.ops: list[Op] = []
        self.alive: list[Tensor] = []  # the operations hold the addresses of these
        self.x = self.buffer(self.rows, config.d_model)
        self.positions = torch.empty(batch, tokens, dtype=torch.int32)
        self.angles = {rope: self.new_angles(*rope) for rope in model.ropes}
        self.shared: dict[tuple[str, int], Tensor] = {}
        self.stores: list[tuple[Op, Op, Op]] = []  # of each layer: store keys, store values, attend
        for block in model.blocks:
            assert isinstance(block, Block)
            self.add_block(block)
        self.add_norm(model.norm, self.x, self.x)
        self.has_norm = not isinstance(model.norm, nn.Identity)
        self.list = (Op * len(self.ops))(*self.ops)  # copies: from here on, only `self.list` is changed
        index = {ctypes.addressof(op): i for i, op in enumerate(self.ops)}
        self.cache_ops = [[self.list[index[ctypes.addressof(op)]] for op in layer] for layer in self.stores]
        work = self.rows * sum(p.numel() for p in model.blocks.parameters())
        self.one_thread = work < SMALL and not any(isinstance(m, PackedLinear) for m in model.blocks.modules())
        self.heads = [(layer.attention.n_kv_heads, layer.attention.head_dim) for layer in config.layers]

    def run(self, x: Float[Tensor, "B T D"], step: Step) -> Float[Tensor, "B T D"] | None:
        """Run the blocks and the final norm; None if the cache cannot store these tokens before they are read."""
        cache = step.cache
        assert cache is not None
        slots = [getattr(cache.layer(i), "direct_storage", None) for i in range(len(self.cache_ops))]
        for slot, (n_heads, size), (store_k, store_v, attend) in zip(slots, self.heads, self.cache_ops, strict=True):
            storage = None if slot is None else slot(n_heads, size)
            if storage is None:
                return None
            k, v = storage
            if store_k.y == k.data_ptr() and store_v.y == v.data_ptr() and store_k.i[4] == k.shape[2]:
                continue
            strides = rows.head_strides(k)
            if strides is None or strides != rows.head_strides(v):
                return None
            store_k.y, store_v.y, attend.w, attend.p[0] = k.data_ptr(), v.data_ptr(), k.data_ptr(), v.data_ptr()
            store_k.i[4:8] = store_v.i[4:8] = attend.i[3:7] = k.shape[2], *strides
        self.x.copy_(x.reshape(self.rows, -1))
        self.positions.copy_(step.positions.expand(self.batch, -1))
        for rope, buffers in self.angles.items():
            for buffer, value in zip(buffers, step.rotation(*rope), strict=True):
                buffer.copy_(value)
        out = torch.empty(x.shape)
        if self.has_norm:
            self.list[len(self.list) - 1].y = out.data_ptr()
        ops.run_list(self.list, 1 if self.one_thread else None)
        return out if self.has_norm else out.copy_(self.x.view(x.shape))

    def buffer(self, *shape: int) -> Tensor:
        self.alive.append(torch.empty(shape))
        return self.alive[-1]

    def scratch(self, name: str, size: int) -> Tensor:
        """Return a buffer [rows, size] that all layers share."""
        if (name, size) not in self.shared:
            self.shared[name, size] = self.buffer(self.rows, size)
        return self.shared[name, size]

    def new_angles(self, rope: Any, head_dim: int) -> tuple[Tensor, Tensor]:
        pairs = (rope.dim or head_dim) // 2
        return self.buffer(self.batch, self.tokens, 1, pairs), self.buffer(self.batch, self.tokens, 1, pairs)

    def add(self, op: Op, no_barrier: bool = False) -> Op:
        op.no_barrier = no_barrier
        self.ops.append(op)
        return op

    def add_block(self, block: Block) -> None:
        """Add the operations of `Block.forward`."""
        attn, mlp = block.attn, block.mlp
        assert isinstance(attn, Attention)
        assert isinstance(mlp, MLP)
        first = [layer for layer in (mlp.gate, mlp.up) if layer is not None]
        inputs = self.add_input(
            block.attn_norm, self.x, [attn.q, attn.k, attn.v, *(first if block.shared_norm else [])], "x"
        )
        mlp_inputs = inputs
        if block.parallel and not block.shared_norm:
            mlp_inputs = self.add_input(block.mlp_norm, self.x, first, "mlp.x")
        self.add_attention(attn, inputs, block.attn_out_norm, block.attn_post_norm)
        if not block.parallel:
            mlp_inputs = self.add_input(block.mlp_norm, self.x, first, "mlp.x")
        self.add_mlp(mlp, mlp_inputs, block.mlp_out_norm, block.mlp_post_norm)

    def add_attention(self, attn: Attention, inputs: Inputs, out_norm: nn.Module, post_norm: nn.Module) -> None:
        """Add the operations of `Attention.forward`, and the sum with the residual stream."""
        config, size = attn.config, attn.config.head_dim
        shape, kv_shape = (config.n_heads, size), (config.n_kv_heads, size)
        q, k, v = (
            self.scratch(name, n * d).view(self.batch, self.tokens, n, d)
            for name, (n, d) in zip("qkv", (shape, kv_shape, kv_shape), strict=True)
        )
        self.add_linear(attn.q, inputs, q, no_barrier=True)
        self.add_linear(attn.k, inputs, k, no_barrier=True)
        self.add_linear(attn.v, inputs, v)
        if config.qk_norm is not None:
            width = config.qk_norm_over == "width"
            for norm, t in ((attn.q_norm, q), (attn.k_norm, k)):
                flat = t.flatten(-2) if width else t
                self.add(rows.norm_op(flat, flat, **norm_options(norm)), no_barrier=norm is attn.q_norm)
        angles = self.angles[config.rope, size] if config.rope is not None else None
        if angles is not None:
            self.add(rows.rotate_op(q, q, *angles), no_barrier=True)
        store_k, store_v = self.add_store(k, angles, no_barrier=True), self.add_store(v, None)
        z = self.scratch("z", config.n_heads * size)
        attend = Op(kind=ATTEND, rows=self.rows, n_in=size, n_out=size, x=q.data_ptr(), y=z.data_ptr())
        attend.i[:3] = self.tokens, config.n_heads, config.n_kv_heads
        attend.i[7] = attn.spec.window or 0
        attend.f[:2] = attn.spec.scale, attn.spec.softcap or 0.0
        attend.p[1] = self.positions.data_ptr()
        if attn.sinks is not None:
            attend.bias = attn.sinks.data_ptr()
        self.stores.append((store_k, store_v, self.add(attend)))
        self.add_sum(attn.o, self.quantized(z, [attn.o], "z"), out_norm, post_norm)

    def add_store(self, t: Tensor, angles: tuple[Tensor, Tensor] | None, no_barrier: bool = False) -> Op:
        """Add the rotation of keys into the cache; without angles, the copy of values."""
        heads, size = t.shape[-2:]
        op = Op(kind=ROTATE, rows=self.rows, n_in=size, x=t.data_ptr())
        op.i[0], op.i[3] = heads, self.tokens
        op.p[2] = self.positions.data_ptr()
        if angles is not None:
            cos, sin = angles
            op.i[1], op.i[2] = cos.shape[-1], self.rows
            op.p[0], op.p[1] = cos.data_ptr(), sin.data_ptr()
        return self.add(op, no_barrier)

    def add_mlp(self, mlp: MLP, inputs: Inputs, out_norm: nn.Module, post_norm: nn.Module) -> None:
        """Add the operations of `MLP.forward`, and the sum with the residual stream."""
        up = self.scratch("up", mlp.config.d_ff)
        gate = up if mlp.gate is None else self.scratch("gate", mlp.config.d_ff)
        if mlp.gate is not None:
            self.add_linear(mlp.gate, inputs, gate, no_barrier=True)
        self.add_linear(mlp.up, inputs, up)
        options: dict[str, Any] = {"activation": mlp.config.activation} if mlp.gate is None else activation_options(mlp)
        packed = isinstance(mlp.down, PackedLinear)
        act = self.activations(mlp.config.d_ff, "act") if packed else gate
        other = None if mlp.gate is None else up
        self.add(rows.activate_op(gate, other, act, quantized=packed, **options))
        self.add_sum(mlp.down, Inputs(None, act) if packed else Inputs(act, None), out_norm, post_norm)

    def add_sum(self, layer: Any, inputs: Inputs, out_norm: nn.Module, post_norm: nn.Module) -> None:
        """Add post_norm(x + out_norm(layer(inputs)))."""
        if isinstance(out_norm, nn.Identity):
            self.add_linear(layer, inputs, self.x, residual=self.x)
        else:
            term = self.scratch("term", self.x.shape[1])
            self.add_linear(layer, inputs, term)
            self.add_norm(out_norm, term, term)
            self.add(rows.add_op(self.x, term, self.x))
        self.add_norm(post_norm, self.x, self.x)

    def add_norm(self, norm: nn.Module, x: Tensor, y: Tensor) -> None:
        """Add a norm of the residual stream; the identity adds nothing."""
        if not isinstance(norm, nn.Identity):
            self.add(rows.norm_op(x, y, **norm_options(norm)))

    def add_input(self, norm: nn.Module, x: Tensor, layers: list[Any], name: str) -> Inputs:
        """Add the norm that precedes some layers; return their inputs."""
        if isinstance(norm, nn.Identity):
            return self.quantized(x, layers, name)
        if all(isinstance(layer, PackedLinear) for layer in layers):
            y = self.activations(x.shape[1], name)
            self.add(rows.norm_op(x, y, quantized=True, **norm_options(norm)))
            return Inputs(None, y)
        y = self.scratch(name, x.shape[1])
        self.add_norm(norm, x, y)
        return self.quantized(y, layers, name)

    def quantized(self, x: Tensor, layers: list[Any], name: str) -> Inputs:
        """Return x as the input of layers, with its quantized rows if one of them is packed."""
        if not any(isinstance(layer, PackedLinear) for layer in layers):
            return Inputs(x, None)
        y = self.activations(x.shape[1], name)
        self.add(Op(kind=QUANTIZE, rows=self.rows, n_in=x.shape[1], x=x.data_ptr(), y=y.data_ptr()))
        return Inputs(x, y)

    def activations(self, size: int, name: str) -> Tensor:
        """Return a buffer for quantized rows that all layers share."""
        key = f"{name} in 8 bits", size
        if key not in self.shared:
            self.shared[key] = torch.empty(activation_bytes(self.rows, size), dtype=torch.uint8)
        return self.shared[key]

    def add_linear(
        self, layer: Any, inputs: Inputs, y: Tensor, residual: Tensor | None = None, no_barrier: bool = False
    ) -> None:
        """Add y = x W^T + bias, plus the residual."""
        if isinstance(layer, PackedLinear):
            matrix, x = layer.matrix, inputs.quantized
            kind, weight, (n_out, n_in) = PACKED_FORMATS[matrix.format], matrix.data, matrix.shape
        else:
            weight, x = layer.weight, inputs.x
            kind, (n_out, n_in) = FLOAT_FORMATS[weight.dtype], weight.shape
        assert x is not None
        assert weight.is_contiguous()
        op = Op(kind=LINEAR, format=kind, rows=self.rows, n_in=n_in, n_out=n_out, x=x.data_ptr(), y=y.data_ptr())
        op.w = weight.data_ptr()
        if layer.bias is not None:
            op.bias = layer.bias.data_ptr()
        if residual is not None:
            op.residual = residual.data_ptr()
        self.add(op, no_barrier)


def norm_options(norm: nn.Module) -> dict[str, Any]:
    """Return the arguments of `rows.norm_op` for a norm."""
    if isinstance(norm, LayerNorm):
        return {"kind": "layer", "eps": norm.eps, "weight": norm.weight, "bias": norm.bias}
    assert isinstance(norm, RMSNorm)
    return {"kind": "rms", "eps": norm.eps, "weight": norm.weight, "one_plus": norm.scale == "float32 1+"}


def activation_options(mlp: MLP) -> dict[str, Any]:
    """Return the arguments of `rows.activate_op` for a gated MLP."""
    config = mlp.config
    return {"activation": config.activation, "limit": config.limit, "up_plus_one": config.up_plus_one}
