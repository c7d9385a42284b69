"""The papers that a model card asks to cite, as BibTeX, one for each method."""

from typing import NamedTuple


class Paper(NamedTuple):
    """A paper at a conference."""

    key: str
    title: str
    authors: str
    venue: str
    year: int

    def bibtex(self) -> str:
        """The entry; capitals of the title are kept."""
        return "\n".join(
            (
                f"@inproceedings{{{self.key},",
                f"  title = {{{{{self.title}}}}},",
                f"  author = {{{self.authors}}},",
                f"  booktitle = {{{self.venue}}},",
                f"  year = {{{self.year}}}",
                "}",
            )
        )


CJEPA = Paper(
    "mo2024connecting",
    "Connecting Joint-Embedding Predictive Architecture with Contrastive Self-supervised Learning",
    "Mo, Shentong and Tong, Shengbang",
    "Advances in Neural Information Processing Systems",
    2024,
)
IJEPA = Paper(
    "assran2023self",
    "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
    "Assran, Mahmoud and Duval, Quentin and Misra, Ishan and Bojanowski, Piotr and Vincent, Pascal and Rabbat, Michael "
    "and LeCun, Yann and Ballas, Nicolas",
    "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    2023,
)
VICREG = Paper(
    "bardes2022vicreg",
    "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
    "Bardes, Adrien and Ponce, Jean and LeCun, Yann",
    "International Conference on Learning Representations",
    2022,
)
SIMSIAM = Paper(
    "chen2021exploring",
    "Exploring Simple Siamese Representation Learning",
    "Chen, Xinlei and He, Kaiming",
    "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    2021,
)
