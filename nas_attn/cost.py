"""What a model costs before it is trained or timed: parameters, giga multiply-accumulates, peak activation memory.

A multiply-accumulate (MAC) is one product added to a running sum, counted once: convolutions, matrix products, attention and interpolation
with weights. Half of what tools call FLOPs. Work that is done once an element (activations, sums of two maps, normalization, pooling,
copies) is not counted, as in published tables; batch normalization folds into its convolution at inference.

Every operator of a trace is either counted by a handler (`_HANDLERS`), or listed as free of MACs (`_FREE`), or an error: nothing is free
because nobody knew it. What a trace cannot show: a contraction that is written as an element-wise product and a sum counts as neither.

Shapes: image_BCHW with B images, C channels, H rows, W columns.
"""

import copy
import gc
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas_attn.errors import NasAttnError

with warnings.catch_warnings():
    # fvcore compiles its focal losses when it is imported, with what torch has deprecated since; nothing here uses them. The words depend
    # on the version of Python, the class on that of torch (2.12: DeprecationWarning, 2.15: FutureWarning).
    for _class in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is (deprecated|not supported)", _class, r"torch\.jit\._script")
    from fvcore.nn import FlopCountAnalysis

_MIB = 2**20
_Values = Sequence[Any]


def parameters_m(model: nn.Module) -> float:
    """Millions of parameters of the model as it is built, each counted once, frozen ones included.

    An end-to-end detector has a head that only training uses; it is included here, and dropped by `deployed`.
    """
    return sum(p.numel() for p in model.parameters()) / 1e6


def deployed(model: nn.Module) -> nn.Module:
    """A copy as it would be run: in evaluation mode, without gradients, fused where the model knows how to; the model stays untouched."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    fuse = getattr(twin, "fuse", None)
    if callable(fuse):
        quiet = {"verbose": False} if "verbose" in inspect.signature(fuse).parameters else {}
        fuse(**quiet)
    return twin


def gmacs(model: nn.Module, image_BCHW: Tensor) -> float:
    """Giga multiply-accumulates of one forward pass of the deployed model on `image_BCHW`, all B images together.

    The model is traced, so that it costs one real forward pass. The model stays untouched.

    Raises:
        NasAttnError: the model uses an operator that is neither counted nor known to be free of MACs; it names the operator.

    Source: fvcore (`FlopCountAnalysis`), whose own handlers are replaced: they ignore broadcasting in `matmul`, count element-wise work of
    some operators and not of others, and count `scaled_dot_product_attention` as nothing.
    """
    with torch.no_grad(), _on_cpu(model, image_BCHW) as (twin, image_BCHW):
        analysis = FlopCountAnalysis(twin, image_BCHW)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.clear_op_handles().set_op_handle(**_HANDLERS).set_op_handle(**dict.fromkeys(_FREE))
        macs = analysis.total()
        unknown = analysis.unsupported_ops()
    if unknown:
        raise NasAttnError(
            f"Every operator must be counted or known to do no multiply-accumulates, but {', '.join(sorted(unknown))} is neither; "
            f"add a handler, or an entry of the free ones, to nas_attn/cost.py."
        )
    return float(macs) / 1e9


def activation_mib(model: nn.Module, image_BCHW: Tensor) -> float:
    """MiB that the tensors of one forward pass of the deployed model occupy at its peak, the image included, the weights not.

    Rule: every storage that an operator makes is added when it appears and taken off when its last tensor is gone; a view or an in-place
    result occupies nothing new. It runs on the CPU, so that the number is the same for every device and run. Scratch memory inside
    an operator's kernel, and what an allocator rounds up, are not seen. The model stays untouched.
    """
    with torch.no_grad(), _on_cpu(model, image_BCHW) as (twin, image_BCHW), _collected():
        live = _LiveBytes(image_BCHW)
        with live:
            twin(image_BCHW)
    return live.peak / _MIB


@contextmanager
def _on_cpu(model: nn.Module, image_BCHW: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    yield deployed(model).cpu(), image_BCHW.detach().cpu()


@contextmanager
def _collected() -> Iterator[None]:
    # A collection in the middle of a forward pass would free cycles at a moment that differs from run to run.
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operators make, for as long as they live."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = image.untyped_storage().nbytes()
        self._known: dict[int, weakref.ref[Any]] = {}
        self._register(image, counted=False)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # A mode that is guarded from torch.compile imports all of it at its first operator, which takes seconds; nothing is compiled here.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator reads without any having made it is a weight or a constant of the model.
        for tensor in _tensors((args, kwargs)):
            self._register(tensor, counted=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._register(tensor, counted=True)
        self.peak = max(self.peak, self.live)
        return result

    def _register(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0

        def forget(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.live += size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


# Handlers: each takes the traced inputs and outputs of one operator and returns its multiply-accumulates.


def _shape(value: Any) -> tuple[int, ...]:
    sizes = value.type().sizes() if value.isCompleteTensor() else None
    if sizes is None:
        raise NasAttnError(f"A traced tensor must have a known shape to be counted, but {value.debugName()} has none; trace a fixed input.")
    return tuple(sizes)


def _numel(value: Any) -> int:
    return math.prod(_shape(value))


def _product(left: int) -> Callable[[_Values, _Values], int]:
    """A matrix product whose first factor is input number `left`: each output sums over that factor's last axis."""
    return lambda inputs, outputs: _numel(outputs[0]) * _shape(inputs[left])[-1]


def _summed_product(inputs: _Values, _outputs: _Values) -> int:
    """addbmm: the products of a batch, added up."""
    return _numel(inputs[1]) * _shape(inputs[2])[-1]


def _convolution(inputs: _Values, outputs: _Values) -> int:
    """Every element of the output (of the input, when transposed) meets one filter: weight_OIhw, I already divided by groups."""
    transposed = bool(inputs[6].toIValue())
    return _numel(inputs[0] if transposed else outputs[0]) * math.prod(_shape(inputs[1])[1:])


def _padded_convolution(inputs: _Values, outputs: _Values) -> int:
    """A convolution whose padding is a word, which is never transposed."""
    return _numel(outputs[0]) * math.prod(_shape(inputs[1])[1:])


def _attention(inputs: _Values, outputs: _Values) -> int:
    """softmax(q k^T) v: each of L queries meets S keys in E dimensions, and their values in those of the output. Masks save nothing."""
    *_, queries, width = _shape(inputs[0])
    output = _shape(outputs[0])
    return math.prod(output[:-2]) * queries * _shape(inputs[1])[-2] * (width + output[-1])


def _fused_attention(inputs: _Values, _outputs: _Values) -> int:
    """nn.MultiheadAttention in one operator (query, key, value, width, heads, ...): four projections of E and the attention itself."""
    batch, queries, width = _shape(inputs[0])
    keys = _shape(inputs[1])[1]
    projections = 2 * batch * (queries + keys) * width**2
    return projections + 2 * batch * queries * keys * width


def _einsum(inputs: _Values, _outputs: _Values) -> int:
    """The product of all axes where two factors share a summed one; without such an axis it is element-wise."""
    equation = str(inputs[0].toIValue()).replace(" ", "")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    if len(shapes) > 2:
        raise NasAttnError(f"aten::einsum must have at most two factors to be counted, but got {equation!r}; contract them pair by pair.")
    return einsum_macs(equation, shapes)


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-accumulates of `torch.einsum` with one or two factors of these shapes; ellipses and broadcasting as there."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_axes(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    letters = [axis for term in terms for axis in term]
    kept = set(right) if arrow else {axis for axis in letters if letters.count(axis) == 1}
    shared = set(terms[0]).intersection(*terms[1:]) if len(terms) > 1 else set()
    if not any(axis.isalpha() and axis not in kept for axis in shared):
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for axis, size in zip(term, shape, strict=True):
            # An axis of one factor alone that the output lacks is summed up before the product.
            if axis in kept or axis in shared or axis.isdigit():
                sizes[axis] = max(size, sizes.get(axis, 1))
    return math.prod(sizes.values())


def _axes(term: str, rank: int) -> list[str]:
    """The axes of one factor by name; those under an ellipsis are numbered from the last, which is how they broadcast."""
    head, dots, tail = term.partition("...")
    hidden = rank - len(head) - len(tail)
    return [*head, *(str(hidden - i) for i in range(hidden if dots else 0)), *tail]


def _interpolation(weights: int) -> Callable[[_Values, _Values], int]:
    """A weighted sum of `weights` neighbours for each element of the output."""
    return lambda _inputs, outputs: weights * _numel(outputs[0])


def _grid_sampler(inputs: _Values, outputs: _Values) -> int:
    """Mode 0 is linear in each of the grid's directions, 1 the nearest, 2 cubic."""
    neighbours = {0: 2, 1: 0, 2: 4}[inputs[2].toIValue()]
    return int(neighbours ** _shape(inputs[1])[-1]) * _numel(outputs[0])


def _refuse(kind: str) -> Callable[[_Values, _Values], int]:
    def refuse(_inputs: _Values, _outputs: _Values) -> int:
        raise NasAttnError(f"Every operator must be visible in a trace to be counted, but {kind} hides some; leave the model unscripted.")

    return refuse


_HANDLERS: Mapping[str, Callable[[_Values, _Values], int]] = {
    **{f"aten::{name}": _product(0) for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "linear")},
    **{f"aten::{name}": _product(1) for name in ("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv")},
    "aten::addbmm": _summed_product,
    "aten::_convolution": _convolution,
    "aten::_convolution_mode": _padded_convolution,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_native_multi_head_attention": _fused_attention,
    "aten::einsum": _einsum,
    "aten::upsample_linear1d": _interpolation(2),
    "aten::upsample_bilinear2d": _interpolation(4),
    "aten::upsample_trilinear3d": _interpolation(8),
    "aten::upsample_bicubic2d": _interpolation(16),
    "aten::grid_sampler": _grid_sampler,
    **{kind: _refuse(kind) for kind in ("prim::If", "prim::Loop", "prim::CallMethod")},
}


def _named(names: str) -> tuple[str, ...]:
    return tuple(f"aten::{name}" for name in names.split())


def _and_in_place(names: str) -> tuple[str, ...]:
    return tuple(f"aten::{name}{end}" for name in names.split() for end in ("", "_"))


_FREE: tuple[str, ...] = (
    # One operation an element: arithmetic, activations, comparisons, conversions.
    *_and_in_place(
        "abs add addcdiv addcmul atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min clip cos cumprod "
        "cumsum div dropout elu eq erf exp exp2 expm1 feature_dropout fill floor floor_divide fmod frac ge gelu gt hardsigmoid hardswish "
        "hardtanh le leaky_relu lerp log log10 log1p log2 logical_and logical_not logical_or logical_xor logit lt masked_fill mish mul "
        "nan_to_num ne neg pow prelu reciprocal relu relu6 remainder round rrelu rsqrt selu sigmoid sign silu sin sinh sqrt square sub tan "
        "tanh threshold trunc zero __and__ __or__ __xor__"
    ),
    *_named("glu isfinite isinf isnan log_sigmoid log_softmax maximum minimum outer rsub softmax softplus softsign to type_as where"),
    # Statistics and sums over axes, and the normalizations that are made of them.
    *_named("all amax amin any argmax argmin count_nonzero linalg_vector_norm logsumexp max mean median min norm prod std std_mean sum"),
    *_named("batch_norm group_norm instance_norm layer_norm rms_norm var var_mean"),
    # Pooling: sums and maxima of windows without weights.
    *_named("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d"),
    *_named("max_pool1d max_pool2d max_pool3d max_pool2d_with_indices"),
    # Copies: shapes, padding, shuffling, windows laid out as columns, the nearest neighbour.
    *_and_in_place("copy detach index_add index_copy index_fill index_put masked_scatter scatter squeeze t transpose tril triu unsqueeze"),
    *_named(
        "alias as_strided broadcast_tensors broadcast_to cat channel_shuffle chunk clone col2im concat constant_pad_nd contiguous diag "
        "diagonal expand expand_as flatten flip gather hstack im2col index index_select lift_fresh mH mT masked_select movedim moveaxis "
        "narrow numpy_T pad permute pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d repeat repeat_interleave "
        "replication_pad1d replication_pad2d reshape reshape_as roll rot90 select slice split split_with_sizes stack swapaxes swapdims "
        "take take_along_dim tensor_split tile unbind unflatten unfold unfold_copy unsafe_chunk unsafe_split upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d view view_as vstack"
    ),
    # Order and choice.
    *_named("argsort bucketize msort nonzero one_hot searchsorted sort topk"),
    # New tensors, and the scalars of a trace.
    *_named(
        "arange empty empty_like eye full full_like linspace meshgrid new_empty new_full new_ones new_zeros ones ones_like rand rand_like "
        "randn randn_like scalar_tensor tensor zeros zeros_like "
        "Bool Float FloatImplicit Int IntImplicit ScalarImplicit dim item numel size"
    ),
)
