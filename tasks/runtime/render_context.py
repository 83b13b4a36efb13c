"""RenderContext: what tasks hand to each other. It holds keys; tensors are in the store, and some cached here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.cache_keys import SegmentKey, segment_keys, state_name
from prefect_regional_diffusion.sampling_core.engine.guidance import PromptKey
from prefect_regional_diffusion.sampling_core.engine.sampling_run import SamplingRun
from prefect_regional_diffusion.sampling_core.errors import StoreError
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile, ControlNetwork
from prefect_regional_diffusion.sampling_core.models.family import Autoencoder, Checkpoint, Denoiser, Facts, TextEncoder
from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import ImageLayers
from prefect_regional_diffusion.sampling_core.models.lora_file import LoraPart
from prefect_regional_diffusion.sampling_core.models.lora_rows import LoraLayers
from prefect_regional_diffusion.sampling_core.models.model_key import ControlKey, LoraKeys, ModelKey
from prefect_regional_diffusion.sampling_core.models.row_adapters import ControlSource
from prefect_regional_diffusion.sampling_core.planning.compile import Cost
from prefect_regional_diffusion.sampling_core.planning.control_pictures import control_name, pixel_digests
from prefect_regional_diffusion.sampling_core.tensors.specs import Specs, TensorSpec, specs_of
from prefect_regional_diffusion.sampling_core.tensors.types import Latent
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import embedding_names
from prefect_regional_diffusion.tasks.inputs.file_names import portable_files
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime import model_cache, numerics
from prefect_regional_diffusion.tasks.runtime.image_prompt_files import ImageSource, image_layers
from prefect_regional_diffusion.tasks.runtime.job_inputs import FORMAT, canvas_of
from prefect_regional_diffusion.tasks.runtime.lora_files import lora_layers
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared, build_run, empty_latent, with_pictures
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.keys import Folder, RecordKey, TensorKey
from prefect_regional_diffusion.tasks.storage.store import Store

Tensors = dict[str, Tensor]
"""The tensors of one object of the store, by name."""


class RenderContext:
    """One job on its models with one store."""

    def __init__(self, prepared: Prepared, store_url: str) -> None:
        self._prepared, self.job, self.job_hash = prepared, prepared.job, prepared.job_hash
        self.models = prepared.resolved.models
        """The models that are used, the job's own first."""
        self.folders: dict[str, Checkpoint] = prepared.inputs.folders
        self.model_keys: dict[str, ModelKey] = prepared.inputs.model_keys
        """By model."""
        self.files: dict[str, dict[str, Any]] = portable_files(prepared.resolved, prepared.inputs.digests)
        """Name and SHA-256 of each file that the job names, by field."""
        facts = prepared.inputs.facts
        self.numerics = numerics.of_sampling(facts.values())
        """What the bits of latents depend on beside the job."""
        self.picture_numerics = numerics.of_pictures(facts[self.job.model], canvas_of(prepared.resolved))
        """What the bits of pictures depend on beside their latents, and those of init images' latents."""
        self.store_url = store_url
        self.masks: Tensors = prepared.inputs.tensors or {"none": torch.zeros(1)}
        """Masks and pictures as this machine makes them; safetensors wants at least one tensor."""
        self._cached_tensors: dict[TensorKey, Tensors] = {}

    def remember(self, objects: Mapping[TensorKey, Tensors]) -> None:
        """Cache objects, by key, that are in the store or will be: they need not be read from there."""
        for key, tensors in objects.items():
            # As they would be read from there.
            self._cached_tensors[key] = {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    @property
    def facts(self) -> Facts:
        """Facts of the job's own model."""
        return self.folders[self.job.model].facts

    @property
    def key(self) -> RecordKey:
        """Key of the store's record of the run."""
        return keys.run(content_hash([FORMAT, self.job_hash, self.numerics]))

    @cached_property
    def segments(self) -> tuple[SegmentKey, ...]:
        """The run's segments, named by what determines the states in them; jobs that begin alike share them."""
        context = [FORMAT, self.numerics, self.model_keys[self.job.model].digest]
        return segment_keys(
            self.sampling_run.segments(), context, self.model_keys, self._prepared.inputs.embedding_digests
        )

    def folder_of(self, segment: SegmentKey) -> Folder:
        """Where a segment's states are."""
        return keys.states(segment.name)

    def state_key(self, step: int) -> TensorKey:
        """Key of the state after a step, counted from 1."""
        return keys.state(state_name(self.segments, step))

    @cached_property
    def store(self) -> Store:
        return Store(self.store_url)

    @property
    def mask_key(self) -> TensorKey:
        """Key of the masks of all regions, and of the init image if there is one."""
        return keys.masks(self._prepared.inputs.mask_hash)

    @property
    def mask_specs(self) -> Specs:
        """Names, types and shapes of what is stored there."""
        return specs_of(self.masks)

    @property
    def inputs(self) -> Tensors:
        """Masks and pictures. Raises StoreError if they are nowhere."""
        return self._stored(self.mask_key, self.mask_specs)

    @cached_property
    def sampling_run(self) -> SamplingRun[Any]:
        """The run itself, with what the store has of its masks and pictures. Raises StoreError."""
        run, inputs = self._prepared.run, self.inputs
        job, clean = self._prepared.resolved, self._empty_latent
        # Masks that another machine drew may differ in their last bits.
        if any(not torch.equal(inputs[name], mask) for name, mask in self.masks.items()):
            job = with_pictures(job, self._prepared.inputs, inputs)
            run = build_run(job, self.folders, inputs, clean)
        if job.init_image is None:
            return run
        return run.with_init_latent(clean + self._stored(self.start_key, self.start_specs)["latent"])

    @property
    def _empty_latent(self) -> Latent:
        return empty_latent(self._prepared.resolved, self.folders[self.job.model])

    @property
    def start_key(self) -> TensorKey:
        """Key of the init image's latent."""
        model = self.model_keys[self.job.model].digest
        return keys.start(content_hash([self._prepared.inputs.mask_hash, model, self.picture_numerics]))

    @property
    def start_specs(self) -> Specs:
        """What is stored there: `latent` [1, c, h, w]."""
        return {"latent": TensorSpec(torch.float32, (1, *self._empty_latent.shape[1:]))}

    @cached_property
    def _sources(self) -> dict[str, tuple[str, Checkpoint, ModelKey]]:
        """Name, files and key of each of the job's models, by name.

        Checks that controls have all their tensors before any weights of the run are read. Raises ModelError.
        """
        for file in self._prepared.inputs.controls.values():
            file.check_weights()
        return {name: (name, folder, self.model_keys[name]) for name, folder in self.folders.items()}

    def text_encoder(self, name: str) -> AbstractContextManager[TextEncoder]:
        """The text encoders of one of the job's models, which stay in memory within the block."""
        return model_cache.text_encoder(*self._sources[name])

    def denoiser(self, name: str) -> AbstractContextManager[Denoiser]:
        """The denoiser of one of the job's models, in the same way."""
        return model_cache.denoiser(*self._sources[name])

    def _control_files(self, model: str) -> list[ControlFile]:
        return [file for (name, _), file in self._prepared.inputs.controls.items() if name == model]

    def control_networks(self, model: str) -> list[AbstractContextManager[ControlNetwork]]:
        """The ControlNets and T2I-Adapters of one of the job's models, each in the same way."""
        return [model_cache.control(file, self.folders[model].facts) for file in self._control_files(model)]

    def control(self, model: str, key: ControlKey) -> ControlSource:
        """A ControlNet or T2I-Adapter with the picture that it reads. Raises ModelError."""
        file = next(file for file in self._control_files(model) if file.fingerprint() == key.network)
        pixels = pixel_digests(self._prepared.resolved, self.inputs, self._prepared.inputs.digests)
        picture = next(picture for picture, digest in pixels.items() if digest == key.picture)
        picture_pixels = self.inputs[control_name(picture, self._prepared.inputs.digests)]
        with model_cache.control(file, self.folders[model].facts) as network:
            return network.source(picture_pixels)

    def autoencoder(self) -> AbstractContextManager[Autoencoder]:
        """The autoencoder of the job's own model, in the same way."""
        return model_cache.autoencoder(*self._sources[self.job.model])

    def lora_layers(self, model: str, keys: LoraKeys, part: LoraPart) -> tuple[LoraLayers, ...]:
        """What LoRAs add to each network of a part of a model; empty without LoRAs."""
        return lora_layers(self._prepared.inputs.loras, model, self.folders[model].facts, keys, part)

    def prompt_key(self, prompt: PromptKey) -> TensorKey:
        """Key of an encoded prompt, whatever canvas it is for, with what LoRAs do to the text encoders."""
        model = self.model_keys[prompt.model]._replace(loras=prompt.loras).text_digest
        key_parts = [FORMAT, model, numerics.of_encoding([self.folders[prompt.model].facts]), prompt.prompt]
        if prompt.syntax != "plain":
            digests = self._prepared.inputs.embedding_digests
            names = embedding_names(prompt.prompt, prompt.syntax)
            key_parts += [prompt.syntax, {name: digests[name] for name in names}]
        return keys.prompt(content_hash(key_parts))

    @property
    def images(self) -> tuple[tuple[str, str], ...]:
        """Model and fingerprint of each image that rows may attend to."""
        return tuple(self._prepared.inputs.image_prompts.sources)

    @cached_property
    def image_sources(self) -> dict[TensorKey, ImageSource]:
        """What their keys and values are computed from, by the key of these in the store."""
        sources = self._prepared.inputs.image_prompts.sources
        return {self.image_key(*image): source for image, source in sources.items()}

    def image_key(self, model: str, fingerprint: str) -> TensorKey:
        """Key of an image's keys and values for a model."""
        layers = self._prepared.inputs.image_prompts.sources[model, fingerprint].adapter.plan.layers
        return keys.prompt(
            content_hash([FORMAT, "image", numerics.of_encoding([self.folders[model].facts]), fingerprint, layers])
        )

    def image_layers(self, model: str, fingerprint: str) -> ImageLayers:
        """The keys and values of an image for a model's denoiser. Raises StoreError if they are nowhere."""
        key = self.image_key(model, fingerprint)
        placement = settings().placement(self.folders[model].facts)
        return image_layers(self._stored(key, self.image_sources[key].adapter.specs), placement)

    def prompt_specs(self, prompt: PromptKey) -> Specs:
        """What is stored there: the tensors of a conditioning."""
        return self._prepared.inputs.prompt_specs(prompt)

    @property
    def cost(self) -> Cost:
        """What the run costs from its beginning, as it was counted when the job was checked."""
        return self._prepared.cost

    def encode_prompt(self, prompt: PromptKey, encoder: TextEncoder) -> Conditioning:
        """A prompt, encoded by the text encoders of its model."""
        embeddings = self._prepared.inputs.embeddings[prompt.model]
        loras = self.lora_layers(prompt.model, prompt.loras, "text_encoder")
        return encoder.encode(prompt.prompt, prompt.syntax, embeddings, loras=loras)

    @cached_property
    def conditionings(self) -> dict[PromptKey, Conditioning]:
        """Conditionings of all prompts of the run. Raises StoreError if an encoded one is nowhere."""
        conditionings: dict[PromptKey, Conditioning] = {}
        for prompt in self.sampling_run.prompts:
            folder = self.folders[prompt.model]
            stored = self._stored(self.prompt_key(prompt), self.prompt_specs(prompt))
            conditionings[prompt] = Conditioning(stored, folder.facts.repeatable)
            if prompt.sizes is not None:
                conditionings[prompt] = conditionings[prompt].joined(folder.size_tensors(prompt.sizes))
        return conditionings

    def _stored(self, key: TensorKey, specs: Specs) -> Tensors:
        return self._cached_tensors.get(key) or self._read(key, specs)

    def _read(self, key: TensorKey, specs: Specs) -> Tensors:
        tensors = self.store.read_tensors(key, specs)
        if tensors is None:
            raise StoreError("store", self.store_url, f"does not have {key} any more, which this run needs")
        return tensors
