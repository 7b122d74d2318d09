"""The functions of `layers` and `models` rearranged for speed: the same outputs and gradients, to rounding.

1. IsO's gradient of the shared kernel is the mean over images of dL/dw_b, without the factors a_b (Eq. 15). A plain
   convolution of the same inputs and output gradients gives B times this mean: no image needs a kernel gradient of
   its own.
2. After a ReLU, and with tau <= 0, every pixel is principal: the attention is one known number, and one plain
   convolution serves the whole batch.
3. A convolution is a sum over its input channels, and attention belongs to an input channel. So a dense unit attends to
   each feature once, and convolves it once, for all the layers that read it.
4. On a CPU, images are the groups of one convolution only where they are small.

A layer `conv` is an `nn.Conv2d` or a `layers.IKMConv2d`, which alone has `attention`.
"""
import ctypes
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn.modules.utils import _ntuple

from ikmlib.config import require

GRADIENTS = ("iso", "go", "autograd")
# Pixels up to which a batch of images, each with its own kernel, is convolved faster in one call on a CPU
SMALL = 32 * 32


# --- one layer ------------------------------------------------------------------------------------------------------


def check(x: Tensor, weight: Tensor, attention: Tensor | float, gradient: str) -> None:
    """Raise ValueError for an unknown rule, or unless the attention is a number, (B, Ci, k, k) or (1, Ci, k, k)."""
    require("gradient rule", gradient, GRADIENTS)
    allowed = [(images, *weight.shape[1:]) for images in (x.shape[0], 1)]
    if isinstance(attention, Tensor) and tuple(attention.shape) not in allowed:
        raise ValueError(f"attention must be a number or of shape {' or '.join(map(str, allowed))}, not "
                         f"{tuple(attention.shape)}")


def _conv_each(x: Tensor, kernels: Tensor, stride, padding, dilation) -> Tensor:
    """Image b with its own kernel (Eq. 13): x (B, Ci, H, W), kernels (B, Co, Ci, k, k) -> (B, Co, H', W')."""
    one_call = x.is_cuda or torch.compiler.is_exporting()   # an exported program has to serve all sizes
    if not one_call and x.shape[-2] * x.shape[-1] > SMALL:
        return torch.cat([F.conv2d(image, kernel, None, stride, padding, dilation)
                          for image, kernel in zip(x.split(1), kernels, strict=True)])
    images = x.shape[0]
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=images)
    if x.is_contiguous():
        y = F.conv2d(x.flatten(0, 1)[None], kernels.flatten(0, 1), **options).squeeze(0).unflatten(0, (images, -1))
    else:   # channels last, and so is the one image of all channels
        image = x.permute(2, 3, 0, 1).flatten(2)[None].permute(0, 3, 1, 2)   # (1, B Ci, H, W)
        y = F.conv2d(image, kernels.flatten(0, 1), **options).squeeze(0)
        y = y.permute(1, 2, 0).unflatten(2, (images, -1)).permute(2, 3, 0, 1)
    return y if y.is_contiguous() else y.contiguous(memory_format=torch.channels_last)


class _IsoKernels(torch.autograd.Function):
    """a * w for all images, (Co, Ci, k, k), or for each of them, (B, Co, Ci, k, k), with IsO's gradient (Eq. 15)."""

    @staticmethod
    def forward(ctx, weight, attention, images):
        ctx.images = images
        return (weight * attention).to(weight.dtype)   # in the weight's memory format

    @staticmethod
    def backward(ctx, grad):
        return (grad.sum(0) if grad.dim() == 5 else grad) / ctx.images, None, None


class _IsoGradient(torch.autograd.Function):
    """Gives the shared kernel its gradient (Eq. 15), where y was computed from x with kernels that have none."""

    @staticmethod
    def forward(ctx, y, x, weight, attention, stride, padding, dilation):
        ctx.save_for_backward(x, weight, attention)
        ctx.geometry = stride, padding, dilation
        return y.detach()   # a view of an input could not be added to in place

    @staticmethod
    def backward(ctx, grad):
        x, weight, attention = ctx.saved_tensors
        if torch.is_grad_enabled():   # the gradients will be differentiated, so they come from kernels of each image
            y = _conv_each(x, _IsoKernels.apply(weight, attention[:, None], len(x)), *ctx.geometry)
            inputs = [tensor for tensor in (x, weight) if tensor.requires_grad]
            found = list(torch.autograd.grad(y, inputs, grad, create_graph=True))
            grad_weight = found.pop() if weight.requires_grad else None
            return None, found.pop() if found else None, grad_weight, None, None, None, None
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *ctx.geometry, False, [0, 0], 1, [False, True, False])
        return grad, None, grad_weight / len(x), None, None, None, None


def modulated_conv2d(x: Tensor, weight: Tensor, attention: Tensor | float, bias: Tensor | None = None, *, stride=1,
                     padding=0, dilation=1, gradient: str = "iso") -> Tensor:
    """`layers.modulated_conv2d`: convolution of image b with a_b * w; x (B, Ci, H, W) -> (B, Co, H', W').

    Where one kernel serves all images, it is one plain convolution. The batch may be empty.
    """
    check(x, weight, attention, gradient)
    geometry, images = [_ntuple(2)(n) for n in (stride, padding, dilation)], x.shape[0]
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):   # the custom backward is outside its reach
        x, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (x, weight))
    if isinstance(attention, Tensor) and (attention.shape[0] < 2 or gradient == "go"):
        attention = attention.mean(0) if attention.shape[0] else 1.0
    if not isinstance(attention, Tensor) or attention.dim() == 3:   # one kernel for all images
        if gradient == "iso":
            return F.conv2d(x, _IsoKernels.apply(weight, attention, max(images, 1)), bias, *geometry)
        return F.conv2d(x, (weight * attention).to(weight.dtype), bias, *geometry)
    kernels = (weight * attention[:, None]).to(weight.dtype)   # in its memory format
    if gradient == "iso":
        y = _IsoGradient.apply(_conv_each(x, kernels.detach(), *geometry), x, weight, attention, *geometry)
    else:
        y = _conv_each(x, kernels, *geometry)
    return y if bias is None else y + bias.reshape(-1, 1, 1).to(y.dtype)


def after_relu(conv: nn.Conv2d) -> dict[str, float]:
    """What to call a layer with, beside an input that comes from a ReLU: {"attention": a} where the ReLU makes it the
    same number for every image (where no value is NaN), {} otherwise and for a plain convolution.
    """
    if not hasattr(conv, "attention") or conv.strict or isinstance(conv.tau, str) or conv.tau > 0:
        return {}
    return {"attention": conv.constant_attention}


# --- a dense unit ---------------------------------------------------------------------------------------------------


def alike(convs: Sequence[nn.Conv2d]) -> bool:
    """Whether there are layers and all have the same kind and options, so that one convolution can serve them all.
    Layers with hooks (of pruning, of counters; not those of `attending`) have to be called themselves."""
    if any(c._forward_hooks or c._forward_pre_hooks.keys() - c._forward_pre_hooks_with_kwargs for c in convs):
        return False
    return len({(type(conv), *(getattr(conv, name) for name in getattr(conv, "options", ()))) for conv in convs}) == 1


def _kernels_by_input(convs: Sequence[nn.Conv2d]) -> list[Tensor]:
    """A dense unit's kernels by what they read, x or a feature: (outputs of all its readers, its channels, k, k)."""
    channels = [convs[0].in_channels, *(conv.out_channels for conv in convs)]
    parts = [conv.weight.split(channels[:i + 1], 1) for i, conv in enumerate(convs)]
    return [torch.cat([part[i] for part in parts[i:]]) for i in range(len(parts))]


def dense_unit(unit: nn.Module, x: Tensor) -> Tensor:
    """`models.DenseUnit` by inputs, for layers that are `alike`: x (B, C, H, W) -> same shape."""
    features, sums = [x], None   # sums: what the inputs so far give to the layers that are still to come
    layers = zip(unit.convs, unit.attentions, _kernels_by_input(unit.convs), strict=True)
    for i, (conv, attention, kernel) in enumerate(layers):
        if hasattr(conv, "attention"):
            spread = conv(features[i], weight=kernel, **(after_relu(conv) if i else {}))
        else:
            spread = F.conv2d(features[i], kernel, padding=conv.padding, dilation=conv.dilation)
        sums = spread if sums is None else spread.add_(sums)
        y, sums = sums.split([conv.out_channels, sums.shape[1] - conv.out_channels], 1)
        features.append(F.relu(attention(y)))
    return unit.transition(torch.cat(features, 1))


# --- launches and memory ---------------------------------------------------------------------------------------------


class Captured:
    """A function of one GPU tensor of fixed shape, replayed as a CUDA graph from its fourth call on.

    A small network's update is a thousand kernels of a few microseconds, and a CPU cannot launch them as fast as a
    GPU runs them; a graph is one launch. `function` must do all its work on the device, and what it changes (weights,
    optimizer) it must change in place. Where capture fails, a warning says so and calls stay plain.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function, self.calls, self.side = function, 0, torch.cuda.Stream()
        self.graph = self.input = self.output = None

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= 3:   # libraries choose their kernels and allocate; not on the main stream, before a capture
            main = torch.cuda.current_stream()
            self.side.wait_stream(main)
            with torch.cuda.stream(self.side):
                y = self.function(x)
            main.wait_stream(self.side)
            return y
        if self.calls == 4:
            self._capture(x)
        if self.graph is None:
            return self.function(x)
        self.input.copy_(x)
        self.graph.replay()
        return self.output.clone()

    def _capture(self, x: Tensor) -> None:
        graph, main, self.input = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), x.clone()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.output = self.function(self.input)
            self.graph = graph
        except RuntimeError as error:
            torch.cuda.set_stream(main)   # a capture that fails at its end leaves its own stream current
            warnings.warn(f"an update cannot be captured as a CUDA graph, training will be slower: {error}",
                          stacklevel=2)


def keep_memory() -> None:
    """Tell glibc, where it is used, to keep freed memory for the rest of this process. Otherwise it gives memory back
    and takes it again: a third of the time of scoring a photograph on one core."""
    with suppress(AttributeError):
        for option in (-1, -3):   # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)
