"""The first chapter is written for one model and must run on the others as well."""

import shutil

import pytest

import edutools as edu
from scripts import run_notebooks

CHAPTER = run_notebooks.BOOK / "start/rewriting-one-fact.ipynb"


@pytest.fixture
def unheard_of(tmp_path) -> str:
    """A model whose name has no settings."""
    return shutil.copytree(edu.pocket("gptj"), tmp_path / "unheard-of").as_posix()


def printed(notebook) -> str:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs)


def test_the_first_chapter_runs_on_a_llama(monkeypatch):
    monkeypatch.setenv("EDUTOOLS_MODEL", "pocket-llama")
    text = printed(run_notebooks.run(CHAPTER))
    assert "model.layers.4.mlp.down_proj: W is 144 x 480" in text
    assert "layer 4: Rome" in text


def test_the_first_chapter_runs_on_a_model_without_settings(monkeypatch, unheard_of):
    monkeypatch.setenv("EDUTOOLS_MODEL", unheard_of)
    text = printed(run_notebooks.run(CHAPTER))
    assert "transformer.h.3.mlp.fc_out: W is 144 x 576" in text
    assert "score         before" in text
