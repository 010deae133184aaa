"""The first chapter is written for one model and must run on the others as well."""

import pytest

from scripts import run_notebooks

CHAPTER = run_notebooks.BOOK / "start/rewriting-one-fact.ipynb"


def printed(notebook) -> str:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs)


def test_the_first_chapter_runs_on_another_model(monkeypatch):
    monkeypatch.setenv("EDUTOOLS_MODEL", "pocket-llama")
    text = printed(run_notebooks.run(CHAPTER))
    assert "model.layers.4.mlp.down_proj: W is 144 x 480" in text
    assert "layer 4: Rome" in text


@pytest.mark.slow
def test_the_first_chapter_runs_on_a_model_without_settings(monkeypatch, tmp_path):
    from edutools.testing import taught_model, tiny_tokenizer

    taught_model("gpt2").save_pretrained(tmp_path / "unheard-of")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "unheard-of")
    monkeypatch.setenv("EDUTOOLS_MODEL", str(tmp_path / "unheard-of"))
    assert "transformer.h.1.mlp.c_proj" in printed(run_notebooks.run(CHAPTER))
