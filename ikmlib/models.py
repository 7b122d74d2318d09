"""The networks: residual, dense, residual dense, U-hourglass dense blocks in one backbone (Figs. 4 and 7, Eqs. 16-19).

An `Architecture` says what is built, in the paper's symbols: N blocks of U dense units with depths d, C channels,
growth g.
"""
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    ATTENTIONS,
    ChannelAttention,
    IKMConv2d,
    SpatialAttention,
    _require,
    common_kernel,
    modulated_conv2d,
)

SCALES = (2, 3, 4)
BLOCKS = ("rb", "db", "rdb", "uhdb")
# Mean and standard deviation of the RGB of DIV2K + Flickr2K, in 0..1
RGB_MEAN = (0.466, 0.448, 0.403)
RGB_STD = (0.242, 0.234, 0.246)


@dataclass(frozen=True)
class Architecture:
    """What a network is. Defaults are U-HDN with IKM; `ARCHITECTURES` names the paper's."""

    block: str = "uhdb"                               # rb | db | rdb | uhdb
    blocks: int = 4                                   # N
    depths: tuple[int, ...] = (6, 5, 4, 4, 5, 6)      # layers of the U dense units; for rb: one entry a residual block
    channels: int = 64                                # C
    growth: int = 12                                  # g
    kernel: int = 3                                   # k of the modulated convolutions
    dilation: int = 1
    attention: str = "ikm"                            # none | ca | sa | ikm
    gradient: str = "iso"                             # of ikm: iso | go | autograd
    tau: float | str = 0.0                            # of ikm: threshold, a number, "mean" or "median"
    strict: bool = False                              # of ikm: x > tau instead of x >= tau
    transform: str = "sigmoid"                        # of ikm: sigmoid | softmax | residual
    context: str = "own"                              # of ikm, for controls: own | constant | shuffled
    gain: float = 1.0                                 # for controls: times the blocks' initial k x k weights

    def __post_init__(self):
        _require("block", self.block, BLOCKS)
        _require("attention", self.attention, ATTENTIONS)
        if self.kernel % 2 == 0:
            raise ValueError(
                f"kernel size {self.kernel} is even: the blocks keep the image size, which needs an odd one")


ARCHITECTURES = {
    "uhdn": Architecture(),
    "uhdn_l": Architecture(blocks=8, channels=128, growth=24),
    "rb": Architecture("rb", blocks=1, depths=(2,) * 8, channels=48),   # 8 residual blocks of 2 convolutions
    "db": Architecture("db", blocks=1, depths=(5,) * 6),
    "rdb": Architecture("rdb", blocks=1, depths=(5,) * 6),
    "uhdb": Architecture("uhdb", blocks=1),
}


def _conv(arch: Architecture, in_channels: int, out_channels: int) -> nn.Conv2d:
    """A k x k convolution of a block, without bias, keeping H and W; modulated if the attention is IKM."""
    shape = dict(padding=arch.dilation * (arch.kernel - 1) // 2, dilation=arch.dilation, bias=False)
    if arch.attention == "ikm":
        conv = IKMConv2d(in_channels, out_channels, arch.kernel, **shape, gradient=arch.gradient, tau=arch.tau,
                         strict=arch.strict, transform=arch.transform, context=arch.context)
    else:
        conv = nn.Conv2d(in_channels, out_channels, arch.kernel, **shape)
    with torch.no_grad():
        conv.weight.mul_(arch.gain)
    return conv


def _feature_attention(arch: Architecture, channels: int) -> nn.Module:
    """CA or SA on a convolution's output, before the activation; nothing for the others."""
    kinds = {"ca": ChannelAttention, "sa": SpatialAttention}
    return kinds[arch.attention](channels) if arch.attention in kinds else nn.Identity()


class DenseUnit(nn.Module):
    """F_d (Eqs. 16-17): d layers of convolution and ReLU, each concatenated to its input; 1x1 transition, no ReLU."""

    def __init__(self, arch: Architecture, depth: int):
        super().__init__()
        c, g = arch.channels, arch.growth
        self.convs = nn.ModuleList(_conv(arch, c + i * g, g) for i in range(depth))
        self.attentions = nn.ModuleList(_feature_attention(arch, g) for _ in range(depth))
        self.transition = nn.Conv2d(c + depth * g, c, 1, bias=False)   # never modulated
        self.channels = [c, *[g] * depth]   # of x and of each feature

    def _known_attention(self) -> float | None:
        """The features' attention where it is the same number for all; 1 without IKM; None: it takes a look."""
        known = {conv.known_attention(after_relu=True) if isinstance(conv, IKMConv2d) else 1.0 for conv in self.convs}
        return known.pop() if len(known) == 1 else None

    def _kernels(self, images: int, known: float | None) -> list[Tensor]:
        """The layers' kernels by what they read, x and each feature: (readers g, its channels, k, k).

        The features' `known` attention, of a batch of so many images, is in them already.
        """
        parts = [conv.weight.split(self.channels[:i + 1], 1) for i, conv in enumerate(self.convs)]
        of_x, *of_features = ([part[i] for part in parts[i:]] for i in range(len(parts)))
        if not of_features:
            return [torch.cat(of_x)]
        kernels, first = torch.cat(sum(of_features, [])), self.convs[0]
        if known is not None and isinstance(first, IKMConv2d):
            kernels = common_kernel(kernels, known, images, first.gradient)
        return [torch.cat(of_x), *kernels.split([sum(map(len, readers)) for readers in of_features])]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> same shape.

        Written by inputs, not by layers: a convolution is a sum over its input channels and attention belongs to a
        channel, so each feature is attended to and convolved once, for all the layers that read it. Nothing is
        concatenated until the transition, and with IKM a unit has one modulated convolution instead of d wherever the
        attention of the ReLUs' outputs is constant.
        """
        features, sums, known = [x], None, self._known_attention()
        kernels = self._kernels(len(x), known) if self.convs else []
        for i, (conv, attention) in enumerate(zip(self.convs, self.attentions, strict=True)):
            feature, geometry = features[i], dict(padding=conv.padding, dilation=conv.dilation)
            if not isinstance(conv, IKMConv2d) or (i and known is not None):
                spread = F.conv2d(feature, kernels[i], **geometry)
            else:
                spread = modulated_conv2d(feature, kernels[i], conv.attend(feature, after_relu=i > 0), **geometry,
                                          gradient=conv.gradient)
            sums = spread if sums is None else spread.add_(sums)
            y, sums = sums.split([conv.out_channels, sums.shape[1] - conv.out_channels], 1)
            features.append(F.relu(attention(y)))
        return self.transition(torch.cat(features, 1))


# A block is a chain of steps, each computed by `apply`: at once by `whole`, or band by band by `tiling`.
Apply = Callable[..., Tensor]


def whole(function: Callable[[Tensor], Tensor], x: Tensor | list[Tensor], skip: Tensor | None = None,
          modules: nn.Module | None = None) -> Tensor:
    """One step: function(x) + skip; a list x is concatenated first. `modules`, whose convolutions `function` runs if it
    is no module itself, matter only band by band."""
    y = function(torch.cat(x, 1) if isinstance(x, list) else x)
    return y if skip is None else y + skip


class ResidualBlocks(nn.Module):
    """RB: a chain of residual blocks as in EDSR, no batch normalisation, no biases: y = conv(relu(conv(x))) + x."""

    def __init__(self, arch: Architecture):
        super().__init__()
        c = arch.channels
        self.convs = nn.ModuleList(nn.ModuleList(_conv(arch, c, c) for _ in range(depth)) for depth in arch.depths)
        self.attentions = nn.ModuleList(
            nn.ModuleList(_feature_attention(arch, c) for _ in range(depth)) for depth in arch.depths)

    def _chain(self, x: Tensor, convs: nn.ModuleList, attentions: nn.ModuleList) -> Tensor:
        for i, (conv, attention) in enumerate(zip(convs, attentions, strict=True)):
            known = {"after_relu": True} if i and isinstance(conv, IKMConv2d) else {}
            x = attention(conv(F.relu(x) if i else x, **known))
        return x

    def forward(self, x: Tensor, apply: Apply = whole) -> Tensor:
        """x (B, C, H, W) -> same shape."""
        for convs, attentions in zip(self.convs, self.attentions, strict=True):
            x = apply(partial(self._chain, convs=convs, attentions=attentions), x, skip=x, modules=convs)
        return x


class DenseBlock(nn.Module):
    """DB: a chain of U dense units without residual connections."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.units = nn.ModuleList(DenseUnit(arch, depth) for depth in arch.depths)

    def forward(self, x: Tensor, apply: Apply = whole) -> Tensor:
        """x (B, C, H, W) -> same shape."""
        for unit in self.units:
            x = apply(unit, x)
        return x


class ResidualDenseBlock(DenseBlock):
    """RDB: U dense units, each with a local residual; a 1x1 convolution, (U+1) C -> C, fuses x and the U outputs."""

    def __init__(self, arch: Architecture):
        super().__init__(arch)
        self.fusion = nn.Conv2d((len(arch.depths) + 1) * arch.channels, arch.channels, 1, bias=False)

    def forward(self, x: Tensor, apply: Apply = whole) -> Tensor:
        """x (B, C, H, W) -> same shape."""
        features = [x]
        for unit in self.units:
            features.append(apply(unit, features[-1], skip=features[-1]))
        return apply(self.fusion, features)


class UHourglassDenseBlock(DenseBlock):
    """U-HDB (Eq. 19): the u-th of U units adds the output of unit U - u, the last one the block's input.

    For U = 6: x1=F1(x); x2=F2(x1); x3=F3(x2); x4=F4(x3)+x2; x5=F5(x4)+x1; y=F6(x5)+x.
    """

    def forward(self, x: Tensor, apply: Apply = whole) -> Tensor:
        """x (B, C, H, W) -> same shape."""
        skips = []   # last in, first out, so that no feature map is kept longer than it is needed
        for u, unit in enumerate(self.units, 1):
            partner = len(self.units) - u
            if partner >= u - 1:
                skips.append(x)
            x = apply(unit, x, skip=skips.pop() if partner < u else None)
        return x


_BLOCKS = {"rb": ResidualBlocks, "db": DenseBlock, "rdb": ResidualDenseBlock, "uhdb": UHourglassDenseBlock}


class Upscaler(nn.Sequential):
    """Sub-pixel upscaling: one stage for x2 and x3, two x2 stages for x4; 3x3 convolutions in C/4 groups, no bias."""

    def __init__(self, channels: int, scale: int):
        factors = (2, 2) if scale == 4 else (scale,)
        stages = []
        for r in factors:
            stages += [nn.Conv2d(channels, channels * r * r, 3, padding=1, groups=channels // 4, bias=False),
                       nn.PixelShuffle(r)]
        super().__init__(*stages)


class SRNetwork(nn.Module):
    """The backbone of Fig. 4: head, N blocks, convolution, long skip, sub-pixel upscaling, tail.

    Takes RGB (B, 3, H, W) in 0..1 and returns RGB (B, 3, sH, sW) in about 0..1, not clipped. Inside, values are
    normalised with the mean and deviation of the paper's training set.
    """

    def __init__(self, arch: Architecture, scale: int):
        super().__init__()
        _require("scale", scale, SCALES)
        c = arch.channels
        self.arch, self.scale = arch, scale
        self.head = nn.Conv2d(3, c, 3, padding=1)
        self.blocks = nn.Sequential(*(_BLOCKS[arch.block](arch) for _ in range(arch.blocks)))
        self.fuse = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.upscale = Upscaler(c, scale)
        self.tail = nn.Conv2d(c, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(RGB_STD).reshape(3, 1, 1), persistent=False)

    def normalised(self, x: Tensor, apply: Apply = whole) -> Tensor:
        """From normalised LR to normalised SR."""
        head = x = apply(self.head, x)
        for block in self.blocks:
            x = block(x, apply)
        x = apply(self.fuse, x, skip=head)
        return apply(nn.Sequential(self.upscale, self.tail), x)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, 3, sH, sW)."""
        return self.normalised((x - self.mean) / self.std) * self.std + self.mean


def build_model(name: str, *, scale: int = 2, attention: str = "ikm") -> SRNetwork:
    """One of the paper's networks: uhdn, uhdn_l, or Table III's rb, db, rdb, uhdb, with attention ikm, none, ca or sa.

    Weights are PyTorch's default initialisation. Raises ValueError for an unknown name, scale or attention.
    For anything else: `SRNetwork(replace(ARCHITECTURES[name], kernel=5), scale)`.
    """
    _require("architecture", name, tuple(ARCHITECTURES))
    return SRNetwork(replace(ARCHITECTURES[name], attention=attention), scale)


def complexity(model: nn.Module, scale: int) -> tuple[int, int]:
    """(#Params, #FLOPs): trainable parameters, and multiply-adds of all convolutions for a 480 x 360 output image.

    As the paper counts: input 480/s x 360/s, one multiply-add a weight and a bias an output position; activations,
    masks and pooling are free. Nothing is computed: the shapes run through a copy on the "meta" device.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    total = 0

    def count(module, inputs, output):
        nonlocal total
        convs = module.convs if isinstance(module, DenseUnit) else [module]   # a unit does not call its layers
        per_position = sum(p.numel() for conv in convs for p in conv.parameters())
        total += per_position * output.shape[-2] * output.shape[-1]

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | DenseUnit):
            module.register_forward_hook(count)
    with torch.no_grad():
        shadow(torch.empty(1, 3, 360 // scale, 480 // scale, device="meta"))
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total


@cache
def cost(arch: Architecture, scale: int) -> tuple[int, int]:
    """`complexity` of an architecture, (#Params, #FLOPs), without its weights being made."""
    with torch.device("meta"):
        return complexity(SRNetwork(arch, scale), scale)
