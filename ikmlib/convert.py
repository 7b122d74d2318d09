"""The method in any network: `convert` turns plain convolutions into IKM convolutions, `revert` turns them back.

    convert(net, "layer1.*", strict=True)   # one stage, with the threshold x > 0; without a name: the whole network
    revert(net)

Behind a ReLU, and on an input in 0..1, the released mask x >= 0 takes every pixel: the attention is then the
constant 1.5, whatever the image. There, `strict=True` makes the layer look at the image.

A layer changes its class and nothing else, as under `torch.nn.utils.parametrize`: it stays the same object with the
same parameters, `state_dict` keys, hooks, device and dtype. `torch.compile` (convert first), `torch.export` with free
batch, height and width, autocast, channels_last and second derivatives work as for a plain network.

- ONNX: export with fixed batch, height and width: PyTorch's exporter (2.13) freezes the cells of adaptive pooling.
- `DistributedDataParallel` or accumulation over R mini-batches, with a loss that is averaged over images and without
  batch normalisation: gradients are those of one process with all images, except that IsO's (`gradient="iso"`) of a
  modulated kernel is R times as large, because IsO divides by the images that a process sees. Adam ignores the factor
  (but for epsilon). With SGD or gradient clipping divide by R, or choose "autograd". "go" averages the attention over
  a process's images, so its outputs depend on R.
"""
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ikmlib.layers import OPTIONS, IKMConv2d, check_options


def obstacle(module: nn.Module) -> str | None:
    """Why `convert` cannot modulate this layer; None if it can."""
    if type(module) is not nn.Conv2d:   # a subclass has a forward of its own, which would be lost
        return f"it is {type(module).__name__}, not nn.Conv2d"
    if module.groups > 1:
        return f"it has {module.groups} groups"
    if module.padding_mode != "zeros":
        return f"its padding mode is {module.padding_mode!r}"
    if max(module.kernel_size) == 1:
        return "its kernel is 1 x 1, where the attention is constant"
    if isinstance(module.padding, str):
        return f"its padding is {module.padding!r}, not a number of pixels"
    return None


def convert(module: nn.Module, where: str | Sequence[str] = "*", *, gradient: str = "iso",
            tau: float | str = 0.0, strict: bool = False, transform: str = "sigmoid",
            context: str = "own") -> tuple[str, ...]:
    """Modulate convolutions of `module` by each image's own context (`IKMConv2d`), in place; returns their names.

    `where` is a name, a pattern such as "layer1.*", or several of them. A pattern chooses among the layers that can be
    converted: `nn.Conv2d` itself (no subclass), with one group, a kernel larger than 1 x 1, and zero padding given in
    pixels. The default is all of these. The other options are `IKMConv2d`'s.
    "sigmoid" scales all kernels by about 1.5: train afterwards, and compare with `context="constant"`, which has the
    same scale without the image.

    Raises ValueError, and changes nothing, for an unknown option, for a layer that cannot be converted or is already
    modulated (whatever its options), and where there is nothing to convert.
    """
    options = dict(gradient=gradient, tau=tau, strict=strict, transform=transform, context=context)
    check_options(**options)
    every, chosen = dict(module.named_modules(remove_duplicate=False)), set()   # a shared layer has several names
    able = {name: child for name, child in every.items() if isinstance(child, IKMConv2d) or obstacle(child) is None}
    for pattern in [where] if isinstance(where, str) else where:
        matching = {child for name, child in able.items() if fnmatchcase(name, pattern)}
        if not matching:
            why = (obstacle(every[pattern]) if pattern in every else
                   f"it is none of {', '.join(able)}" if able else "no layer can be")
            raise ValueError(f"layer {pattern!r} cannot be converted: {why}")
        chosen |= matching
    layers = {name: child for name, child in module.named_modules() if child in chosen}   # by their first names
    if not layers:
        raise ValueError("nothing to convert: no layer is named")
    if modulated := [name for name, child in layers.items() if isinstance(child, IKMConv2d)]:
        raise ValueError(f"already modulated: {', '.join(modulated)}; `revert` changes them back, or name other layers")
    for conv in layers.values():
        conv.__class__ = IKMConv2d
        vars(conv).update(options)
    return tuple(layers)


def revert(module: nn.Module) -> tuple[str, ...]:
    """Turn every IKM convolution of `module` into the plain one with the same weights, in place; returns their names.

    Raises ValueError, and changes nothing, if a layer is of a subclass of `IKMConv2d`, as parametrised layers are.
    """
    layers = {name: child for name, child in module.named_modules() if isinstance(child, IKMConv2d)}
    for name, conv in layers.items():
        if type(conv) is not IKMConv2d:
            raise ValueError(f"layer {name!r} cannot be reverted: it is {type(conv).__name__}; where that comes from a "
                             f"parametrization, torch.nn.utils.parametrize.remove_parametrizations first")
    for conv in layers.values():
        for name in OPTIONS:
            delattr(conv, name)
        conv.__class__ = nn.Conv2d
    return tuple(layers)
