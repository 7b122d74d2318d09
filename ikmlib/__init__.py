"""Reproducibility study of image-specific convolutional kernel modulation (IKM) and U-HDN, arXiv 2111.08362.

Imports run one way. The method: fast <- layers <- models, convert. Training: config, files <- datasets, metrics
<- data <- trainers <- study <- experiments. What runs say: claims <- report <- evidence <- artefacts,
controls, maps, protocol, synthetic, bench <- findings <- notebooks. Use: weights <- upscale, card. `runner`
executes the notebooks, `__main__` is the command line.
"""
