"""Reproducibility study of image-specific convolutional kernel modulation (IKM) and U-HDN, arXiv 2111.08362.

Imports run one way. The method: fast <- layers <- models, convert. Training: config, files, pictures <- datasets,
metrics <- data <- trainers <- study <- weights, recipe <- test_time <- experiments. What runs say: stats <- claims,
evidence <- report, artefacts, controls, maps, protocol, synthetic, bench <- findings <- notebooks. Use: weights <-
upscale, card. `runner` executes the notebooks, `__main__` is the command line.
"""
