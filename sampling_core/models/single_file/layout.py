"""What is known of a family's single files: which tensors are of which folder, and what a folder has beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights

Configurations = Mapping[str, dict[str, Any]]
"""By file of a folder."""
Parts = dict[str, Weights]
"""The tensors of a model by folder, for the folders that it has."""


def _no_files(parts: Parts) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Layout:
    """The files of one family.

    `needs` are the beginnings of the names that each part's tensors have, by what people call the part, and `may_have`
    those of parts that a file may lack; `weights` and `configurations` give a folder's tensors and JSON files for those
    of a file. `clip_tokenizers` are the texts that pad, by folder, and `t5_tokenizer` is the folder of T5's.
    """

    pipeline: str
    known_as: str
    needs: Mapping[str, str]
    weights: Callable[[Tensors], Parts]
    configurations: Callable[[Tensors, Parts], Configurations]
    clip_tokenizers: Mapping[str, str]
    classes: Mapping[str, str]
    may_have: tuple[str, ...] = ()
    t5_tokenizer: str | None = None
    files_beside: Callable[[Parts], Mapping[str, str]] = _no_files
    """Files that have to lie beside a file with such parts, and why."""

    PADS_WITH_END: ClassVar[str] = "<|endoftext|>"
    PADS_WITH_NULL: ClassVar[str] = "!"

    def index(self, parts: Parts) -> dict[str, Any]:
        """The model_index.json that a folder of these parts has."""
        components: dict[str, list[str | None]] = {}
        for name, class_name in self.classes.items():
            is_text = name.startswith(("tokenizer", "text_encoder"))
            is_present = not is_text or name.replace("tokenizer", "text_encoder") in parts
            library = "transformers" if is_text else "diffusers"
            components[name] = [library, class_name] if is_present else [None, None]
        return {"_class_name": self.pipeline, **components}
