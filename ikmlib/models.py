"""The networks: residual, dense, residual dense, U-hourglass dense blocks in one backbone (Figs. 4, 7, Eqs. 16-17, 19).

An `Architecture` says what is built, in the paper's symbols: N blocks of U dense units with depths d, C channels,
growth g. Every block and every unit takes x (B, C, H, W) and returns the same shape. Blocks and units are written as
the paper writes them; where their `fast` is True (the default), they compute the same as in `ikmlib.fast`, to rounding.
"""
import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikmlib import fast
from ikmlib.config import require
from ikmlib.layers import ATTENTIONS, OPTIONS, ChannelAttention, IKMConv2d, SpatialAttention, check_options

SCALES = (2, 3, 4)
BLOCKS = ("rb", "db", "rdb", "uhdb")
# Mean and standard deviation of the RGB of DIV2K + Flickr2K, in 0..1
RGB_MEAN = (0.466, 0.448, 0.403)
RGB_STD = (0.242, 0.234, 0.246)


@dataclass(frozen=True)
class Architecture:
    """What a network is. The defaults are U-HDN with IKM; `ARCHITECTURES` names the paper's networks.

    Every field is checked, also where the network does not use it. Raises ValueError.
    """

    block: str = "uhdb"                               # rb | db | rdb | uhdb
    blocks: int = 4                                   # N
    depths: tuple[int, ...] = (6, 5, 4, 4, 5, 6)      # of the U dense units, in layers; rb: of residual blocks
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
        require("block", self.block, BLOCKS)
        require("attention", self.attention, ATTENTIONS)
        check_options(**{name: getattr(self, name) for name in OPTIONS})
        if not isinstance(self.depths, tuple) or not self.depths:
            raise ValueError(f"depths must be a tuple of numbers, one or more, not {self.depths!r}")
        counts = [(name, getattr(self, name)) for name in ("blocks", "channels", "growth", "kernel", "dilation")]
        for name, count in counts + [("depths", depth) for depth in self.depths]:
            if type(count) is not int or count < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, not {count!r}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that the blocks keep the image size, not {self.kernel}")
        if self.channels % 4:
            raise ValueError(f"channels must be a multiple of 4, as upscaling has groups of 4, not {self.channels}")
        if self.attention in ("ca", "sa") and self.growth < 4:
            raise ValueError(f"growth must be at least 4, as {self.attention} keeps a quarter of it, not {self.growth}")
        if type(self.gain) not in (int, float) or not math.isfinite(self.gain):
            raise ValueError(f"gain must be a finite number, not {self.gain!r}")


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
        options = {name: getattr(arch, name) for name in OPTIONS}
        conv = IKMConv2d(in_channels, out_channels, arch.kernel, **shape, **options)
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

    fast = True   # computed by inputs, `fast.dense_unit`

    def __init__(self, arch: Architecture, depth: int):
        super().__init__()
        c, g = arch.channels, arch.growth
        self.convs = nn.ModuleList(_conv(arch, c + i * g, g) for i in range(depth))
        self.attentions = nn.ModuleList(_feature_attention(arch, g) for _ in range(depth))
        self.transition = nn.Conv2d(c + depth * g, c, 1, bias=False)   # never modulated

    def forward(self, x: Tensor) -> Tensor:
        if self.fast and fast.alike(self.convs):
            return fast.dense_unit(self, x)
        features = x
        for conv, attention in zip(self.convs, self.attentions, strict=True):
            feature = F.relu(attention(conv(features)))        # Eq. 16
            features = torch.cat([features, feature], 1)
        return self.transition(features)                       # Eq. 17


class ResidualBlocks(nn.Module):
    """RB: a chain of residual blocks as in EDSR, no batch normalisation, no biases: y = conv(relu(conv(x))) + x."""

    fast = True   # attention behind a ReLU is not computed where `fast.after_relu` knows it

    def __init__(self, arch: Architecture):
        super().__init__()
        c = arch.channels
        self.convs = nn.ModuleList(nn.ModuleList(_conv(arch, c, c) for _ in range(depth)) for depth in arch.depths)
        self.attentions = nn.ModuleList(
            nn.ModuleList(_feature_attention(arch, c) for _ in range(depth)) for depth in arch.depths)

    def forward(self, x: Tensor) -> Tensor:
        for convs, attentions in zip(self.convs, self.attentions, strict=True):
            y = x
            for i, (conv, attention) in enumerate(zip(convs, attentions, strict=True)):
                known = fast.after_relu(conv) if self.fast and i else {}
                y = attention(conv(F.relu(y) if i else y, **known))
            x = y + x
        return x


class DenseBlock(nn.Module):
    """DB: a chain of U dense units without residual connections."""

    def __init__(self, arch: Architecture):
        super().__init__()
        self.units = nn.ModuleList(DenseUnit(arch, depth) for depth in arch.depths)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return x


class ResidualDenseBlock(DenseBlock):
    """RDB: U dense units, each with a local residual; a 1x1 convolution, (U+1) C -> C, fuses x and the U outputs."""

    def __init__(self, arch: Architecture):
        super().__init__(arch)
        self.fusion = nn.Conv2d((len(arch.depths) + 1) * arch.channels, arch.channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for unit in self.units:
            x = unit(x) + x
            features.append(x)
        return self.fusion(torch.cat(features, 1))


class UHourglassDenseBlock(DenseBlock):
    """U-HDB (Eq. 19): in the second half, the u-th of U units adds x_{U-u}, the output of unit U-u; the last adds x.

    For U = 6: x1=F1(x); x2=F2(x1); x3=F3(x2); x4=F4(x3)+x2; x5=F5(x4)+x1; y=F6(x5)+x. Not in the paper: if U is odd,
    the unit in the middle adds its own input.
    """

    def forward(self, x: Tensor) -> Tensor:
        half, skips = len(self.units) // 2, []   # skips: x, x1, x2, of which the last in is the first out
        for i, unit in enumerate(self.units):
            if i < len(self.units) - half:
                skips.append(x)
            x = unit(x) if i < half else unit(x) + skips.pop()
        return x


_BLOCKS = {"rb": ResidualBlocks, "db": DenseBlock, "rdb": ResidualDenseBlock, "uhdb": UHourglassDenseBlock}


def upscaler(c: int, scale: int, *activation: nn.Module, groups: int = 1, bias: bool = True) -> nn.Sequential:
    """Sub-pixel upscaling (B, C, H, W) -> (B, C, sH, sW): one stage for x2 and x3, two x2 stages for x4."""
    return nn.Sequential(*(
        layer for r in ((2, 2) if scale == 4 else (scale,))
        for layer in (nn.Conv2d(c, c * r * r, 3, padding=1, groups=groups, bias=bias), *activation,
                      nn.PixelShuffle(r))))


class SRNetwork(nn.Module):
    """The backbone of Fig. 4: head, N blocks, convolution, long skip, sub-pixel upscaling, tail.

    It takes RGB (B, 3, H, W) in 0..1 and returns RGB (B, 3, sH, sW) in about 0..1, not clipped. `fast=False` computes
    the blocks as written here and in `layers`. Raises ValueError for an unknown scale.
    """

    def __init__(self, arch: Architecture, scale: int, *, fast: bool = True):
        super().__init__()
        require("scale", scale, SCALES)
        c = arch.channels
        self.arch, self.scale = arch, scale
        self.head = nn.Conv2d(3, c, 3, padding=1)
        self.blocks = nn.Sequential(*(_BLOCKS[arch.block](arch) for _ in range(arch.blocks)))
        self.fuse = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.upscale = upscaler(c, scale, groups=c // 4, bias=False)
        self.tail = nn.Conv2d(c, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(RGB_STD).reshape(3, 1, 1), persistent=False)
        for module in self.modules():
            module.fast = fast

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, 3, sH, sW)."""
        head = self.head((x - self.mean) / self.std)
        features = self.fuse(self.blocks(head)) + head
        return self.tail(self.upscale(features)) * self.std + self.mean


def complexity(model: nn.Module, scale: int, *, activations: bool = False) -> tuple[int, int]:
    """(#Params, #FLOPs): the number of parameters, and of multiply-adds of all convolutions for a 480 x 360 output.

    This is how the paper counts its own networks: each weight counts once for every output pixel (in a transposed
    convolution, for every input pixel), each bias once for every output value. `activations` adds what fits most other
    methods in Tables I and II: one for every value that an activation layer returns or a pooling layer takes. Only
    modules count as layers: `F.relu` is free. The network runs on the "meta" device, which computes shapes alone.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counts = []

    def count(layer, inputs, output):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            positions = (inputs[0] if layer.transposed else output).shape[-2:].numel()
            counts.append(layer.weight.numel() * positions + (0 if layer.bias is None else output.numel()))
        else:
            counts.append((inputs[0] if isinstance(layer, nn.AdaptiveAvgPool2d) else output).numel())

    counted = (nn.Conv2d, nn.ConvTranspose2d)
    if activations:
        counted += (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.AdaptiveAvgPool2d)
    for module in shadow.modules():
        if isinstance(module, counted):
            module.register_forward_hook(count)   # with it, a dense unit is computed as written: every layer is called
    with torch.no_grad():
        shadow(torch.empty(1, 3, 360 // scale, 480 // scale, device="meta"))
    return sum(p.numel() for p in model.parameters()), sum(counts)
