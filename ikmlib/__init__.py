"""Reproducibility study of image-specific convolutional kernel modulation (IKM) and U-HDN, arXiv 2111.08362.

Imports run one way:
config <- datasets, layers, metrics <- data, models <- trainers <- study <- claims <- report
<- artefacts, protocol, synthetic <- findings <- notebooks
"""
