"""The paper's equations: contextual attention, image-specific kernel modulation, the attentions it is compared with.

Letters, used everywhere: B images in the batch, Ci/Co input/output channels, k kernel size, H/W height and width.
The attention of image b is a_b (Ci, k, k), the shared kernel is w (Co, Ci, k, k), the modulated kernel w_b = a_b * w.

Two pure functions make an IKM layer: `contextual_attention` computes a_b from an image, `modulated_conv2d` convolves
the image with a_b * w. `IKMConv2d` calls one after the other. It has one switch: where its `fast` is True (the default)
it calls the quicker `fast.modulated_conv2d`, the same to rounding.
"""
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikmlib import fast
from ikmlib.config import require
from ikmlib.fast import GRADIENTS

TRANSFORMS = ("sigmoid", "softmax", "residual")
ATTENTIONS = ("none", "ca", "sa", "ikm")
CONTEXTS = ("own", "constant", "shuffled")
THRESHOLDS = ("mean", "median")   # what tau may be beside a number
OPTIONS = ("gradient", "tau", "strict", "transform", "context")   # of an IKM layer


def check_options(*, gradient: str, tau: float | str, strict: bool, transform: str, context: str) -> None:
    """Raise ValueError for an option that no IKM layer has."""
    require("gradient rule", gradient, GRADIENTS)
    require("transform", transform, TRANSFORMS)
    require("context", context, CONTEXTS)
    if tau not in THRESHOLDS and not (type(tau) in (int, float) and math.isfinite(tau)):
        raise ValueError(f"unknown tau {tau!r}; allowed: a finite number, {', '.join(THRESHOLDS)}")
    if not isinstance(strict, bool):
        raise ValueError(f"unknown strict {strict!r}; allowed: False, True")


# --- contextual attention generation (CAG), Eqs. 9-11 ---------------------------------------------------------------


def pooled_mask(x: Tensor, kernel_size: int | tuple[int, ...], *, tau: float | str = 0.0,
                strict: bool = False) -> Tensor:
    """Share of principal pixels in each of the k x k cells of every channel: CAG's steps 1 and 2 (Eq. 10).

    x (B, Ci, H, W) or, for signals, (B, Ci, L) -> (B, Ci, k, k) or (B, Ci, k), values in [0, 1], without gradient.
    A pixel is principal where x >= tau or, if `strict`, where x > tau. tau is a number, or "mean" or "median": that of
    each channel of each image. Raises ValueError for another tau or another number of dimensions.
    """
    pool = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d}.get(x.dim())
    if pool is None:
        raise ValueError(f"contextual attention takes (B, C, L) or (B, C, H, W), not {tuple(x.shape)}")
    x = x.detach()
    if isinstance(tau, str):
        require("tau", tau, THRESHOLDS)
        tau = pool(x, 1) if tau == "mean" else x.flatten(2).median(-1).values.reshape(pool(x, 1).shape)
    # Pooling of channels-last input on CUDA uses a single block of threads an image
    mask = x.clone(memory_format=torch.contiguous_format if x.is_cuda else torch.preserve_format)
    mask = mask.gt_(tau) if strict else mask.ge_(tau)   # in place: 0 and 1 in x's type, faster than from booleans
    return pool(mask, kernel_size)


def proportion_transform(pooled: Tensor, transform: str = "sigmoid") -> Tensor:
    """Attention from pooled masks: CAG's step 3 (Eq. 11). (B, Ci, k, k) -> (B, Ci, k, k); n = k*k cells.

    "sigmoid"   a = 1 + sigmoid(n softmax(p) - 1), the released form
    "softmax"   a = n softmax(p), whose range holds the values that Fig. 2 shows
    "residual"  a = 1 + softmax(p) - 1/n, a weaker form, within 1 +- 1/n

    Where all cells are alike, a = 1.5 of "sigmoid" and 1 of the others. Raises ValueError for another transform.
    """
    require("transform", transform, TRANSFORMS)
    share = torch.softmax(pooled.flatten(2).transpose(1, 2), 1)   # (B, n, Ci): over a last axis of nine it is slow
    n = share.shape[1]
    if transform == "sigmoid":
        attention = 1 + torch.sigmoid(n * share - 1)
    elif transform == "softmax":
        attention = n * share
    else:
        attention = 1 + share - 1 / n
    return attention.transpose(1, 2).unflatten(2, pooled.shape[2:])


def attention_range(cells: int = 9, transform: str = "sigmoid") -> tuple[float, float]:
    """Least and largest attention: of an empty cell among full ones, and of a full one among empty ones."""
    one = torch.eye(cells, dtype=torch.float64)[:1, None]
    return tuple(proportion_transform(pooled, transform)[0, 0, 0].item() for pooled in (1 - one, one))


def contextual_attention(x: Tensor, kernel_size: int | tuple[int, ...], *, tau: float | str = 0.0, strict: bool = False,
                         transform: str = "sigmoid") -> Tensor:
    """The attention of each image, a_b = CAG(x_b) (Eqs. 9-11).

    x (B, Ci, H, W) or (B, Ci, L) -> (B, Ci, k, k) or (B, Ci, k), without parameters and without gradient. The defaults
    are the released form. `pooled_mask` and `proportion_transform` explain the options and the errors.
    """
    return proportion_transform(pooled_mask(x, kernel_size, tau=tau, strict=strict), transform)


# --- image-specific kernel modulation (IKM), Eqs. 7-8 and 12-15 -----------------------------------------------------


def modulated_conv2d(x: Tensor, weight: Tensor, attention: Tensor | float, bias: Tensor | None = None, *, stride=1,
                     padding=0, dilation=1, gradient: str = "iso") -> Tensor:
    """Convolution of image b with a_b * w (Eq. 7).

    x (B, Ci, H, W), weight (Co, Ci, k, k) -> (B, Co, H', W'). attention (B, Ci, k, k), or (1, Ci, k, k) or a number
    for all images alike. `gradient` chooses how the shared kernel w learns:

    "iso"       dL/dw = mean_b dL/dw_b, the paper's Algorithm 1
    "autograd"  dL/dw = sum_b a_b * dL/dw_b, the exact derivative
    "go"        general optimisation (footnote 1): the attention is averaged over the batch, one kernel for all images

    The bias, if any, is never modulated and has its exact gradient. Raises ValueError for an unknown rule and for an
    attention of another shape.
    """
    fast.check(x, weight, attention, gradient)
    if not isinstance(attention, Tensor):
        attention = x.new_full((1, 1, 1, 1), attention)
    attention = attention.expand(len(x), *weight.shape[1:])
    if gradient == "go":
        return F.conv2d(x, weight * attention.mean(0), bias, stride, padding, dilation)
    kernels = weight * attention[:, None]   # Eq. 12: w_b = a_b * w
    if gradient == "iso":                   # Algorithm 1: the same kernels, but the gradient of w is Eq. 15's
        kernels = kernels.detach() + (weight - weight.detach()) / len(x)
    groups = x.flatten(0, 1)[None].contiguous()   # in some other memory formats PyTorch's float64 gradients are wrong
    y = F.conv2d(groups, kernels.flatten(0, 1), None, stride, padding, dilation, groups=len(x))
    y = y.unflatten(1, (len(x), -1))[0]           # Eq. 13: each image was a group of channels
    return y if bias is None else y + bias[:, None, None]


class IKMConv2d(nn.Conv2d):
    """An `nn.Conv2d`, with one group and zero padding, whose kernel is modulated for each image by that image's own
    context (Eqs. 7-15).

    It has the same parameters and `state_dict` keys, and takes (B, Ci, H, W) or (Ci, H, W) of any size, and any k and
    dilation. `modulated_conv2d` explains `gradient`; `contextual_attention` explains `tau`, `strict` and `transform`.
    `context` is for controls: "own" is IKM; "constant" takes the attention of an image without context; "shuffled"
    takes that of the batch's next image (an image alone has only its own). Raises ValueError for unknown options.
    """

    fast = True   # False: by this file's modulated_conv2d
    options = OPTIONS

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], *, stride=1, padding=0,
                 dilation=1, bias: bool = True, gradient: str = "iso", tau: float | str = 0.0, strict: bool = False,
                 transform: str = "sigmoid", context: str = "own"):
        check_options(gradient=gradient, tau=tau, strict=strict, transform=transform, context=context)
        if isinstance(padding, str):
            raise ValueError(f"padding must be a number or a pair of numbers, not {padding!r}")
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation,
                         bias=bias)
        self.gradient, self.tau, self.strict, self.transform, self.context = gradient, tau, strict, transform, context

    @property
    def constant_attention(self) -> float:
        """The attention where all cells are alike, so that n softmax(p) = 1 (Eq. 11)."""
        return 1.5 if self.transform == "sigmoid" else 1.0

    def attention(self, x: Tensor) -> Tensor | float:
        """This layer's own attention of x (Eqs. 9-11), for any number of channels C.

        (B, C, H, W) or (C, H, W) -> (B, C, k, k) or (1, C, k, k); with `context="constant"` a number.
        """
        if self.context == "constant":
            return self.constant_attention
        own = contextual_attention(x if x.dim() == 4 else x[None], self.kernel_size, tau=self.tau, strict=self.strict,
                                   transform=self.transform)
        return own.roll(-1, 0) if self.context == "shuffled" else own

    def forward(self, x: Tensor, *, attention: Tensor | float | None = None, weight: Tensor | None = None) -> Tensor:
        """x (B, Ci, H, W) -> (B, Co, H', W'), or both without B.

        `attention` replaces the layer's own: (B, Ci, k, k), (1, Ci, k, k) or a number. `weight` replaces its kernel, by
        one with any numbers of channels. Raises ValueError for an attention of another shape.
        """
        if x.dim() == 3:
            return self.forward(x[None], attention=attention, weight=weight)[0]
        convolve = fast.modulated_conv2d if self.fast else modulated_conv2d
        return convolve(x, self.weight if weight is None else weight,
                        self.attention(x) if attention is None else attention, self.bias, stride=self.stride,
                        padding=self.padding, dilation=self.dilation, gradient=self.gradient)

    def extra_repr(self) -> str:
        return (f"{super().extra_repr()}, gradient={self.gradient}, tau={self.tau}, strict={self.strict}, "
                f"{self.transform}, context={self.context}")


@contextmanager
def attending(model: nn.Module, attend: Callable) -> Iterator[None]:
    """Watch or replace attention: within the block, every call of an IKM layer of `model` first calls
    `attend(layer, own)` and takes what it returns as its `attention`; if it returns None, nothing changes.

    `own()` is the attention that the layer would take otherwise, (B, C, k, k) or a number. Blocks may be nested:
    `own()` is then the outer block's answer. C is Ci, except in a dense unit whose `fast` is True: there the d-th layer
    is called with only the channels that the layer before it added, and its kernels for them serve all later layers.
    """
    def give(layer, inputs, options):
        given = options.get("attention")
        answer = attend(layer, partial(layer.attention, *inputs) if given is None else lambda: given)
        return inputs, options if answer is None else {**options, "attention": answer}

    hooks = [module.register_forward_pre_hook(give, with_kwargs=True)
             for module in model.modules() if isinstance(module, IKMConv2d)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- the attentions of Table III ------------------------------------------------------------------------------------


class ChannelAttention(nn.Module):
    """Channel attention of SENet/RCAN (Eqs. 3-4): y = x * sigmoid(fc(relu(fc(mean(x))))), c -> c/4 -> c, biases."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, H, W) -> same shape."""
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class SpatialAttention(nn.Module):
    """Spatial attention in CSFM's form: y = x * sigmoid(conv1x1(relu(conv1x1(x)))), c -> c/4 -> 1, with biases.

    Table III's "+SA" parameters are these (CSFM itself widens, 64 -> 128 -> 1); the 7x7 form of the paper's Eq. 6
    (CBAM) does not give them.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, c, H, W) -> same shape."""
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x))))
