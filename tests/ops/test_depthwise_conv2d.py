"""What the generic tests of test_all.py cannot say of depthwise_conv2d and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from crest_ext import (
    _C,
    depthwise_conv2d,
    depthwise_conv2d_grad_weight,
    depthwise_conv2d_grad_x,
    depthwise_conv2d_grads,
    reference,
)

FORMATS = [torch.contiguous_format, torch.channels_last]
formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["NCHW", "channels_last"])
Pads = tuple[int, int, int, int]
few = st.integers(1, 3)
paddings = st.tuples(st.integers(0, 3), st.integers(0, 3)) | st.tuples(*[st.integers(0, 4)] * 4)


def close(got: Tensor, expected: Tensor, terms: int) -> None:
    """Within what float32 may round in sums of so many products of normal numbers."""
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=8e-6 * terms**0.5)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_shape(data: Any) -> None:
    """Odd sizes and kernels, both formats, all three ops and instruction sets."""
    draw, before = data.draw, _C.active_isa()
    n, c, multiplier = draw(few), draw(st.integers(1, 20)), draw(st.sampled_from([1, 1, 2]))
    kernel = draw(st.sampled_from([(3, 3), (5, 5)]) | st.tuples(few, st.integers(1, 6)))
    stride = draw(st.sampled_from([(1, 1), (2, 2)]) | st.tuples(few, few))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    padding = draw(paddings)
    pads = padding if len(padding) == 4 else (padding[0], *padding, padding[1])
    least = [(k - 1) * d + 1 - a - b for k, d, a, b in zip(kernel, dilation, pads[::2], pads[1::2], strict=True)]
    h, w = (draw(st.integers(max(size, 1), max(size, 1) + 40)) for size in least)
    where = stride, padding, dilation
    torch.manual_seed(0)
    x, weight = torch.randn(n, c, h, w), torch.randn(c * multiplier, 1, *kernel)
    memory_format = draw(st.sampled_from(FORMATS))
    x = x.contiguous(memory_format=memory_format)
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = reference.depthwise_conv2d(*wide, None, *where)
    grad = torch.randn(expected.shape)
    # Both at once: float64 takes most of the time.
    exact_x, exact_weight = torch.autograd.grad(expected, wide, grad.double())
    _C.set_active_isa(draw(st.sampled_from(_C.available_isas())))
    try:
        got = depthwise_conv2d(x, weight, None, *where)
        close(got, expected.detach(), kernel[0] * kernel[1])
        grad = grad.contiguous(memory_format=memory_format)
        close(depthwise_conv2d_grad_x(grad, weight, x.shape[1:], *where), exact_x, 50)
        grad_weight = depthwise_conv2d_grad_weight(grad, x, kernel, *where)
        close(grad_weight, exact_weight, n * grad.shape[2] * grad.shape[3])
        both = depthwise_conv2d_grads(grad, x, weight, *where)
        close(both[0], exact_x, 50)
        close(both[1], exact_weight, n * grad.shape[2] * grad.shape[3])
    finally:
        _C.set_active_isa(before)


def agree_between_nans(draw: Any, c: int, size: tuple[int, int], kernel: int, stride: int, pads: Pads) -> None:
    """All three ops on an image between two that are NaN, with any format, activation and instruction set."""
    before, memory_format = _C.active_isa(), draw(st.sampled_from(FORMATS))
    activation = {"none": lambda y: y, "relu": F.relu, "relu6": F.relu6}
    torch.manual_seed(0)
    x, weight, bias = torch.full((3, c, *size), float("nan")), torch.randn(c, 1, kernel, kernel), torch.randn(c)
    x[1] = torch.randn(c, *size)
    wide = F.pad(x[1:2].double(), (*pads[2:], *pads[:2])).requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(*wide, bias.double(), stride, groups=c)
    grad = torch.full((3, *expected.shape[1:]), float("nan"))
    grad[1] = torch.randn(expected.shape[1:])
    exact_x, exact_weight = torch.autograd.grad(expected, wide, grad[1:2].double())
    x, grad = (t.contiguous(memory_format=memory_format) for t in (x, grad))
    name = draw(st.sampled_from(sorted(activation)))
    _C.set_active_isa(draw(st.sampled_from(_C.available_isas())))
    try:
        y = depthwise_conv2d(x, weight, bias, stride, pads, 1, name)[1:2]
        close(y, activation[name](expected.detach()), kernel**2)
        grad_x = depthwise_conv2d_grad_x(grad, weight, x.shape[1:], stride, pads)[1:2]
        close(grad_x, exact_x[..., pads[0] : pads[0] + size[0], pads[2] : pads[2] + size[1]], kernel**2)
        grad_weight = depthwise_conv2d_grad_weight(grad[1:2], x[1:2], kernel, stride, pads)
        close(grad_weight, exact_weight, grad[0, 0].numel())
    finally:
        _C.set_active_isa(before)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_small_images_of_many_channels(data: Any) -> None:
    """Which are copied or turned first, some channels at a time."""
    draw = data.draw
    c, kernel, stride = draw(st.integers(8, 40) | st.integers(128, 150)), draw(st.sampled_from([3, 5])), draw(few)
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    h, w = (draw(st.integers(max(kernel - a - b, 1), 30)) for a, b in (pads[:2], pads[2:]))
    agree_between_nans(draw, c, (h, w), kernel, stride, pads)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_small_planes(data: Any) -> None:
    """Which have two rows in a register, or one of the gradient; with TensorFlow's padding, or torch's."""
    draw = data.draw
    c, size, kernel, stride = (draw(st.sampled_from(s)) for s in ((1, 3, 20), range(2, 18), (3, 5), (1, 2)))
    same = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    pads = draw(st.sampled_from([(same // 2, same - same // 2) * 2, (kernel // 2,) * 4]))
    agree_between_nans(draw, c, (size, size), kernel, stride, pads)


@formats
@pytest.mark.parametrize("kernel", [3, 4])
def test_keeps_the_memory_format(kernel: int, memory_format: torch.memory_format, isa: str) -> None:
    x, weight = torch.randn(2, 6, 9, 10).contiguous(memory_format=memory_format), torch.randn(6, 1, kernel, kernel)
    y = depthwise_conv2d(x, weight, padding=1)
    assert y.is_contiguous(memory_format=memory_format)
    assert depthwise_conv2d_grad_x(y, weight, x.shape[1:], 1, 1).is_contiguous(memory_format=memory_format)
    assert depthwise_conv2d_grads(y, x, weight, 1, 1)[0].is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1, groups=6), rtol=1e-4, atol=1e-5)
    strided = torch.stack([x, x], -1)[..., 0]
    torch.testing.assert_close(depthwise_conv2d(strided, weight, padding=1), y, rtol=1e-4, atol=1e-5)


@formats
def test_reads_nothing_beyond_its_image(memory_format: torch.memory_format, isa: str) -> None:
    """Neighbours that are NaN: other images, and in rows that a register reaches over."""
    weight = torch.randn(5, 1, 3, 3)
    x = torch.full((3, 5, 6, 11), float("nan")).contiguous(memory_format=memory_format)
    x[1] = torch.randn(5, 6, 11)
    for stride in (1, 2):
        y = depthwise_conv2d(x, weight, None, stride, 1)
        assert y[1].isfinite().all()
        assert y[0].isnan().all()
        grad_x = depthwise_conv2d_grad_x(y, weight, x.shape[1:], stride, 1)
        assert grad_x[1].isfinite().all()
        assert depthwise_conv2d_grad_weight(y[1:2], x[1:2], 3, stride, 1).isfinite().all()


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_of_tensorflow(size: int, stride: int, isa: str) -> None:
    """Even sizes by a stride of 2 are padded below and at the right alone."""
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    before, after = total // 2, total - total // 2
    x, weight = torch.randn(1, 3, size, size), torch.randn(3, 1, 3, 3)
    y = depthwise_conv2d(x, weight, None, stride, (before, after, before, after))
    assert y.shape[2:] == (-(-size // stride),) * 2
    expected = F.conv2d(F.pad(x, (before, after, before, after)), weight, None, stride, groups=3)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@formats
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_activations(activation: str, memory_format: torch.memory_format, isa: str) -> None:
    """Values and all gradients are those of torch's own function, at its kinks as well."""
    x = (torch.randn(2, 4, 8, 9) * 3).round().contiguous(memory_format=memory_format)
    weight, bias = torch.randn(4, 1, 3, 3).round(), torch.tensor([0.0, 1.0, 6.0, -1.0])
    ours, theirs = ([t.detach().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    y = depthwise_conv2d(*ours, 1, 1, 1, activation)
    z = F.conv2d(*theirs, padding=1, groups=4)
    expected = {"none": lambda z: z, "relu": F.relu, "relu6": F.relu6}[activation](z)
    assert torch.equal(y, expected)
    assert (z == 0).any()
    grad = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, ours, grad), torch.autograd.grad(expected, theirs, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        x[0, 0, 0, 0] = float("nan")
    assert depthwise_conv2d(x, weight, bias, 1, 1, 1, activation)[0, 0, :2, :2].isnan().all()


@formats
def test_second_derivatives(memory_format: torch.memory_format) -> None:
    x, weight = torch.randn(1, 2, 5, 6, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format)
    values = [t.requires_grad_() for t in (x, weight, torch.randn(4, dtype=torch.float64))]
    assert torch.autograd.gradgradcheck(lambda *v: depthwise_conv2d(*v, 2, (0, 1, 1, 2), 1, "relu"), values)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (0, 3, 6, 7)])
def test_gradients_with_defaults_alone(shape: tuple[int, ...]) -> None:
    """Of arguments that are left at their defaults torch says nothing to a gradient."""
    x, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (3, 1, 3, 3)))
    assert torch.autograd.gradcheck(depthwise_conv2d, (x, weight))
    assert torch.autograd.gradgradcheck(depthwise_conv2d, (x, weight))
    grad = torch.randn(depthwise_conv2d(x, weight).shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, w: depthwise_conv2d_grad_x(g, w, x.shape[1:]), (grad, weight))
    assert torch.autograd.gradcheck(lambda g, x: depthwise_conv2d_grad_weight(g, x, 3), (grad, x))
    assert torch.autograd.gradcheck(depthwise_conv2d_grads, (grad, x, weight))


@formats
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(5, 130, 60, 33), (1, 70, 101, 64), (70, 33, 11, 15)])
def test_both_gradients_by_parts(shape: tuple[int, ...], stride: int, memory_format: torch.memory_format) -> None:
    """Of channels, rows and images that do not divide the whole."""
    x, weight = torch.randn(shape).contiguous(memory_format=memory_format), torch.randn(shape[1], 1, 3, 3)
    grad = torch.randn_like(depthwise_conv2d(x, weight, None, stride, 1))
    wide = x.double().requires_grad_(), weight.double().requires_grad_()
    y = F.conv2d(*wide, None, stride, 1, 1, shape[1])
    expected = torch.autograd.grad(y, wide, grad.double())
    for got, exact, terms in zip(depthwise_conv2d_grads(grad, x, weight, stride, 1), expected, (9, 9900), strict=True):
        close(got, exact, terms)


def test_refuses_forward_differentiation() -> None:
    """Which the op does not have: torch would go on with a tangent of zeros."""
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3)
    y = depthwise_conv2d(x, weight, None, 1, 1)
    with pytest.raises(ValueError, match=r"^depthwise_conv2d: arguments must not have tangents"):
        torch.func.jvp(lambda w: depthwise_conv2d(x, w, None, 1, 1), (weight,), (weight,))
    with forward_ad.dual_level():
        assert torch.equal(depthwise_conv2d(x, weight, None, 1, 1), y)
        with pytest.raises(ValueError, match=r"^depthwise_conv2d: arguments must not have tangents"):
            depthwise_conv2d(forward_ad.make_dual(x, x), weight, None, 1, 1)


@formats
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_results(threads: int, memory_format: torch.memory_format) -> None:
    x, weight = torch.randn(3, 200, 29, 29).contiguous(memory_format=memory_format), torch.randn(200, 1, 3, 3)

    def run() -> list[Tensor]:
        y = depthwise_conv2d(x, weight, None, 2, 1)
        grads = depthwise_conv2d_grad_x(y, weight, x.shape[1:], 2, 1), depthwise_conv2d_grad_weight(y, x, 3, 2, 1)
        return [y, *grads, *depthwise_conv2d_grads(y, x, weight, 2, 1)]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = run()
    try:
        torch.set_num_threads(threads)
        assert all(map(torch.equal, run(), expected))
    finally:
        torch.set_num_threads(before)


def test_autocast() -> None:
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(3, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, padding=1)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@formats
def test_exports_with_a_dynamic_batch(memory_format: torch.memory_format) -> None:
    weight = torch.randn(5, 1, 3, 3)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return depthwise_conv2d(x, weight, None, 2, 1, 1, "relu")

    x = torch.randn(4, 5, 9, 9).contiguous(memory_format=memory_format)
    program = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(x[:3]), Layer()(x[:3]))


@pytest.mark.parametrize("trained", [False, True])
def test_compiles_once_for_images_of_all_sizes(trained: bool) -> None:
    weight = torch.randn(4, 1, 3, 3, requires_grad=trained)

    def layer(x: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, None, 2, 1, 1, "relu").sum()

    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend=backend)
    for size in range(8, 12):
        x = torch.randn(1, 4, size, size + 1, requires_grad=True)
        got, expected = (torch.autograd.grad(f(x), x)[0] for f in (compiled, layer))
        torch.testing.assert_close(got, expected)
    assert backend.frame_count == 1


x, weight = torch.zeros(2, 4, 5, 6), torch.zeros(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((x[0], weight), r"x must have 4 dimensions, got \(4, 5, 6\)"),
        ((x, weight[0]), r"weight must have 4 dimensions, got \(1, 3, 3\)"),
        ((x, weight.expand(4, 2, 3, 3)), r"weight must have shape \(m, 1, kh, kw\), got \(4, 2, 3, 3\)"),
        ((x, weight[:, :, :0]), r"weight must not be empty, got \(4, 1, 0, 3\)"),
        ((x[:, :0], weight), r"x must have channels, got \(2, 0, 5, 6\)"),
        ((x, weight[:3]), r"weight must have a multiple of 4 channels, those of x, got \(3, 1, 3, 3\)"),
        ((x, weight[:0]), r"weight must have a multiple of 4 channels, those of x, got \(0, 1, 3, 3\)"),
        ((x, weight, torch.zeros(3)), r"bias must have shape \(4,\), got \(3,\)"),
        ((x, weight, None, (0, 1)), r"stride must be at least 1, got \(0, 1\)"),
        ((x, weight, None, -1), r"stride must be at least 1, got \(-1, -1\)"),
        ((x, weight, None, 1, (0, -1)), r"padding must be at least 0, got \(0, -1\)"),
        ((x, weight, None, 1, (1, 2**40)), r"padding must be at most 2147483647, got \(1, 1099511627776\)"),
        (
            (x, weight, None, 2**62),
            r"stride must be at most 2147483647, got \(4611686018427387904, 4611686018427387904\)",
        ),
        ((x, weight, None, 1, (1, 1, 1)), r"padding must be 2 or 4 ints, got \(1, 1, 1\)"),
        ((x, weight, None, 1, 0, 0), r"dilation must be at least 1, got \(0, 0\)"),
        (
            (x, weight, None, 1, 0, (3, 1)),
            r"weight must fit in the padded image, \(5, 6\), got a kernel that spans \(7, 3\)",
        ),
        (
            (x[:, :, :0], weight, None, 1, 1),
            r"weight must fit in the padded image, \(2, 8\), got a kernel that spans \(3, 3\)",
        ),
        ((x.int(), weight), "x must be float32, float64, bfloat16 or float16, got int32"),
        ((x, weight.double()), "weight must have the dtype of x, float32, got float64"),
        ((x, weight, torch.zeros(4).half()), "bias must have the dtype of x, float32, got float16"),
        ((x, weight, None, 1, 0, 1, "gelu"), "activation must be none, relu or relu6, got gelu"),
    ],
)
def test_errors(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^depthwise_conv2d: {message}$"):
        depthwise_conv2d(*args)


def test_padding_larger_than_the_image() -> None:
    """Is no error: what sees nothing but zeros is the bias."""
    y = depthwise_conv2d(x + 1, weight + 1, torch.arange(4.0), 1, 9)
    assert y.shape == (2, 4, 21, 22)
    assert torch.equal(y[0, :, 0, 0], torch.arange(4.0))
    torch.testing.assert_close(y, F.conv2d(x + 1, weight + 1, torch.arange(4.0), padding=9, groups=4))


grad = torch.zeros(2, 4, 3, 4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((grad[0], weight, (4, 5, 6)), r"grad must have 4 dimensions, got \(4, 3, 4\)"),
        ((grad, weight[0], (4, 5, 6)), r"weight must have 4 dimensions, got \(1, 3, 3\)"),
        ((grad, weight, (0, 5, 6)), r"size must be that of an image, got \(0, 5, 6\)"),
        ((grad, weight, (4, -5, 6)), r"size must be that of an image, got \(4, -5, 6\)"),
        ((grad, weight, (3, 5, 6)), r"weight must have a multiple of 3 channels, those of x, got \(4, 1, 3, 3\)"),
        ((grad, weight, (4, 6, 6)), r"grad must have shape \(n, 4, 4, 4\), got \(2, 4, 3, 4\)"),
        ((grad, weight, (4, 5, 6), 1, (1,) * 5), r"padding must be 2 or 4 ints, got \(1, 1, 1, 1, 1\)"),
        ((grad.int(), weight, (4, 5, 6)), "grad must be float32, float64, bfloat16 or float16, got int32"),
        ((grad, weight.half(), (4, 5, 6)), "weight must have the dtype of grad, float32, got float16"),
    ],
)
def test_errors_of_grad_x(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^depthwise_conv2d_grad_x: {message}$"):
        depthwise_conv2d_grad_x(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((grad[0], x, 3), r"grad must have 4 dimensions, got \(4, 3, 4\)"),
        ((grad, x[0], 3), r"x must have 4 dimensions, got \(4, 5, 6\)"),
        ((grad, x[:, :0], 3), r"x must have channels, got \(2, 0, 5, 6\)"),
        ((grad[:, :3], x, 3), r"grad must have a multiple of 4 channels, those of x, got \(2, 3, 3, 4\)"),
        ((grad, x, 0), r"kernel_size must be 2 ints of at least 1, got \(0, 0\)"),
        ((grad, x, 2), r"grad must have shape \(2, 4, 4, 5\), got \(2, 4, 3, 4\)"),
        ((grad, x, 3, 0), r"stride must be at least 1, got \(0, 0\)"),
        ((grad.int(), x, 3), "grad must be float32, float64, bfloat16 or float16, got int32"),
        ((grad, x.half(), 3), "x must have the dtype of grad, float32, got float16"),
    ],
)
def test_errors_of_grad_weight(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^depthwise_conv2d_grad_weight: {message}$"):
        depthwise_conv2d_grad_weight(*args)
