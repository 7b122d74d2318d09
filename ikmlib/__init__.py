"""Reproducibility study of image-specific convolutional kernel modulation (IKM, U-HDN), arXiv 2111.08362.

The method: layers, models, fast, convert. Networks it is compared with: peers. Training: config, files, pictures,
datasets, data, metrics, trainers. `study` is how its claims are tested, `upscale` what the networks can be used for; of
this level only the command line, `__main__`, imports these two.
"""
