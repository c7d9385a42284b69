"""Pictures of what a model sees and learns. Functions take arrays and return matplotlib figures; `save` writes them.

training_curves      what each run learned and minimised, against the step
mask_examples        context and target blocks on images
coverage             how often each patch is context or target
view_examples        the two views that an objective compares
attention_maps       attention that patches receive in the last block (attention_colours: the arrays)
patch_similarity     cosine of every patch with every other, an array
patch_colours        principal components of patch features as colours (pca_colours, common_colours: the arrays)
nearest_neighbours   most similar images under each encoder (nearest: the indices)
embedding_map        pooled embeddings in two dimensions
spectrum             singular values and effective rank of pooled embeddings
write_pictures       most of them into a folder
report.render        the page of one or several runs
"""

from cjepa.visualization.attention import attention_colours, attention_maps
from cjepa.visualization.curves import training_curves
from cjepa.visualization.embedding_map import embedding_map
from cjepa.visualization.masks import coverage, mask_examples
from cjepa.visualization.neighbours import Pool, nearest, nearest_neighbours
from cjepa.visualization.patches import common_colours, patch_colours, pca_colours
from cjepa.visualization.pictures import Examples, write_pictures
from cjepa.visualization.similarity import patch_similarity
from cjepa.visualization.spectrum import spectrum
from cjepa.visualization.style import save
from cjepa.visualization.views import view_examples

__all__ = [
    "Examples",
    "Pool",
    "attention_colours",
    "attention_maps",
    "common_colours",
    "coverage",
    "embedding_map",
    "mask_examples",
    "nearest",
    "nearest_neighbours",
    "patch_colours",
    "patch_similarity",
    "pca_colours",
    "save",
    "spectrum",
    "training_curves",
    "view_examples",
    "write_pictures",
]
