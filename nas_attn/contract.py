"""What every attention module must hold, as checks that can be run on any of them: one of the table, or a user's own.

Each check takes a `Case` and yields what is broken, one line each; a check that raises is broken by that. `run` does them all. Checks in
`SLOW` trace or export the module, which takes seconds, and need onnx and onnxruntime.

Shapes: x_BCHW with B images, C channels, H rows, W columns.
"""

import copy
import io
import itertools
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nas_attn.attention.gate import Gated
from nas_attn.blueprint import ModuleRecord
from nas_attn.errors import SpaceError
from nas_attn.formula import Value
from nas_attn.records import record
from nas_attn.registration import attention_class

MAPS = ((20, 20), (21, 13), (7, 7), (4, 4), (1, 1), (33, 80))
"""Square and ragged, as rectangular validation makes them; smaller than any window; larger than most."""

CLOSE = 1e-5
EXPORTED_CLOSE = 1e-3
OPSET = 18
EXPORT_SIZES = ((2, 24, 20), (1, 21, 13), (3, 40, 33))
"""Batch, height, width: the first is exported, all are run."""

Findings = Iterator[str]


@dataclass(frozen=True, slots=True)
class Case:
    """A mechanism with hyperparameters, for some number of channels."""

    name: str
    params: Mapping[str, Value] = field(default_factory=dict)
    channels: int = 32

    @property
    def record(self) -> ModuleRecord:
        """The mechanism's record."""
        return record(self.name)

    def build(self, *, gate: float | None = None, seed: int = 0) -> Gated:
        """The module in evaluation mode, its weights drawn from `seed`; `gate` opens every gate to that value."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: Gated = attention_class(self.record.target)(self.channels, *self.record.args(self.params))
        if gate is not None:
            nn.init.constant_(module.gate_bias, gate)
        return module.eval()

    def draw(self, batch: int, height: int, width: int, seed: int = 1) -> Tensor:
        """A map of standard normal numbers."""
        return torch.randn(batch, self.channels, height, width, generator=torch.Generator().manual_seed(seed))


Check = Callable[[Case], Findings]


def variants(entry: ModuleRecord, channels: int = 32) -> list[dict[str, Value]]:
    """The defaults, and every choice of each hyperparameter beside the others' defaults; what cannot be built is left out."""
    changed = [{h.name: choice} for h in entry.hyperparameters for choice in h.choices if choice != h.default]
    return [params for params in [{}, *changed] if not entry.violations(channels, params)]


def combinations(entry: ModuleRecord, channels: int = 32) -> list[dict[str, Value]]:
    """Every combination of a record's choices that can be built."""
    names = [hyper.name for hyper in entry.hyperparameters]
    products = itertools.product(*(hyper.choices for hyper in entry.hyperparameters))
    return [params for values in products if not entry.violations(channels, params := dict(zip(names, values, strict=True)))]


def run(case: Case, checks: Mapping[str, Check] | None = None) -> dict[str, list[str]]:
    """What is broken, by check; empty lists for what holds. All checks, slow ones too where their libraries are installed."""
    return {name: _findings(check, case) for name, check in (checks or all_checks()).items()}


def all_checks() -> dict[str, Check]:
    """Every check that can run here."""
    exportable = all(find_spec(library) for library in ("onnx", "onnxscript", "onnxruntime"))
    return {**CHECKS, **{name: check for name, check in SLOW.items() if exportable or not name.startswith("onnx")}}


def _findings(check: Check, case: Case) -> list[str]:
    try:
        return list(check(case))
    except Exception as error:
        return [f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"]


def shape(case: Case) -> Findings:
    """The same shape, type and device for any map and batch, in training and evaluation; finite and not zero."""
    for training, batch, (height, width) in itertools.product((False, True), (1, 3), MAPS):
        module, x = case.build().train(training), case.draw(batch, height, width)
        with torch.no_grad():
            branch = module.branch(x)
        where = f"{tuple(x.shape)} {'in training' if training else 'in evaluation'}"
        if (branch.shape, branch.dtype, branch.device) != (x.shape, x.dtype, x.device):
            yield f"{where} gives {tuple(branch.shape)}, {branch.dtype}"
        elif not branch.isfinite().all():
            yield f"{where} gives values that are not finite"
        elif not branch.abs().max() > 0:
            yield f"{where} gives zero everywhere at the start: behind a closed gate it would never learn"


def identity(case: Case) -> Findings:
    """With the gate closed the output is the input, bit for bit, in every type and under autocast."""
    module = case.build()
    for height, width in MAPS:
        x = case.draw(2, height, width)
        with torch.no_grad():
            if not _same(module(x), x):
                yield f"{tuple(x.shape)} is changed"
    x = case.draw(2, 13, 9)
    with torch.no_grad():
        if not _same(copy.deepcopy(module).train()(x), x):
            yield "changed in training"
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            if not _same(copy.deepcopy(module).to(dtype)(x.to(dtype)), x.to(dtype)):
                yield f"changed in {dtype}"
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                if not (_same(module(x), x) and _same(module(x.to(dtype)), x.to(dtype))):
                    yield f"changed under autocast to {dtype}"


def batch(case: Case) -> Findings:
    """In evaluation one image's output does not depend on its batch-mates, nor on its place among them."""
    for height, width in ((21, 13), (1, 1)):
        module, x = case.build(gate=1.0), case.draw(3, height, width)
        loud = torch.cat([x[:1] * 1000, x[1:]])
        with torch.no_grad():
            together, order = module(x), torch.tensor([2, 0, 1])
            alone = torch.cat([module(x[k : k + 1]) for k in range(3)])
            if not _close(together, alone):
                yield f"at {height} x {width} an image alone differs from the same one in a batch by {_gap(together, alone):.1e}"
            if not _close(module(x[order]), together[order]):
                yield f"at {height} x {width} the order of a batch changes the output"
            if not _close(module(loud)[1:], together[1:]):
                yield f"at {height} x {width} a loud batch-mate changes the output by {_gap(module(loud)[1:], together[1:]):.1e}"


def gradients(case: Case) -> Findings:
    """Finite gradients of every parameter and of the input under bf16 autocast, for activations of usual size and of a thousand."""
    for scale, (height, width) in itertools.product((5.0, 1000.0), ((21, 13), (1, 1))):
        module, x = case.build(gate=0.5).train(), (case.draw(2, height, width) * scale).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
        y.float().square().mean().backward()
        where = f"at {height} x {width}, magnitude {scale:g},"
        if y.dtype != x.dtype:
            yield f"{where} the output is {y.dtype}"
        for name, gradient in [("the input", x.grad), *((key, p.grad) for key, p in module.named_parameters())]:
            if gradient is None:
                yield f"{where} {name} gets no gradient"
            elif not gradient.isfinite().all():
                yield f"{where} the gradient of {name} is not finite"


def half(case: Case) -> Findings:
    """Half precision stays finite, whatever the size of the activations up to a thousand."""
    for scale, (height, width) in itertools.product((1.0, 30.0, 1000.0), ((21, 13), (1, 1))):
        x = (case.draw(2, height, width) * scale).half()
        with torch.no_grad():
            y = case.build(gate=1e-3).half()(x)
        if y.dtype != torch.float16:
            yield f"the output is {y.dtype}"
        elif not y.isfinite().all():
            yield f"not finite at {height} x {width}, magnitude {scale:g}"


def copies(case: Case) -> Findings:
    """Deep copies, pickles and reloaded state dicts compute the same; the memory format does not matter."""
    module, x, file = case.build(gate=0.3), case.draw(2, 9, 11), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    reloaded = case.build(seed=9)
    reloaded.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = module(x)
        twins = {"a deep copy": copy.deepcopy(module), "a pickle": pickle.loads(pickle.dumps(module)), "a state dict": reloaded}
        yield from (f"{name} computes something else" for name, twin in twins.items() if not torch.equal(twin(x), expected))
        if not _close(module(x.contiguous(memory_format=torch.channels_last)), expected):
            yield "channels_last changes the output"


def form(case: Case) -> Findings:
    """An open gate gives the published mechanism, with or without residual, as the record says."""
    module, x = case.build(gate=1.0), case.draw(2, 13, 9)
    with torch.no_grad():
        m = module.mechanism(x)
        expected = m if case.record.gate == "m(x) - x" else x + m
        if not _close(module(x), expected):
            yield f"an open gate differs from the recorded form {case.record.gate!r} by {_gap(module(x), expected):.1e}"


def learning(case: Case) -> Findings:
    """The gate learns at the first step, everything behind it from the second on."""
    module = case.build().train()
    x, target = case.draw(2, 20, 20), case.draw(2, 20, 20, seed=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in (1, 2):
        optimizer.zero_grad()
        functional.mse_loss(module(x), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        still = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        if step == 1 and "gate_bias" in still:
            yield "the gate gets no gradient at the first step"
        if step == 2:
            yield from (f"{key} gets no gradient at the second step" for key in still if key not in case.record.unseen)


def names(case: Case) -> Findings:
    """One gate, a bias of one dimension; no attribute that Ultralytics' parser sets itself."""
    module = case.build()
    gates = [key for key, _ in module.named_parameters() if "gate" in key]
    if gates != ["gate_bias"] or module.gate_bias.shape != (case.channels,):
        yield f"the only parameter with `gate` in its name must be gate_bias of one value a channel, but got {gates}"
    taken = {"i", "f", "type", "np"} & {*vars(module), *module._modules, *module._parameters, *module._buffers}
    if taken:
        yield f"the parser sets {sorted(taken)} itself; rename them"
    if module.replaces != (case.record.gate == "m(x) - x"):
        yield f"`replaces` is {module.replaces}, but the record's gate is {case.record.gate!r}"


def costs(case: Case) -> Findings:
    """Parameters and multiply-accumulates equal the record's closed forms, at the real size."""
    for channels in (case.channels, case.channels + 16):
        other = Case(case.name, case.params, channels)
        if case.record.violations(channels, case.params):
            continue
        module = other.build()
        count, expected = sum(p.numel() for p in module.parameters()), case.record.parameters(channels, case.params)
        if expected is not None and count != expected:
            yield f"{count} parameters at {channels} channels, but the formula says {expected}"
        for height, width in MAPS:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                module(other.draw(1, height, width))
            wanted = case.record.macs_count(channels, height, width, case.params)
            if wanted is not None and counter.get_total_flops() != 2 * wanted:
                yield f"{counter.get_total_flops() / 2:.0f} MACs at {channels} x {height} x {width}, but the formula says {wanted}"


def constructor(case: Case) -> Findings:
    """The constructor asks the record's predicate and has the record's defaults."""
    cls = attention_class(case.record.target)
    if not case.record.violations(case.channels, {}):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            bare = cls(case.channels).eval()
        x, known = case.draw(2, 9, 7), Case(case.name, {}, case.channels).build()
        with torch.no_grad():
            if not _same(bare.mechanism(x), known.mechanism(x)):
                yield "the constructor's defaults differ from the record's"
    problems = case.record.violations(0, case.params)
    try:
        cls(0, *case.record.args(case.params))
        yield "0 channels are built"
    except SpaceError as error:
        if str(error) not in " ".join(problems):
            yield f"0 channels are refused with {error}, but the record says {problems}"


def compiles(case: Case) -> Findings:
    """`torch.compile` captures the module as one graph, and computes the same."""
    module, x = case.build(gate=0.5), case.draw(2, 21, 13)
    torch.compiler.reset()
    with torch.no_grad(), _quiet():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        if not _close(compiled(x), module(x)):
            yield f"compiled it differs by {_gap(compiled(x), module(x)):.1e}"
    torch.compiler.reset()


def onnx_traced(case: Case) -> Findings:
    """The exporter that Ultralytics uses (a trace): with sizes left open as far as the record says, run by ONNX Runtime."""
    yield from _exported(case, dynamo=False)


def onnx_captured(case: Case) -> Findings:
    """torch's own exporter (a captured graph): with sizes left open as far as the record says, run by ONNX Runtime."""
    yield from _exported(case, dynamo=True)


CHECKS: Mapping[str, Check] = MappingProxyType(
    {check.__name__: check for check in (shape, identity, batch, gradients, half, copies, form, learning, names, costs, constructor)}
)
SLOW: Mapping[str, Check] = MappingProxyType({check.__name__: check for check in (compiles, onnx_traced, onnx_captured)})


def _exported(case: Case, *, dynamo: bool) -> Findings:
    module, dynamic = case.build(gate=0.5), case.record.onnx == "dynamic"
    with tempfile.TemporaryDirectory(prefix="nas-attn-") as folder:
        # With every size fixed there is one file a size, otherwise one for all of them.
        session: Any = None
        for number, size in enumerate(EXPORT_SIZES):
            x = case.draw(*size)
            if session is None or not dynamic:
                session = _session(module, x, Path(folder) / f"{number}.onnx", dynamo=dynamo, dynamic=dynamic)
            got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
            with torch.no_grad():
                expected = module(x)
            if got.shape != expected.shape or not torch.allclose(got, expected, rtol=EXPORTED_CLOSE, atol=EXPORTED_CLOSE):
                gap = _gap(got, expected) if got.shape == expected.shape else float("inf")
                yield f"at {size} ONNX Runtime differs from eager by {gap:.1e}"


def _session(module: nn.Module, x_BCHW: Tensor, file: Path, *, dynamo: bool, dynamic: bool) -> Any:
    import onnxruntime

    open_sizes: dict[str, Any] = {}
    if dynamic and dynamo:
        open_sizes = {"dynamic_shapes": (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)}
    elif dynamic:
        open_sizes = {"dynamic_axes": {axes: {0: "batch", 2: "height", 3: "width"} for axes in ("x", "y")}}
    with _quiet():
        torch.onnx.export(
            module,
            (x_BCHW,),
            file,
            dynamo=dynamo,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
            verbose=False,
            **open_sizes,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn about themselves; what is wrong with the module shows in its output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _same(a: Tensor, b: Tensor) -> bool:
    # torch.equal overlooks a type that changed
    return a.dtype == b.dtype and torch.equal(a, b)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=CLOSE, atol=CLOSE)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
