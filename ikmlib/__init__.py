"""Reproducibility study of image-specific convolutional kernel modulation (IKM, U-HDN), arXiv 2111.08362.

The method: layers, models, fast, convert. Networks it is compared with: peers. All of them by name, and files of
trained ones: networks. Training: config, files, pictures, datasets, data, metrics, trainers. `study` is how its claims
are tested, `upscale` what the networks can be used for; of this level only the command line, `__main__`, imports these
two.
"""
__all__ = ["build_model", "list_models", "load", "save"]   # of `networks`


def __getattr__(name: str):
    """Imported when they are asked for, because the command line has to start without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ikmlib import networks

    return getattr(networks, name)
