"""The networks that Tables I and II compare with, written from facts of their publications; `build_peer` makes them.

B images, H/W height and width of the LR image, s the scale: all take RGB (B, 3, H, W) in 0..1 and return RGB
(B, 3, sH, sW), not clipped. Initial weights are PyTorch's default, but He's in VDSR, LapSRN and DRRN. A ReLU is a layer
where it is one in the authors' program, because `models.complexity` counts layers. Not known: how MS3-Conv (Table I,
x4) is wired, which is missing here; what network made LapSRN's scores at x3; what the last 0.1 K of CARN's printed
parameters are; why OISR's authors count slightly fewer parameters.
"""
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from ikmlib.config import require
from ikmlib.data import contributions
from ikmlib.layers import ChannelAttention
from ikmlib.metrics import RGB_TO_Y
from ikmlib.models import SCALES, upscaler

# --- what several share: features keep their size, (B, C, H, W) -> (B, C', H, W), except in upscalers ---------------

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)   # of RGB in 0..1
conv = partial(nn.Conv2d, kernel_size=3, padding="same")
plain = partial(conv, bias=False)
pointwise = partial(nn.Conv2d, kernel_size=1)


class Join(nn.ModuleList):
    """y = join(what each of the branches makes of x)."""

    def __init__(self, join: Callable[..., Tensor], *branches: nn.Module):
        super().__init__(branches)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*(branch(x) for branch in self))


def skip(join: Callable[[Tensor, Tensor], Tensor], *layers: nn.Module) -> nn.Module:
    """y = join(x, layers(x))."""
    return Join(join, nn.Identity(), nn.Sequential(*layers))


residual = partial(skip, torch.add)
dense = partial(skip, lambda x, y: torch.cat([x, y], 1))
gate = partial(skip, lambda x, y: x * torch.sigmoid(y))


def channel_gate() -> nn.Module:
    """RCAN's channel attention, 64 -> 4 -> 64."""
    return gate(nn.AdaptiveAvgPool2d(1), pointwise(64, 4), nn.ReLU(), pointwise(4, 64))


def each(activation: nn.Module, *layers: nn.Module) -> nn.Sequential:
    """The layers, each followed by the activation."""
    return nn.Sequential(*(module for layer in layers for module in (layer, activation)))


def mean_shift(sign: int) -> nn.Module:
    """x + sign * DIV2K_MEAN as a frozen convolution, whose 12 parameters count: only so do CFSRCNN's fit its print."""
    shift = pointwise(3, 3).requires_grad_(False)
    nn.init.dirac_(shift.weight)
    shift.bias.data = sign * torch.tensor(DIV2K_MEAN)
    return shift


class Backbone(nn.Module):
    """EDSR's frame: head, body with a skip around it, upscaler, tail, on 255 * (RGB - mean)."""

    def __init__(self, scale: int, channels: int, *body: nn.Module, mean: tuple = DIV2K_MEAN, bias: bool = True):
        super().__init__()
        self.head, self.body = conv(3, channels), residual(*body)
        self.upscale, self.tail = upscaler(channels, scale, bias=bias), conv(channels, 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(255 * (x - self.mean))
        return self.tail(self.upscale(self.body(x))) / 255 + self.mean


class Cascade(nn.Module):
    """Blocks of 64 channels, each followed by a 1x1 fusion: of its output, the input, and the blocks' outputs before it
    (CARN) or, if `fused`, the fusions' outputs before it (CSFM)."""

    def __init__(self, activation: nn.Module, *blocks: nn.Module, fused: bool = False):
        super().__init__()
        self.fused, self.blocks = fused, nn.ModuleList(blocks)
        self.fusions = nn.ModuleList(each(activation, pointwise(64 * (i + 2), 64)) for i in range(len(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for block, fusion in zip(self.blocks, self.fusions, strict=True):
            y = block(x)
            x = fusion(torch.cat([*seen, y], 1))
            seen.append(x if self.fused else y)
        return x


@cache
@torch.inference_mode(False)
def _taps(size: int, scale: int, device: torch.device) -> list[Tensor]:
    """`contributions`, kept on a device, because a captured update of a GPU may not bring them there. They are made
    outside inference mode, because training uses them, too."""
    return [torch.from_numpy(array).to(device) for array in contributions(size, scale)]


def enlarge(x: Tensor, scale: int) -> Tensor:
    """Bicubic (B, C, H, W) -> (B, C, sH, sW): `data.imresize` without its rounding and clipping."""
    for index, weights in (_taps(size, scale, x.device) for size in x.shape[2:]):   # each turn swaps the axes
        x = (x.transpose(2, 3)[..., index] * weights.to(x.dtype)).sum(-1)
    return x


def luma(x: Tensor) -> Tensor:
    """`metrics.luma` over 255: RGB (B, 3, H, W) in 0..1 -> Y (B, 1, H, W) in 16/255..235/255."""
    return (16 + sum(weight * colour for weight, colour in zip(RGB_TO_Y, x.split(1, 1), strict=True))) / 255


def he(network: nn.Module) -> nn.Module:
    """A network without biases with He's initial weights: PyTorch's smaller ones let nothing pass a long chain."""
    for weight in network.parameters():
        nn.init.kaiming_normal_(weight)
    return network


class OnLuma(nn.Module):
    """RGB of bicubic chroma and the luma that a network makes of LR luma or, if `enlarged`, of bicubic luma."""

    def __init__(self, scale: int, network: nn.Module, *, enlarged: bool):
        super().__init__()
        self.scale, self.network, self.enlarged = scale, network, enlarged

    def forward(self, x: Tensor) -> Tensor:
        rgb = enlarge(x, self.scale)
        y = self.network(luma(rgb if self.enlarged else x))
        return rgb + (y - luma(rgb)) * 255 / 219   # at constant chroma, R, G and B change alike (BT.601)


def srcnn(scale: int, *, middle: int = 5, bias: bool = True) -> nn.Module:
    """SRCNN 9-`middle`-5 (Dong et al., ECCV 2014, TPAMI 2016), with zeros around the image, which it had not."""
    hidden = each(nn.ReLU(), conv(1, 64, kernel_size=9, bias=bias), conv(64, 32, kernel_size=middle, bias=bias))
    return OnLuma(scale, nn.Sequential(hidden, conv(32, 1, kernel_size=5, bias=bias)), enlarged=True)


def vdsr(scale: int) -> nn.Module:
    """VDSR (Kim et al., CVPR 2016): 20 convolutions of 64 channels, without biases here and in the paper's count."""
    hidden = each(nn.ReLU(), plain(1, 64), *(plain(64, 64) for _ in range(18)))
    return OnLuma(scale, he(residual(hidden, plain(64, 1))), enlarged=True)


class LapSRN(nn.Module):
    """(B, 1, H, W) -> (B, 1, sH, sW): each level enlarges features and image by its stride and adds detail."""

    def __init__(self, *strides: int):
        super().__init__()
        activation = nn.LeakyReLU(0.2)
        self.head, self.levels = each(activation, plain(1, 64)), nn.ModuleList()
        for r in strides:
            shape = (4, r, (5 - r) // 2, r % 2)   # kernel, stride, padding at the input, at the output
            features = each(activation, *(plain(64, 64) for _ in range(10)),
                            nn.ConvTranspose2d(64, 64, *shape, bias=False))
            self.levels.append(nn.ModuleList([features, plain(64, 1), nn.ConvTranspose2d(1, 1, *shape, bias=False)]))

    def forward(self, y: Tensor) -> Tensor:
        features = self.head(y)
        for enlarged, detail, image in self.levels:
            features = enlarged(features)
            y = image(y) + detail(features)
        return y


def lapsrn(scale: int, *, one_level: bool = False) -> nn.Module:
    """LapSRN (Lai et al., CVPR 2017), without its bilinear initial weights; x4 has two levels unless `one_level`."""
    return OnLuma(scale, he(LapSRN(*((2, 2) if scale == 4 and not one_level else (scale,)))), enlarged=False)


class Recursion(nn.Sequential):
    """y_0 = x; 25 times y_u = x + layers(y_{u-1}), with the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(25):
            y = x + super().forward(y)
        return y


def drrn(scale: int) -> nn.Module:
    """DRRN B1U25 (Tai et al., CVPR 2017); as the paper counts, without its biases and batch normalisation."""
    unit = Recursion(nn.ReLU(), plain(128, 128), nn.ReLU(), plain(128, 128))
    return OnLuma(scale, he(residual(nn.ReLU(), plain(1, 128), unit, nn.ReLU(), plain(128, 1))), enlarged=True)


class DistillationBlock(nn.Module):
    """IDN's block: of 64 channels, 16 are kept and 48 refined; with the input they are summed and squeezed to 64."""

    def __init__(self, groups: int):
        super().__init__()
        activated = partial(each, nn.LeakyReLU(0.05))
        self.first = activated(conv(64, 48), conv(48, 32, groups=groups), conv(32, 64))
        self.second = activated(conv(48, 64), conv(64, 48, groups=groups), conv(48, 80))
        self.squeeze = activated(pointwise(80, 64))

    def forward(self, x: Tensor) -> Tensor:
        kept, refined = self.first(x).split((16, 48), 1)
        return self.squeeze(self.second(refined) + torch.cat([x, kept], 1))


def idn(scale: int, *, colours: int = 1, groups: int = 4) -> nn.Module:
    """IDN (Hui et al., CVPR 2018), aligned as the Caffe model: pixel i's kernel is centred on pixel s i + s - 1."""
    def add(x: Tensor, y: Tensor) -> Tensor:
        return enlarge(x, scale) + y[..., :scale * x.shape[2], :scale * x.shape[3]]

    network = skip(add, each(nn.LeakyReLU(0.05), conv(colours, 64), conv(64, 64)),
                   *(DistillationBlock(groups) for _ in range(4)),
                   nn.ConvTranspose2d(64, colours, 17, scale, padding=9 - scale))
    return OnLuma(scale, network, enlarged=False) if colours == 1 else network


class CARN(nn.Module):
    """CARN (Ahn et al., ECCV 2018), three cascades of three residual blocks; of the `scales`' upscalers one is used."""

    def __init__(self, scale: int, *, scales: tuple[int, ...] = SCALES):
        super().__init__()
        block = partial(skip, lambda x, y: torch.relu(x + y))
        cascades = (Cascade(nn.ReLU(), *(block(conv(64, 64), nn.ReLU(), conv(64, 64)) for _ in range(3)))
                    for _ in range(3))
        self.scale, self.tail = scale, nn.Sequential(conv(64, 3), mean_shift(1))
        self.features = nn.Sequential(mean_shift(-1), conv(3, 64), Cascade(nn.ReLU(), *cascades))
        self.upscale = nn.ModuleDict({f"x{s}": upscaler(64, s, nn.ReLU()) for s in scales})

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.upscale[f"x{self.scale}"](self.features(x)))


class MultiDistillationBlock(nn.Module):
    """IMDN's block: thrice 16 of 64 channels are kept and 48 refined, at last to 16; then attention by contrast."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3, self.c4 = conv(64, 64), conv(48, 64), conv(48, 64), conv(48, 16)
        self.activation, self.pool, self.c5 = nn.LeakyReLU(0.05), nn.AdaptiveAvgPool2d(1), pointwise(64, 64)
        self.cca = nn.ModuleDict({"conv_du": nn.Sequential(pointwise(64, 4), nn.ReLU(), pointwise(4, 64))})

    def forward(self, x: Tensor) -> Tensor:
        kept1, x1 = self.activation(self.c1(x)).split((16, 48), 1)
        kept2, x2 = self.activation(self.c2(x1)).split((16, 48), 1)
        kept3, x3 = self.activation(self.c3(x2)).split((16, 48), 1)
        y = torch.cat([kept1, kept2, kept3, self.c4(x3)], 1)
        contrast = self.pool(y) + y.std((2, 3), correction=0, keepdim=True)
        return x + self.c5(y * torch.sigmoid(self.cca["conv_du"](contrast)))


class IMDN(nn.Module):
    """IMDN (Hui et al., ACM MM 2019); the authors' weights load once "module." is cut off their names."""

    def __init__(self, scale: int):
        super().__init__()
        self.fea_conv, self.LR_conv = conv(3, 64), conv(64, 64)
        for i in range(1, 7):
            self.add_module(f"IMDB{i}", MultiDistillationBlock())
        self.c = nn.Sequential(pointwise(6 * 64, 64), nn.LeakyReLU(0.05))
        self.upsampler = nn.Sequential(conv(64, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.fea_conv(x)]
        for i in range(1, 7):
            features.append(self.get_submodule(f"IMDB{i}")(features[-1]))
        return self.upsampler(self.LR_conv(self.c(torch.cat(features[1:], 1))) + features[0])


class CFSRCNN(nn.Module):
    """CFSRCNN (Tian et al., IEEE TMM 2020): each of 16 convolutions is fed by the two before it, and all are summed."""

    def __init__(self, scale: int):
        super().__init__()
        self.relu = nn.ReLU()
        self.head, self.tail = nn.Sequential(mean_shift(-1), plain(3, 64)), nn.Sequential(plain(64, 3), mean_shift(1))
        self.squeezes = nn.ModuleList(pointwise(128 if i else 64, 64, bias=False) for i in range(16))
        self.convs = nn.ModuleList([*(plain(64, 64) for _ in range(16)), plain(128, 64)])
        self.low, self.high = (each(self.relu, *(plain(64, 64) for _ in range(5))) for _ in range(2))
        self.upscale = upscaler(64, scale)

    def forward(self, x: Tensor) -> Tensor:
        features = [torch.relu(self.head(x))]   # the authors' program rectifies it wherever it is used
        for squeeze, layer in zip(self.squeezes, self.convs[:-1], strict=True):
            pair = self.relu(torch.cat(features[-2:], 1))
            features.append(layer(self.relu(squeeze(pair))))
        features.append(self.convs[-1](self.relu(torch.cat(features[-2:], 1))))
        low = self.low(self.relu(sum(features)))
        return self.tail(self.high(self.relu(self.upscale(low) + self.upscale(features[0]))))


class DetailFidelity(nn.Module):
    """DeFiAN's module, (B, 32, H, W): y = x + r sigmoid(a), r of residual blocks, a of r's curvature and x's spread."""

    def __init__(self):
        super().__init__()
        relu, shapes = nn.ReLU(), ((3, 6, 1), (6, 12, 2), (12, 24, 4))   # channels in and out, dilation
        self.blocks = nn.Sequential(*(residual(plain(32, 32), relu, plain(32, 32), ChannelAttention(32, 16))
                                      for _ in range(10)))
        self.hessians = nn.ModuleList(conv(32, 96, groups=32, dilation=d).requires_grad_(False) for d in (1, 2, 3))
        xx, xy = torch.tensor([[[0., 0, 0], [1, -2, 1], [0, 0, 0]], [[1, 0, -1], [0, 0, 0], [-1, 0, 1]]])
        for hessian in self.hessians:   # second derivatives; their biases are random in the authors' program too
            hessian.weight.data = torch.stack([xx, xx.T, xy])[:, None].repeat(32, 1, 1, 1)
        self.map = nn.Sequential(
            each(relu, *(conv(i, o, dilation=d) for i, o, d in shapes)),
            each(relu, *(nn.ConvTranspose2d(o, i, 3, padding=d, dilation=d) for i, o, d in reversed(shapes))),
            pointwise(3, 1))
        self.deviation, self.mean = (
            nn.Sequential(pointwise(32, 2, bias=False), relu, pointwise(2, 32, bias=False)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        r, curvatures = self.blocks(x), []
        for hessian in self.hessians:
            xx, yy, xy = hessian(r).unflatten(1, (32, 3)).unbind(2)
            curvatures.append((xx + yy + torch.sqrt((xx - yy)**2 + 4 * xy**2)).mean(1) / 2)   # largest eigenvalue
        a = self.map(torch.stack(curvatures, 1))
        (variance, mean), (variance_a, mean_a) = (torch.var_mean(y, (2, 3), keepdim=True) for y in (x, a))
        deviation = self.deviation((variance + 1e-5).sqrt()) / (variance_a + 1e-5).sqrt()
        return x + r * torch.sigmoid((a - mean_a) * deviation + self.mean(mean))


def defian_s(scale: int) -> nn.Module:
    """DeFiAN_S (Huang et al., IEEE TIP 2021): five modules; no mean is subtracted, and the upscaler has no biases."""
    return Backbone(scale, 32, *(DetailFidelity() for _ in range(5)), conv(32, 32), mean=(0.0, 0.0, 0.0), bias=False)


def edsr(scale: int) -> nn.Module:
    """EDSR (Lim et al., CVPRW 2017): 32 residual blocks of 256 channels, residuals times 0.1."""
    block = partial(skip, partial(torch.add, alpha=0.1))
    return Backbone(scale, 256, *(block(conv(256, 256), nn.ReLU(), conv(256, 256)) for _ in range(32)), conv(256, 256))


def rdn(scale: int, *, blocks: int = 16, layers: int = 8, growth: int = 64) -> nn.Module:
    """RDN (Zhang et al., CVPR 2018): D residual dense blocks of C layers of growth G, their outputs concatenated."""
    def block() -> nn.Module:
        return residual(*(dense(conv(64 + i * growth, growth), nn.ReLU()) for i in range(layers)),
                        pointwise(64 + layers * growth, 64))

    chain = block()
    for _ in range(blocks - 1):
        chain = nn.Sequential(block(), dense(chain))   # a block's output, and what the rest makes of it
    return Backbone(scale, 64, conv(64, 64), chain, pointwise(64 * blocks, 64), conv(64, 64))


def rcan(scale: int) -> nn.Module:
    """RCAN (Zhang et al., ECCV 2018): 10 residual groups of 20 residual blocks with channel attention, 64 channels."""
    groups = (residual(*(residual(conv(64, 64), nn.ReLU(), conv(64, 64), channel_gate()) for _ in range(20)),
                       conv(64, 64)) for _ in range(10))
    return Backbone(scale, 64, *groups, conv(64, 64))


class RungeKutta3(nn.Module):
    """A step of a third-order Runge-Kutta scheme with learned factors, of 256 channels."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.PReLU(256), conv(256, 256)) for _ in range(3))
        self.factors = nn.Parameter(torch.tensor([1 / 2, 2, -1, 4, 1 / 6]))

    def forward(self, x: Tensor) -> Tensor:
        (stage1, stage2, stage3), (a, b, c, d, e) = self.stages, self.factors
        k1 = stage1(x)
        k2 = stage2(x + a * k1)
        k3 = stage3(x + b * k2 + c * k1)
        return x + e * (k1 + d * k2 + k3)


def oisr_rk3(scale: int) -> nn.Module:
    """OISR-RK3 (He et al., CVPR 2019): EDSR's frame around 22 Runge-Kutta steps."""
    return Backbone(scale, 256, *(RungeKutta3() for _ in range(22)), conv(256, 256))


def csfm(scale: int) -> nn.Module:
    """CSFM (Hu et al., IEEE TCSVT 2019) as a third party wired it: eight chains of 16 blocks with two attentions."""
    def block() -> nn.Module:
        attention = Join(lambda x, y: torch.cat([x, y], 1), channel_gate(),
                         gate(pointwise(64, 128), nn.ReLU(), pointwise(128, 1)))
        return residual(conv(64, 64), nn.ReLU(), conv(64, 64), attention, pointwise(128, 64))

    chains = (nn.Sequential(*(block() for _ in range(16))) for _ in range(8))
    return Backbone(scale, 64, conv(64, 64), Cascade(nn.Identity(), *chains, fused=True), conv(64, 64))


PEERS = {peer.__name__.lower(): peer for peer in (
    srcnn, vdsr, lapsrn, drrn, idn, CARN, IMDN, CFSRCNN, defian_s, edsr, rdn, rcan, oisr_rk3, csfm)}
# Options of the networks whose cost the paper prints beside the PSNR of the published ones
COUNTED = {"srcnn": {"middle": 1, "bias": False}, "lapsrn": {"one_level": True}, "idn": {"colours": 3, "groups": 1},
           "rdn": {"blocks": 20, "layers": 6, "growth": 32}}


def build_peer(name: str, scale: int, *, counted: bool = False) -> nn.Module:
    """A network of `PEERS` for x2, x3 or x4: the published one, but for what its docstring names, or, if `counted`, the
    one whose cost the paper prints. It has them as its attributes `peer` and `scale`. Raises ValueError for an unknown
    name or scale."""
    require("network", name, tuple(PEERS))
    require("scale", scale, SCALES)
    network = PEERS[name](scale, **(COUNTED.get(name, {}) if counted else {}))
    network.peer, network.scale = name, scale
    return network
