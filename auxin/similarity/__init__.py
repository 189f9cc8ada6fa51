"""The neuron-similarity constraint: how alike a layer's neurons are, and how to move them apart after growth.

``terms`` holds the equations, ``layers`` says which weights they apply to, ``distribution`` counts similarities,
``refine`` is the loop that runs after a growth event, ``loss`` the same objective as a term for every training step,
``norms`` re-estimates batch norms, ``activations`` compares what neurons compute instead of their weights.

Reference:
    Sakai and Hotta 2024 (arXiv 2408.13291), equations 1 to 5.
"""

from auxin.similarity.activations import activation_similarity
from auxin.similarity.distribution import BINS, histograms
from auxin.similarity.layers import Layer, find_layers
from auxin.similarity.loss import loss
from auxin.similarity.norms import batch_norms, model_inputs, reestimate_norms
from auxin.similarity.record import LayerChange, Refinement
from auxin.similarity.refine import Similarity, refine
from auxin.similarity.terms import cosine_map, mean_similarity, weight_change

__all__ = [
    "BINS",
    "Layer",
    "LayerChange",
    "Refinement",
    "Similarity",
    "activation_similarity",
    "batch_norms",
    "cosine_map",
    "find_layers",
    "histograms",
    "loss",
    "mean_similarity",
    "model_inputs",
    "reestimate_norms",
    "refine",
    "weight_change",
]
