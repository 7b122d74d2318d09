"""The paper's equations: contextual attention, image-specific kernel modulation, the attentions it is compared with.

Letters, used everywhere: B images in the batch, Ci/Co input/output channels, k kernel size, H/W height and width.
Attention of image b is a_b (Ci, k, k); the shared kernel is w (Co, Ci, k, k); the modulated kernel is w_b = a_b * w.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _ntuple

GRADIENTS = ("iso", "go", "autograd")
TRANSFORMS = ("sigmoid", "softmax", "residual")
ATTENTIONS = ("none", "ca", "sa", "ikm")
CONTEXTS = ("own", "constant", "shuffled")


def _require(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(map(str, allowed))}")


# --- contextual attention generation (CAG), Eqs. 9-11 ---------------------------------------------------------------


def pooled_mask(x: Tensor, kernel_size: int | tuple[int, ...], *, tau: float | str = 0.0,
                strict: bool = False) -> Tensor:
    """Share of principal pixels in each of the k x k cells of every channel: CAG's steps 1 and 2 (Eq. 10).

    x (B, Ci, H, W) or, for signals, (B, Ci, L) -> (B, Ci, k, k) or (B, Ci, k), values in [0, 1], no gradient.
    A pixel is principal where x >= tau, or x > tau if `strict`; tau is a number, or "mean" or "median": that of each
    channel of each image. A channel's cells depend on that channel alone, so a concatenation's are its parts'
    concatenated.
    """
    pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d}.get(x.dim())
    if pool is None:
        raise ValueError(f"contextual attention takes (B, C, L) or (B, C, H, W), not {tuple(x.shape)}")
    x = x.detach()
    if isinstance(tau, str):
        _require("tau", tau, ("mean", "median"))
        tau = pool(x, 1) if tau == "mean" else x.flatten(2).median(-1).values.reshape(pool(x, 1).shape)
    compare = torch.gt if strict else torch.ge
    if torch.compiler.is_compiling():   # fuses the cast, and does not take out= for channels last
        mask = compare(x, tau).to(x.dtype)
    else:   # 0/1 in x's type at once: ten times cheaper than a cast on a CPU
        mask = compare(x, tau, out=torch.empty_like(x))
    return pool(mask, kernel_size)


def proportion_transform(pooled: Tensor, transform: str = "sigmoid") -> Tensor:
    """Attention from pooled masks: CAG's step 3 (Eq. 11). (B, Ci, k, k) -> (B, Ci, k, k); n = k*k cells.

    "sigmoid"   a = 1 + sigmoid(n softmax(p) - 1), the released form: a = 1.5 where all cells are alike
    "softmax"   a = n softmax(p), the values Fig. 2 shows: around 1
    "residual"  a = 1 + softmax(p) - 1/n, an older form: within 1 +- 1/n
    """
    _require("transform", transform, TRANSFORMS)
    cells = pooled.flatten(2).transpose(1, 2)   # (B, n, Ci): along the last axis, of nine, softmax is slow on a CPU
    n = cells.shape[1]
    share = torch.softmax(cells, dim=1)
    if transform == "sigmoid":
        attention = 1 + torch.sigmoid(n * share - 1)
    elif transform == "softmax":
        attention = n * share
    else:
        attention = 1 + share - 1 / n
    return attention.transpose(1, 2).unflatten(2, pooled.shape[2:])


def attention_range(cells: int = 9, transform: str = "sigmoid") -> tuple[float, float]:
    """Least and largest value that the attention can take with so many cells; the defaults are the released form.

    A cell's softmax share grows with its own pooled mask and falls with the others', and masks lie in 0..1: the
    extremes are an empty cell among full ones, and a full cell among empty ones.
    """
    one = torch.eye(cells, dtype=torch.float64)[:1, None]
    return tuple(proportion_transform(pooled, transform)[0, 0, 0].item() for pooled in (1 - one, one))


def contextual_attention(x: Tensor, kernel_size: int | tuple[int, ...], *, tau: float | str = 0.0, strict: bool = False,
                         transform: str = "sigmoid") -> Tensor:
    """Attention of each image's kernels, a_b = CAG(x_b) (Eqs. 9-11).

    x (B, Ci, H, W) or (B, Ci, L) -> (B, Ci, k, k) or (B, Ci, k). No parameters, and no gradient flows through it: the
    threshold is hard. Defaults are the released form. Raises ValueError for an unknown `transform` or `tau`.
    """
    return proportion_transform(pooled_mask(x, kernel_size, tau=tau, strict=strict), transform)


# --- image-specific kernel modulation (IKM), Eqs. 7-8 and 12-15 -----------------------------------------------------


# Pixels up to which a batch of images, each with its own kernel, is convolved faster in one call on a CPU
SMALL = 32 * 32


def _in_one_call(x: Tensor) -> bool:
    """Whether one grouped convolution, the paper's way, serves a batch better than a convolution an image."""
    return len(x) > 1 and (x.is_cuda or x.shape[-2] * x.shape[-1] <= SMALL)


def _as_groups(x: Tensor) -> Tensor:
    """The images of a batch as groups of channels of one, (B, C, H, W) -> (1, B C, H, W), in x's memory format."""
    if x.is_cuda or x.is_contiguous():
        return x.flatten(0, 1)[None]
    return x.permute(2, 3, 0, 1).flatten(2)[None].permute(0, 3, 1, 2)


def _as_images(y: Tensor, images: int) -> Tensor:
    """`_as_groups` undone."""
    y = y[0].unflatten(0, (images, -1))
    return y if y.is_cuda or y.is_contiguous() else y.contiguous(memory_format=torch.channels_last)


def _conv_each(x: Tensor, kernels: Tensor, stride, padding, dilation) -> Tensor:
    """Image b with its own kernel: x (B, Ci, H, W), kernels (B, Co, Ci, k, k) -> (B, Co, H', W') (Eq. 13)."""
    if _in_one_call(x):
        y = F.conv2d(_as_groups(x), kernels.flatten(0, 1), None, stride, padding, dilation, groups=len(x))
        return _as_images(y, len(x))
    return torch.cat([F.conv2d(x[b:b + 1], kernels[b], None, stride, padding, dilation) for b in range(len(x))])


def _conv_each_input_gradient(grad: Tensor, x: Tensor, kernels: Tensor, stride, padding, dilation) -> Tensor:
    """dL/dx of `_conv_each`."""
    def one(grad, x, kernel, groups):
        return torch.ops.aten.convolution_backward(
            grad, x, kernel, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False])[0]

    if _in_one_call(x):
        return _as_images(one(_as_groups(grad), _as_groups(x), kernels.flatten(0, 1), len(x)), len(x))
    return torch.cat([one(grad[b:b + 1], x[b:b + 1], kernels[b], 1) for b in range(len(x))])


def _modulate(weight: Tensor, attention: Tensor) -> Tensor:
    """w_b = a_b * w for every image (Eq. 12): (Co, Ci, k, k), (B, Ci, k, k) -> (B, Co, Ci, k, k)."""
    return (weight * attention[:, None]).to(weight.dtype)   # the weight first: its memory format is the kernels'


class _IsoConv2d(torch.autograd.Function):
    """Algorithm 1 (IsO): each image is convolved with its own kernel; the shared kernel's gradient is their mean.

    The mean over images of dL/dw_b, without the chain-rule factor a_b, is what a plain convolution of the same inputs
    and output gradients gives, divided by B: the weight gradient needs no per-image kernels at all.
    """

    @staticmethod
    def forward(ctx, x, weight, attention, stride, padding, dilation):
        ctx.save_for_backward(x, weight, attention)
        ctx.geometry = stride, padding, dilation
        return _conv_each(x, _modulate(weight, attention), *ctx.geometry).detach()   # a view cannot be added to

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, attention = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _conv_each_input_gradient(grad, x, _modulate(weight, attention), *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.ops.aten.convolution_backward(
                grad, x, weight, None, *ctx.geometry, False, [0, 0], 1, [False, True, False])[1] / len(x)
        return grad_x, grad_weight, None, None, None, None


class _IsoKernel(torch.autograd.Function):
    """IsO where all B images have the same attention: a * w, and dL/dw = dL/d(a * w) / B, without the factor a."""

    @staticmethod
    def forward(ctx, weight, attention, images):
        ctx.images = images
        return weight * attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad / ctx.images, None, None


def common_kernel(weight: Tensor, attention: Tensor | float, images: int, gradient: str) -> Tensor:
    """a * w where all images of a batch have the same attention, (Ci, k, k) or a number; w learns by the rule."""
    if gradient == "iso" and torch.is_grad_enabled():
        return _IsoKernel.apply(weight, attention, max(images, 1))
    return weight * attention


def modulated_conv2d(x: Tensor, weight: Tensor, attention: Tensor | float, bias: Tensor | None = None, *, stride=1,
                     padding=0, dilation=1, gradient: str = "iso") -> Tensor:
    """Convolution of image b with a_b * w (Eq. 7). x (B, Ci, H, W), weight (Co, Ci, k, k).

    attention (B, Ci, k, k), or a number, the same for all images: then one plain convolution serves them all, as it
    does for a batch of one.

    `gradient` chooses how the shared kernel w learns:
    "iso"       dL/dw = mean_b dL/dw_b, the paper's Algorithm 1
    "autograd"  dL/dw = sum_b a_b * dL/dw_b, the exact derivative
    "go"        general optimisation (footnote 1): the attention is averaged over the batch, one kernel for all images
    The bias, if any, is never modulated and has its exact gradient. Raises ValueError for an unknown rule.
    """
    _require("gradient rule", gradient, GRADIENTS)
    pair = _ntuple(2)
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    if isinstance(attention, Tensor):
        if not len(x):
            attention = 1.0
        elif len(x) == 1 or gradient == "go":
            attention = attention[0] if len(x) == 1 else attention.mean(0)
    if not isinstance(attention, Tensor) or attention.dim() == 3:   # one kernel for all images
        return F.conv2d(x, common_kernel(weight, attention, len(x), gradient), bias, stride, padding, dilation)
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device):   # the custom backward is outside its reach
        x, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (x, weight))
    if gradient == "iso" and torch.is_grad_enabled():
        y = _IsoConv2d.apply(x, weight, attention, stride, padding, dilation)
    else:
        y = _conv_each(x, _modulate(weight, attention), stride, padding, dilation)
    return y if bias is None else y + bias.reshape(-1, 1, 1).to(y.dtype)


class IKMConv2d(nn.Conv2d):
    """Drop-in for `nn.Conv2d` whose kernel is modulated for each image by that image's own context (Eqs. 7-15).

    Same parameters and `state_dict` keys, input (B, Ci, H, W) or (Ci, H, W) of any size, any k and dilation; nothing is
    mutated in `forward`. `gradient`: see `modulated_conv2d`; `tau`, `strict`, `transform`: see `contextual_attention`.
    `context` is for controls: "own" is IKM; "constant" the attention of an image without context; "shuffled" that of
    the batch's next image (of an image alone: its own).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], *,
                 stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, bias: bool = True, gradient: str = "iso",
                 tau: float | str = 0.0, strict: bool = False, transform: str = "sigmoid", context: str = "own"):
        _require("gradient rule", gradient, GRADIENTS)
        _require("transform", transform, TRANSFORMS)
        _require("context", context, CONTEXTS)
        if isinstance(padding, str):
            raise ValueError(f"padding must be a number or a pair of numbers, not {padding!r}")
        if isinstance(tau, str):
            _require("tau", tau, ("mean", "median"))
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation,
                         bias=bias)
        self.gradient, self.tau, self.strict, self.transform = gradient, tau, strict, transform
        self.context = context

    def known_attention(self, *, after_relu: bool) -> float | None:
        """The attention where it is the same number for every image; None: it takes a look.

        `after_relu`: of x >= 0 by construction. With a number tau <= 0, not strict, every pixel is then principal. (A
        NaN is not: where there is one, the output is NaN either way, but what the NaN's channel adds elsewhere in its
        image is not quite the same.)
        """
        all_principal = after_relu and not self.strict and not isinstance(self.tau, str) and self.tau <= 0
        if all_principal or self.context == "constant":
            return 1.5 if self.transform == "sigmoid" else 1.0   # all cells are alike: n softmax(p) = 1
        return None

    def attend(self, x: Tensor, *, after_relu: bool = False) -> Tensor | float:
        """Attention of x, (B, C, k, k), or `known_attention`; x may be a part of this layer's input channels."""
        known = IKMConv2d.known_attention(self, after_relu=after_relu)   # also where `attending` hides it
        if known is not None:
            return known
        own = contextual_attention(x, self.kernel_size, tau=self.tau, strict=self.strict, transform=self.transform)
        return own.roll(-1, 0) if self.context == "shuffled" else own

    def forward(self, x: Tensor, *, after_relu: bool = False) -> Tensor:
        """x (B, Ci, H, W) -> (B, Co, H', W'). `after_relu`: see `known_attention`."""
        if x.dim() == 3:
            return self.forward(x[None], after_relu=after_relu)[0]
        return modulated_conv2d(x, self.weight, self.attend(x, after_relu=after_relu), self.bias, stride=self.stride,
                                padding=self.padding, dilation=self.dilation, gradient=self.gradient)

    def extra_repr(self) -> str:
        return (f"{super().extra_repr()}, gradient={self.gradient}, tau={self.tau}, strict={self.strict}, "
                f"{self.transform}, context={self.context}")


@contextmanager
def attending(model: nn.Module, attend: Callable[[IKMConv2d, Callable[[], Tensor | float]], Tensor | float],
              ) -> Iterator[None]:
    """Within the block every IKM layer takes its attention from `attend(layer, own)`; `own()` is the layer's own.

    To watch attention, or to replace it.
    """
    layers = [module for module in model.modules() if isinstance(module, IKMConv2d)]
    before = [dict(vars(layer)) for layer in layers]
    for layer in layers:
        def attended(x, layer=layer, method=layer.attend, **known):
            return attend(layer, lambda: method(x, **known))

        layer.attend, layer.known_attention = attended, lambda after_relu: None   # every layer is asked
    try:
        yield
    finally:
        for layer, outer in zip(layers, before, strict=True):   # another block may be around this one
            for name in ("attend", "known_attention"):
                delattr(layer, name)
                if name in outer:
                    setattr(layer, name, outer[name])


# --- the attentions of Table III ------------------------------------------------------------------------------------


class ChannelAttention(nn.Module):
    """Channel attention of SENet/RCAN (Eqs. 3-4): y = x * sigmoid(fc(relu(fc(mean(x))))), c -> c/4 -> c, biases."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, H, W) -> same shape."""
        scale = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))   # (B, c, 1, 1)
        return x * torch.sigmoid(scale)


class SpatialAttention(nn.Module):
    """Spatial attention of CSFM: y = x * sigmoid(conv1x1(relu(conv1x1(x)))), c -> c/4 -> 1, with biases.

    Table III's "+SA" parameters are these; the 7x7 form of the paper's Eq. 6 (CBAM) does not give them.
    """

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, H, W) -> same shape."""
        scale = self.excite(F.relu(self.squeeze(x)))   # (B, 1, H, W)
        return x * torch.sigmoid(scale)
