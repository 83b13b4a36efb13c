"""Prompts are taken apart as ComfyUI and Automatic1111's web UI take them apart, and plain ones not at all."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.errors import BadJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_grid, parse_job
from prefect_regional_diffusion.sampling_core.names import PromptSyntax
from prefect_regional_diffusion.sampling_core.text.prompt_spans import Break, Embedding, PromptError, Span, Words
from prefect_regional_diffusion.sampling_core.text.prompt_syntax import embedding_names, parse_prompt, words_of

DIALECTS: list[PromptSyntax] = ["comfyui", "a1111"]
WITHOUT_SIGNS = st.text(st.characters(exclude_characters="()[]\\:<|"), min_size=1).filter(
    lambda text: not {"BREAK", "AND"} & set(text.split())
)
BREAK = Break()


def spans(*parts: tuple[str, float]) -> list[Span]:
    return [Words(text, weight) for text, weight in parts]


def parsed(prompt: str, syntax: PromptSyntax) -> list[Span]:
    """With weights as one writes them: 1.1 times 1.1 is not quite 1.21."""
    found = parse_prompt(prompt, syntax)
    return [span if isinstance(span, Break) else span._replace(weight=round(span.weight, 9)) for span in found]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(a)", spans(("a", 1.1))),
        ("((a))", spans(("a", 1.21))),
        ("b (a:1.3) c", spans(("b ", 1), ("a", 1.3), (" c", 1))),
        ("(a:0)", spans(("a", 0))),
        ("(a:-.5 )", spans(("a", -0.5))),
        # A number is the weight itself, whatever is around it; without one, it is multiplied.
        ("((a:1.3))", spans(("a", 1.3))),
        ("((a):1.3)", spans(("a", 1.43))),
        ("(a (b:2) c:3)", spans(("a ", 3), ("b", 2), (" c", 3))),
        ("(a:b:2)", spans(("a:b", 2))),
        ("(a: big)", spans(("a: big", 1.1))),
        ("(:1.2)", spans((":1.2", 1.1))),
        ("(a:nan)", spans(("a:nan", 1.1))),
        (r"\(a\) (b\):2)", spans(("(a) ", 1), ("b)", 2))),
        ("[a]", spans(("[a]", 1))),
        ("a BREAK b", spans(("a BREAK b", 1))),
        # Parentheses without a counterpart.
        ("(a", spans(("(a", 1))),
        ("a) (b:1.2)", spans(("a) (b:1.2)", 1))),
        ("a) b ( (c:1.2)", spans(("a) b ( ", 1), ("c", 1.2))),
        ("(a (b:1.2)", spans(("a ", 1.2), ("(b", 1.2))),
        ("", []),
        ("()", []),
    ],
)
def test_weights_of_comfyui(prompt: str, expected: list[Span]) -> None:
    assert parsed(prompt, "comfyui") == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(a)", spans(("a", 1.1))),
        ("[a]", spans(("a", round(1 / 1.1, 9)))),
        ("([a])", spans(("a", 1))),
        ("b (a:1.3) c", spans(("b ", 1), ("a", 1.3), (" c", 1))),
        # A number multiplies, as parentheses do.
        ("((a:1.3))", spans(("a", 1.43))),
        ("(a (b:2) c:3)", spans(("a ", 3), ("b", 6), (" c", 3))),
        ("(a:b:2)", spans(("a:b", 2))),
        ("(a [b) c]", spans(("a ", 1.1), ("b", 1), (" c", round(1 / 1.1, 9)))),
        (r"\(a\) \[b\] \\ \c", spans(("(a) [b] \\ c", 1))),
        # What is open at the end is closed there; what closes nothing is text.
        ("(a", spans(("a", 1.1))),
        ("[a (b", spans(("a ", round(1 / 1.1, 9)), ("b", 1))),
        ("a) b] :1.2)", spans(("a) b] :1.2)", 1))),
        ("a BREAK b", [Words("a", 1), BREAK, Words("b", 1)]),
        ("(a BREAK b:1.2) BREAK", [Words("a", 1.2), BREAK, Words("b", 1.2), BREAK]),
        ("BREAKFAST", spans(("BREAKFAST", 1))),
        ("", []),
    ],
)
def test_weights_of_the_web_ui(prompt: str, expected: list[Span]) -> None:
    assert parsed(prompt, "a1111") == expected


@given(st.text())
def test_plain_prompts_have_no_signs(prompt: str) -> None:
    assert parse_prompt(prompt, "plain") == ((Words(prompt, 1.0),) if prompt else ())


@pytest.mark.parametrize("syntax", DIALECTS)
@given(text=WITHOUT_SIGNS)
def test_text_without_signs_is_one_span_of_weight_one(syntax: PromptSyntax, text: str) -> None:
    assert parse_prompt(text, syntax) == (Words(text, 1.0),)


@given(text=st.text(st.characters(exclude_characters=":<\\"), min_size=1).filter(lambda text: not {*"|"} & set(text)))
def test_escaped_signs_are_text(text: str) -> None:
    signs_of: dict[PromptSyntax, str] = {"comfyui": "()", "a1111": "()[]"}
    for syntax, signs in signs_of.items():
        escaped = "".join(f"\\{letter}" if letter in signs else letter for letter in text)
        if not {"BREAK", "AND"} & set(text.split()):
            assert words_of(escaped, syntax) == text
            assert {span.weight for span in parse_prompt(escaped, syntax) if isinstance(span, Words)} == {1.0}


@pytest.mark.parametrize("syntax", DIALECTS)
@given(text=WITHOUT_SIGNS, depth=st.integers(0, 20), before=WITHOUT_SIGNS)
def test_parentheses_multiply(syntax: PromptSyntax, text: str, depth: int, before: str) -> None:
    found = parse_prompt(f"{before}\\({'(' * depth}{text}{')' * depth}", syntax)
    last = found[-1]
    assert isinstance(last, Words)
    assert last.text.endswith(text)
    assert last.weight == pytest.approx(1.1**depth)


@given(prompt=st.text(st.sampled_from("()[]\\:1.a, |<BREAK\n")))
def test_whatever_is_written_is_read_or_refused(prompt: str) -> None:
    for syntax in DIALECTS:
        try:
            found = parse_prompt(prompt, syntax)
        except PromptError:
            continue
        assert all(isinstance(span, Break) or (span[0] and abs(span.weight) <= 10_000) for span in found)


@pytest.mark.parametrize("syntax", DIALECTS)
def test_embeddings_are_named_by_words(syntax: PromptSyntax) -> None:
    prompt = "embedding:one, a (embedding:folder/two.safetensors:1.2) embedding:one\nembedding:three hat"
    assert parsed(prompt, syntax) == [
        Embedding("one", 1),
        Words(", a ", 1),
        Embedding("folder/two", 1.2),
        Words(" ", 1),
        Embedding("one", 1),
        Words("\n", 1),
        Embedding("three", 1),
        Words(" hat", 1),
    ]
    assert embedding_names(prompt, syntax) == ["folder/two", "one", "three"]
    assert embedding_names(prompt, "plain") == embedding_names(None, syntax) == []
    # As in ComfyUI, it begins a word.
    assert parsed("a,embedding:one", syntax) == spans(("a,embedding:one", 1))


@pytest.mark.parametrize(
    ("syntax", "prompt", "reason"),
    [
        ("comfyui", "(" * 101 + "a" + ")" * 101, "at most 100 brackets within each other"),
        ("a1111", "(" * 101 + "a" + ")" * 101, "at most 100 brackets within each other"),
        ("a1111", "[" * 101, "at most 100 brackets within each other"),
        ("comfyui", "(a:1e5)", "weights from -10000 to 10000 (100000 is one)"),
        ("comfyui", "(a:1e999)", "weights from -10000 to 10000 (inf is one)"),
        ("a1111", "((a:5000):5000)", "weights from -10000 to 10000 (2.5e+07 is one)"),
        ("comfyui", "a embedding:", "a name after embedding:"),
        ("a1111", "a [red:blue:0.5] hat", "a prompt without prompt editing, [from:to:when] (':0.5]' is there)"),
        ("a1111", "a [red|blue] hat", "a prompt without alternating words, [one|other] ('[red|' is there)"),
        ("a1111", "a cat AND a dog", "a prompt without prompts joined by AND"),
        ("a1111", "a <lora:name:1> hat", "a prompt without other networks, <kind:name>"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line_that_names_the_field(
    syntax: PromptSyntax, prompt: str, reason: str
) -> None:
    region = {"prompt": prompt, "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
    fields = {"prompt": {"prompt": prompt}, "negative_prompt": {"negative_prompt": prompt}}
    fields |= {"regions.0.prompt": {"regions": [region]}}
    fields |= {"regions.0.negative_prompt": {"regions": [region | {"prompt": "a", "negative_prompt": prompt}]}}
    for field, own in fields.items():
        with pytest.raises(BadJob) as refused:
            parse_job({"prompt": "a", "prompt_syntax": syntax} | own)
        assert refused.value.field == field
        assert refused.value.allowed.startswith(reason)
        assert refused.value.allowed.endswith(f"with prompt_syntax: {syntax}")
        assert "\n" not in str(refused.value)
        parse_job({"prompt": "a"} | own)
    cells = [{"row": 0, "column": 0, "prompt": prompt}]
    with pytest.raises(BadJob) as refused:
        parse_grid({"job": {"prompt": "a", "prompt_syntax": syntax}, "cells": cells})
    assert refused.value.field == "cells.0.prompt"


@pytest.mark.parametrize("syntax", DIALECTS)
@pytest.mark.parametrize("part", ["(", ")", "[", "|", ":1", "\\"])
def test_long_prompts_are_read_in_no_time(syntax: PromptSyntax, part: str) -> None:
    """Counted by pytest's own limit: what takes time squared would take minutes here."""
    with suppress(PromptError):
        parse_prompt(part * (60_000 // len(part)), syntax)
