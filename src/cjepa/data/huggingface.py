"""Data sets of the Hugging Face hub by their id, out of the local cache of its library."""

from pathlib import Path
from typing import Literal

from cjepa.data.parquet import ParquetConfig, open_parquet
from cjepa.data.source import Splits
from cjepa.errors import InputError
from cjepa.types import Part


class HuggingFaceConfig(Part):
    """A data set of the Hugging Face hub whose files are Parquet; see open_huggingface."""

    name: Literal["huggingface"] = "huggingface"
    """The kind of source; data.source lists all."""
    id: str
    """OWNER/NAME on the hub."""
    revision: str = "main"
    """Branch, tag or commit; a commit names the images for good."""
    subset: str | None = None
    """The folder of the repository that holds the files, for data sets of several configurations."""
    path: Path | None = None
    """The cache; that of the library if null."""
    download: bool = False
    """Let huggingface_hub download what is missing; else only the cache is read and the network is not used."""
    image_column: str | None = None
    """The column of the images; found if null."""
    label_column: str | None = None
    """The column of the labels; `label` if there is one and this is null."""


def open_huggingface(config: HuggingFaceConfig, max_pixels: int) -> Splits:
    """The images of a data set as open_parquet reads them. Only .parquet files are fetched; no code of it is run.

    Raises InputError when huggingface_hub is missing, or the data set is not in the cache and may not be downloaded.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"data: data sets by id need huggingface_hub ({error}); run: pip install huggingface_hub, or name the "
            "files: data.source.name=parquet data.source.path=FOLDER"
        ) from error
    subset = (config.subset or "").strip("/")
    if ".." in Path(subset).parts:
        raise InputError(f"data.source.subset: {config.subset} is no folder of the data set")
    try:
        folder = huggingface_hub.snapshot_download(
            config.id,
            repo_type="dataset",
            revision=config.revision,
            cache_dir=None if config.path is None else config.path.expanduser(),
            allow_patterns=f"{subset}/*.parquet" if subset else "*.parquet",
            local_files_only=not config.download,
        )
    except Exception as error:  # of the library, its validation of ids, the cache and the network
        cache = "the cache" if config.path is None else f"the cache {config.path}"
        hint = "" if config.download else f"; it is looked for in {cache} only, data.source.download=true fetches it"
        raise InputError(f"data: {config.id} cannot be had: {str(error).splitlines()[0]}{hint}") from error
    found = Path(folder, subset)
    read = ParquetConfig(path=found, image_column=config.image_column, label_column=config.label_column)
    return open_parquet(read, max_pixels, Path(folder))  # the same names with and without a subset
