"""Weights, chunks and embeddings are encoded as ComfyUI and the web UI encode them: compared with transformers' own
model, by arithmetic that is written out here."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from prefect_regional_diffusion import render
from prefect_regional_diffusion.sampling_core.engine.cache_keys import segment_keys
from prefect_regional_diffusion.sampling_core.errors import BadInput, FileError, RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.sampling_core.models import EMBEDDED
from prefect_regional_diffusion.sampling_core.models.conditioning import PROMPT_EMBEDS, Conditioning, stack, stackable
from prefect_regional_diffusion.sampling_core.models.families import FAMILIES
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.prompt_chunks import prompt_chunks
from prefect_regional_diffusion.sampling_core.models.textual_inversion import TextualInversion, textual_inversion
from prefect_regional_diffusion.sampling_core.models.tokens import PromptTokenizer
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.tasks.machine.settings import settings as machine_settings
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared, prepare
from prefect_regional_diffusion.tasks.runtime.render_context import RenderContext
from tests.toy_family import PIPELINE, open_toy, toy_folder

CHECKPOINT: Any = open_folder("embedded")
READER = CHECKPOINT.tokenizers[0]
MOST = 18
"""Tokens of a chunk of the embedded model."""
WORDS = ["red", "blue", "a", "circle", "on", "dotted", "background", "square"]


@cache
def theirs() -> Any:
    return CLIPTextModel.from_pretrained(EMBEDDED / "text_encoder", attn_implementation="sdpa").eval()


@cache
def their_tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")


@cache
def ours() -> Any:
    return CHECKPOINT.load_text_encoder(Placement())


def ids(text: str) -> list[int]:
    return their_tokenizer()(text, add_special_tokens=False)["input_ids"]


def states(tokens: Sequence[int | Tensor]) -> Tensor:
    """The states [20, features] of one chunk, by their model: its own embeddings, except where a vector stands."""
    tokenizer, model = their_tokenizer(), theirs()
    row = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
    row += [tokenizer.pad_token_id] * (MOST + 2 - len(row))
    table = model.get_input_embeddings().weight
    vectors = [token for token in row if isinstance(token, Tensor)]
    numbers = itertools.count(len(table))
    longer = torch.nn.Embedding.from_pretrained(torch.cat([table, *(vector[None] for vector in vectors)]))
    model.set_input_embeddings(longer)
    try:
        with torch.inference_mode():
            own = [next(numbers) if isinstance(token, Tensor) else token for token in row]
            return model(torch.tensor([own]))[0][0].clone()
    finally:
        model.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))


def from_empty(tokens: Sequence[int | Tensor], weights: Sequence[float]) -> Tensor:
    """One chunk as ComfyUI weights it."""
    own, empty = states(tokens).clone(), states([])
    for i, weight in enumerate(weights, start=1):
        own[i] = (own[i] - empty[i]) * weight + empty[i]
    return own


def mean_kept(tokens: Sequence[int | Tensor], weights: Sequence[float]) -> Tensor:
    """One chunk as the web UI weights it."""
    own = states(tokens)
    weighted = own.clone()
    for i, weight in enumerate(weights, start=1):
        weighted[i] *= weight
    return weighted * (own.mean() / weighted.mean())


def encoded(prompt: str, syntax: PromptSyntax, **embeddings: Tensor) -> Tensor:
    known = {name: TextualInversion((vectors,)) for name, vectors in embeddings.items()}
    return ours().encode(prompt, syntax, known)[PROMPT_EMBEDS][0]


def close(found: Tensor, *chunks: Tensor) -> None:
    torch.testing.assert_close(found, torch.cat(chunks), atol=2e-5, rtol=2e-5)


def test_a_weight_is_a_step_from_the_empty_prompt_in_comfyui() -> None:
    tokens = [*ids("a"), *ids("red"), *ids("circle on a"), *ids("blue background")]
    weights = [1.0] * len(ids("a")) + [1.3] * len(ids("red")) + [1.0] * len(ids("circle on a"))
    weights += [0.5] * len(ids("blue background"))
    close(encoded("a (red:1.3) circle on a (blue background:0.5)", "comfyui"), from_empty(tokens, weights))


def test_a_weight_multiplies_and_the_mean_stays_in_the_web_ui() -> None:
    tokens = [*ids("a"), *ids("red"), *ids("circle on a"), *ids("background")]
    weights = [1.0] * len(ids("a")) + [1.3] * len(ids("red")) + [1.0] * len(ids("circle on a"))
    weights += [1 / 1.1] * len(ids("background"))
    close(encoded("a (red:1.3) circle on a [background]", "a1111"), mean_kept(tokens, weights))


@pytest.mark.parametrize("syntax", ["comfyui", "a1111"])
def test_a_short_prompt_without_weights_is_the_plain_one_to_the_last_bit(syntax: PromptSyntax) -> None:
    for prompt in ("", "a red circle on a blue background"):
        assert torch.equal(encoded(prompt, syntax), encoded(prompt, "plain"))


def test_a_long_prompt_is_read_to_its_end_in_chunks() -> None:
    tokens = [number for word in WORDS * 6 for number in ids(word)]
    chunks = [tokens[i : i + MOST] for i in range(0, len(tokens), MOST)]
    assert len(chunks) == 3
    for syntax in ("comfyui", "a1111"):
        close(encoded(" ".join(WORDS * 6), syntax), *map(states, chunks))
    close(encoded(" ".join(WORDS * 6), "plain"), states(chunks[0]))


def test_comfyui_weighs_each_chunk_against_the_empty_prompt() -> None:
    long = [number for word in WORDS * 2 for number in ids(word)]
    assert len(long) == 16
    prompt = f"{' '.join(WORDS * 2)} (red blue dotted square:1.4)"
    # A short span is taken to the next chunk as a whole.
    close(encoded(prompt, "comfyui"), states(long), from_empty(ids("red blue dotted square"), [1.4] * 4))
    chunks = [[*long, *ids("red blue")], ids("dotted square")]
    close(
        encoded(prompt, "a1111"),
        mean_kept(chunks[0], [1.0] * 16 + [1.4] * 2),
        mean_kept(chunks[1], [1.4] * 2),
    )


def test_break_begins_a_chunk() -> None:
    close(encoded("a red circle BREAK blue", "a1111"), states(ids("a red circle")), states(ids("blue")))
    close(encoded("BREAK blue BREAK", "a1111"), states([]), states(ids("blue")))
    assert len(encoded("a red circle BREAK blue", "comfyui")) == MOST + 2


@pytest.mark.parametrize("syntax", ["comfyui", "a1111"])
def test_vectors_stand_where_the_embedding_is_named(syntax: PromptSyntax) -> None:
    vectors = torch.randn(3, theirs().config.hidden_size, generator=torch.Generator().manual_seed(0))
    weigh = from_empty if syntax == "comfyui" else mean_kept
    tokens = [*ids("a red"), *vectors, *ids("circle")]
    close(encoded("a red embedding:hat circle", syntax, hat=vectors), states(tokens))
    weights = [1.0] * len(ids("a red")) + [1.2] * 3 + [1.0] * len(ids("circle"))
    close(encoded("a red (embedding:hat:1.2) circle", syntax, hat=vectors), weigh(tokens, weights))
    long = " ".join(WORDS * 2)
    first = [number for word in WORDS * 2 for number in ids(word)]
    close(encoded(f"{long} embedding:hat", syntax, hat=vectors), states(first), states([*vectors]))
    # Nothing of it is left in the encoder.
    close(encoded("a red circle", syntax), states(ids("a red circle")))


def test_the_web_ui_ends_a_chunk_behind_a_comma() -> None:
    """The embedded model knows no comma; one with a longer vocabulary does."""

    class Reader(PromptTokenizer):
        comma = 7  # pyright: ignore[reportAssignmentType] - in the place of a property

        def __init__(self) -> None:
            self.length = 77

        def words(self, text: str) -> list[int]:
            return [int(word) for word in text.split()]

    def sizes(tokens: Sequence[int]) -> list[int]:
        found = prompt_chunks(" ".join(map(str, tokens)), "a1111", Reader(), {})
        assert [weighted.token for chunk in found for weighted in chunk] == list(tokens)
        return [len(chunk) for chunk in found]

    assert sizes([1] * 75) == [75]
    assert sizes([1] * 76) == [75, 1]
    assert sizes([1] * 54 + [7] + [1] * 21) == [75, 1]
    assert sizes([1] * 55 + [7] + [1] * 20) == [56, 20]
    assert sizes([1] * 60 + [7] + [1] * 9 + [7] + [1] * 10) == [71, 10]
    assert sizes([1] * 60 + [7] + [1] * 14 + [7]) == [75, 1]
    assert sizes([1] * 200) == [75, 75, 50]


@settings(max_examples=60)
@given(
    groups=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.5, 1.0, 1.5])), max_size=8),
    syntax=st.sampled_from(["comfyui", "a1111"]),
)
def test_no_token_is_lost_and_no_chunk_is_too_long(groups: list[tuple[int, float]], syntax: PromptSyntax) -> None:
    prompt = " ".join(f"({' '.join(['red'] * count)}:{weight})" for count, weight in groups)
    chunks = prompt_chunks(prompt, syntax, READER, {})
    assert [weighted.weight for chunk in chunks for weighted in chunk] == [
        weight for count, weight in groups for _ in range(count)
    ]
    assert all(len(chunk) <= MOST for chunk in chunks)
    assert len(chunks) == 1 or all(chunks)
    assert CHECKPOINT.chunks(prompt, syntax, {}) == len(chunks)


def told(length: int, seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning({PROMPT_EMBEDS: torch.randn(1, length, 4, generator=generator)}, frozenset({PROMPT_EMBEDS}))


def test_shorter_prompts_are_repeated_up_to_a_common_length() -> None:
    one, two, three = (told(length, length) for length in (2, 4, 6))
    both = stack([two, three])
    assert both[PROMPT_EMBEDS].shape == (2, 12, 4)
    assert torch.equal(both[PROMPT_EMBEDS][0], two[PROMPT_EMBEDS][0].repeat(3, 1))
    assert torch.equal(stack([one, two])[PROMPT_EMBEDS][1], two[PROMPT_EMBEDS][0])
    assert stackable([(2,), (4,)])
    assert stackable([(2,), (8,)])
    assert not stackable([(2,), (10,)])
    assert not stackable([(4,), (6,), (8,), (10,)])
    with pytest.raises(ValueError, match="same names, types and shapes"):
        stack([one, Conditioning({PROMPT_EMBEDS: torch.zeros(1, 2, 4)})])


def test_repeating_a_prompt_changes_nothing_for_the_network() -> None:
    denoiser = CHECKPOINT.load_denoiser(Placement())
    short, long = (ours().encode(prompt, "comfyui") for prompt in ("a red circle", " ".join(WORDS * 5)))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    level = CHECKPOINT.levels.level(3.0)
    together = denoiser(x, [level, level], stack([short, long]))
    for row, own in enumerate((short, long)):
        alone = denoiser(x[row : row + 1], [level], own)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 0.1


# --- jobs ---------------------------------------------------------------------------------------------------------

LEFT = {"x": 0, "y": 0, "width": 0.5, "height": 1}
TOP = {"x": 0, "y": 0, "width": 1, "height": 0.5}
JOB: dict[str, Any] = {"prompt": "a red background", "width": 64, "height": 64, "steps": 2, "cfg": 2.0}


def job(*regions: str, **fields: Any) -> RenderJob:
    masks = itertools.cycle([LEFT, TOP])
    drawn = [{"prompt": prompt, "mask": mask} for prompt, mask in zip(regions, masks, strict=False)]
    return parse_job(JOB | {"regions": drawn, "prompt_syntax": "comfyui"} | fields)


def embedding_file(path: str, seed: int = 0, count: int = 2, **tensors: Tensor) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    width = theirs().config.hidden_size
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    save_file(tensors or {"emb_params": vectors}, place)


def pixels(one: RenderJob) -> bytes:
    return render(one).images[0].tobytes()


def test_weights_chunks_and_dialects_change_pictures(workdir: Path) -> None:
    long = "red " * 30 + "circle on a blue background"
    drawn = {
        (syntax, prompt): pixels(job(prompt, prompt_syntax=syntax))
        for syntax in ("plain", "comfyui", "a1111")
        for prompt in ("a red circle", "a (red:1.5) circle", long)
    }
    assert drawn["plain", "a red circle"] == drawn["comfyui", "a red circle"] == drawn["a1111", "a red circle"]
    assert len(set(drawn.values())) == len(drawn) - 3


def test_rows_of_several_lengths_share_a_forward_and_are_counted_as_they_are_drawn(workdir: Path) -> None:
    two, five = "red " * 30, "red " * 85
    for regions, forwards in (([two], [1, 1]), ([five], [1, 2]), ([two, five], [1, 2])):
        planned = prepare(job(*regions))
        assert [count.forwards for count in planned.cost.per_step] == forwards
        record = render(planned.job).record
        assert (record["evaluations"], record["forwards"]) == (planned.cost.evaluations, planned.cost.forwards)


def test_embeddings_are_looked_for_under_the_roots(workdir: Path) -> None:
    embedding_file("embeddings/hat.safetensors")
    embedding_file("folder/hat.safetensors", seed=1)
    embedding_file("same.safetensors")
    hat, folder, same = (job(f"a embedding:{name}") for name in ("hat", "folder/hat", "same"))
    assert len({pixels(one) for one in (hat, folder, same)}) == 2
    assert pixels(hat) == pixels(same)
    files = render(hat).record["files"]
    assert files["embedding:hat"]["sha256"] == hashlib.sha256(Path("same.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("roots", ["/", "models"])
def test_embeddings_are_found_here_and_in_each_root(roots: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the command line the root is `/`; on a server, the working directory may be no root."""
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", roots)
    machine_settings.cache_clear()
    embedding_file("here.safetensors")
    embedding_file("models/embeddings/there.safetensors")
    found, lost = ("here", "there") if roots == "/" else ("there", "here")
    prepare(job(f"a embedding:{found}"))
    with pytest.raises(FileError, match=f"embedding:{lost} does not exist: {lost}.safetensors was looked for"):
        prepare(job(f"a embedding:{lost}"))


def test_an_embedding_counts_by_its_content(workdir: Path) -> None:
    """Its name is in the prompt; what it stands for is in the hash, and in the names of all that is stored."""
    embedding_file("hat.safetensors")
    named_it, others = job("a embedding:hat"), job("a hat")
    first, other = prepare(named_it), prepare(others)
    picture = pixels(named_it)
    embedding_file("hat.safetensors", seed=1)
    second = prepare(named_it)
    assert first.job_hash != second.job_hash
    assert prepare(others).job_hash == other.job_hash
    assert pixels(named_it) != picture

    def names(prepared: Prepared) -> list[str]:
        run, inputs = prepared.run, prepared.inputs
        return [part.name for part in segment_keys(run.segments(), "", inputs.model_keys, inputs.embedding_digests)]

    # The steps of the base alone are the same ones.
    assert names(first)[0] == names(second)[0] == names(other)[0]
    assert names(first)[1] != names(second)[1]
    keys = [{RenderContext(one, "memory").prompt_key(key) for key in one.run.prompts} for one in (first, second)]
    assert len(keys[0] & keys[1]) == len(keys[0]) - 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "none.safetensors was looked for here and in REGIONAL_ASSET_ROOTS, and in a folder embeddings there"),
        ("pickle", "pickle.pt is not read: it may have code in it"),
        ("pickle.pt", "embedding:NAME for a file NAME.safetensors: others may have code in them"),
        ("broken", "embedding:broken is a damaged safetensors file: "),
        ("wide", "a file with up to 1024 vectors for clip_l of 96 features (emb_params [2, 128])"),
        ("many", "a file with up to 1024 vectors"),
        ("whole", "a file with up to 1024 vectors"),
        ("endless", "a file with up to 1024 vectors"),
        ("two", "a file with clip_l of 96 features (clip_g [2, 128], other [2, 96])"),
        ("../outside", "embedding:NAME with a plain name"),
        ("/etc/passwd", "embedding:NAME with a plain name"),
        ("folder", "embedding:folder cannot be read: a folder"),
        ("link", "link.safetensors was looked for here and in REGIONAL_ASSET_ROOTS"),
    ],
)
def test_what_is_no_embedding_is_refused_in_a_line_that_names_the_field(name: str, reason: str, workdir: Path) -> None:
    root = workdir / "root"
    width = theirs().config.hidden_size
    embedding_file("outside.safetensors")
    root.mkdir()
    Path("root/pickle.pt").write_bytes(b"\x80\x04.")
    Path("root/broken.safetensors").write_bytes(b"no")
    Path("root/folder.safetensors").mkdir()
    Path("root/link.safetensors").symlink_to(workdir / "outside.safetensors")
    embedding_file("root/wide.safetensors", emb_params=torch.zeros(2, width + 32))
    embedding_file("root/many.safetensors", emb_params=torch.zeros(1025, width))
    embedding_file("root/whole.safetensors", emb_params=torch.zeros(2, width, dtype=torch.int32))
    embedding_file("root/endless.safetensors", emb_params=torch.full((2, width), torch.inf))
    embedding_file("root/two.safetensors", clip_g=torch.zeros(2, width + 32), other=torch.zeros(2, width))
    os.chdir(root)
    with pytest.raises(RegionalError) as refused:
        prepare(job("a circle", f"a embedding:{name}"))
    assert refused.value.field == "regions.1.prompt"
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_may_have_one_vector_or_a_tensor_for_each_text_encoder() -> None:
    one, many = torch.zeros(4), torch.ones(3, 4, dtype=torch.float16)
    assert textual_inversion({"x": one}, {"clip_l": 4}).vectors[0].shape == (1, 4)
    both = {"clip_l": many, "clip_g": torch.zeros(3, 6)}
    assert torch.equal(textual_inversion(both, {"clip_l": 4}).vectors[0], many.float())
    pair = textual_inversion(both, {"clip_l": 4, "clip_g": 6})
    assert [tuple(tensor.shape) for tensor in pair.vectors] == [(3, 4), (3, 6)]
    assert len(pair) == 3
    with pytest.raises(ValueError, match=r"a file with clip_l of 4 features and clip_g of 6 features \(x \[4\]\)"):
        textual_inversion({"x": one}, {"clip_l": 4, "clip_g": 6})
    with pytest.raises(ValueError, match="vectors for"):
        textual_inversion({"clip_l": many, "clip_g": torch.zeros(2, 6)}, {"clip_l": 4, "clip_g": 6})


def test_a_family_without_weights_refuses_dialects(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, PIPELINE, open_toy)  # pyright: ignore[reportArgumentType]
    model = toy_folder(workdir / "toy")
    toy = {"model": model, "width": 128, "height": 128, "sampler": "euler", "scheduler": "simple", "cfg": 1.0}
    prepare(job(prompt_syntax="plain", **toy))
    with pytest.raises(BadInput) as refused:
        prepare(job(**toy))
    assert refused.value.field == "prompt_syntax"
    assert refused.value.allowed == "plain: Toy reads prompts as they stand, without weights"


def test_advice() -> None:
    says = "is read as it stands; prompt_syntax: comfyui, or a1111, gives it a meaning"
    found = prepare(job("a embedding:hat", prompt="a (red:1.2) circle", prompt_syntax="plain")).warnings()
    assert found[:2] == [f"prompt: (red:1.2) {says}", f"regions.0.prompt: embedding:hat {says}"]
    assert prepare(job("a (red:1.2) circle " + "red " * 40)).warnings() == []
    assert prepare(job("a red,embedding:hat")).warnings()[0] == (
        "regions.0.prompt: embedding:hat is read as words; an embedding has a blank before it"
    )
