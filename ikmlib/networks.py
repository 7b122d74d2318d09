"""All networks by name, and files of trained ones.

The files are in the safetensors format. The header says which network it is, so that it can be built again, holds
whatever else is known of it, such as the record of its training, and a sha256 of all that is in the file.
"""
import hashlib
import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ikmlib.config import require
from ikmlib.files import reading, write_bytes
from ikmlib.models import ARCHITECTURES, Architecture, SRNetwork
from ikmlib.peers import PEERS, build_peer

METADATA = "ikmlib"   # one key: safetensors writes several in any order


def list_models() -> tuple[str, ...]:
    """The names of all networks that `build_model` builds: the paper's, then those that it compares them with."""
    return (*ARCHITECTURES, *PEERS)


def build_model(name: str | Architecture, scale: int = 2, *, attention: str | None = None,
                weights: str | Path | None = None) -> nn.Module:
    """A network for x2, x3 or x4: RGB (B, 3, H, W) in 0..1 -> RGB (B, 3, sH, sW) in about 0..1, not clipped.

    `name`: one of `list_models()`, or an `Architecture` for any other network of the paper's kind; `attention`, for the
    paper's networks: ikm (as they are), none, ca or sa; `weights`: a file of `save`, or one of the study; without it
    the network has random initial weights. Raises ValueError for an unknown name, scale or attention, and OSError and
    ValueError for a file as `load` does, also if it holds another network.
    """
    if not isinstance(name, Architecture):
        require("network", name, list_models())
    if name in PEERS:
        if attention:
            raise ValueError(f"{name} has no attention {attention!r}; {', '.join(ARCHITECTURES)} have that option")
        network = build_peer(name, scale)
    else:
        arch = ARCHITECTURES.get(name, name)
        network = SRNetwork(replace(arch, attention=attention or arch.attention), scale)
    if weights is None:
        return network
    kept, record = load(weights, scale)
    if repr(kept) != repr(network):   # names all layers with their options
        raise ValueError(f"{weights} holds another network than {name}: {record['spec']}")
    return kept


def digest(record: dict, state: dict[str, Tensor]) -> str:
    """The sha256 of a record, but for its own "sha256", and of tensors on the CPU: 64 hex digits."""
    total = hashlib.sha256(json.dumps({**record, "sha256": ""}, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def write(path: Path, state: dict[str, Tensor], record: dict, dtype: torch.dtype = torch.float32) -> None:
    """Write a weights file in this precision; `record` is what its header tells, sha256 added. Raises ValueError for
    numbers that are not finite."""
    from safetensors.torch import save as packed

    state = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in state.items()}
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ValueError(f"{path} is not written: the network holds numbers that are not finite")
    header = json.dumps({**record, "sha256": digest(record, state)}, sort_keys=True)
    write_bytes(path, packed(state, {METADATA: header}))


def save(network: nn.Module, path: str | Path, **about) -> None:
    """Write a network of `build_model` to a weights file, in float32. `about`: what else the file shall tell, such as
    updates=600 or data="T91", as JSON types.

    Raises ValueError for a network that is not as `build_model` builds it, such as a converted one, or that holds
    numbers that are not finite, and OSError.
    """
    known = getattr(network, "peer", None) or getattr(network, "arch", None)
    if known is None or repr(network) != repr(build_model(known, network.scale)):
        raise ValueError(f"this {type(network).__name__} is not as `build_model` builds it, so that no weights file "
                         "can say what it is; keep its state_dict with torch.save")
    arch = {} if isinstance(known, str) else asdict(known)
    spec = {"arch": arch, "peer": "" if arch else known, "scale": network.scale}
    write(Path(path), network.state_dict(), {**about, "spec": spec})


def load(path: str | Path, scale: int | None = None) -> tuple[nn.Module, dict]:
    """The network of a weights file, in float32 and evaluation mode on the CPU, and what its header tells.

    Of a run of the study that is its record, with `scores`: set -> images, psnr_y (dB), ssim_y. They are those of
    weights in float32, also where the file has half precision. Raises OSError, and ValueError for a file that is
    damaged, was changed, or holds no network of this project, and for one of another `scale`.
    """
    from safetensors import safe_open

    path = Path(path)
    if zipfile.is_zipfile(path):
        raise ValueError(f"{path} is a file of torch.save; allowed are those of `ikmlib.save`, which say which network "
                         "they hold (`trainers.evaluate` scores any network)")
    with open(path, "rb"), reading(path), safe_open(path, "pt") as file:   # open, so that a missing file is an OSError
        record = json.loads((file.metadata() or {})[METADATA])
        state = {name: file.get_tensor(name) for name in file.keys()}
        if record["sha256"] != digest(record, state):
            raise ValueError("its sha256 is not that of its record and tensors")
        spec = record["spec"]
        arch = spec.get("peer") or Architecture(**{**spec["arch"], "depths": tuple(spec["arch"]["depths"])})
        model = build_model(arch, spec["scale"])
        model.load_state_dict(state)   # strict: missing and unexpected keys and wrong shapes are errors
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("numbers that are not finite")
    if scale not in (None, model.scale):
        raise ValueError(f"{path} enlarges {model.scale} times, not {scale}")
    return model.to(memory_format=torch.channels_last).eval(), record   # as trained: other layouts round otherwise
