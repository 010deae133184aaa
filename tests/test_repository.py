"""The public address: where it goes, and what the pages do with it."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book._ext import book_repository
from scripts import name_repository, run_notebooks
from scripts.name_repository import checked, configured, installing

ADDRESS = "https://github.com/someone/edutools"


@pytest.mark.parametrize("address", [ADDRESS, f"{ADDRESS}/", f"{ADDRESS}.git"])
def test_an_address_is_brought_to_one_form(address):
    assert checked(address) == ADDRESS


@pytest.mark.parametrize(
    "address", ["", "edutools", "http://github.com/a/b", "https://github.com/a", "a b"]
)
def test_what_is_no_address_is_refused_and_nothing_written(address, capsys):
    before = (name_repository.ROOT / "_config.yml").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        name_repository.main([address])
    assert stopped.value.code == 2
    assert "is no address of a repository" in capsys.readouterr().err
    assert (name_repository.ROOT / "_config.yml").read_bytes() == before


def test_the_setting_is_replaced_and_nothing_else():
    text = (name_repository.ROOT / "_config.yml").read_text()
    new = configured(text, ADDRESS)
    pairs = zip(text.splitlines(), new.splitlines(), strict=True)
    assert [b.strip() for a, b in pairs if a != b] == [
        f'public_repository: "{ADDRESS}"'
    ]
    assert configured(new, f"{ADDRESS}2") == new.replace(ADDRESS, f"{ADDRESS}2")
    with pytest.raises(ValueError, match="has 0 lines"):
        configured("title: x\n", ADDRESS)


def chapter():
    result = new_output("execute_result", {"text/plain": "2"}, execution_count=1)
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("1 + 1", execution_count=1, outputs=[result]),
        new_code_cell("x = 1", execution_count=2),
    ]
    return run_notebooks.steady(new_notebook(cells=cells))


def test_a_chapter_installs_the_package_where_it_is_missing(tmp_path):
    plain = chapter()
    notebook = installing(deepcopy(plain), ADDRESS)
    assert run_notebooks.complaints(notebook) == []
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3]
    assert f'"edutools[book] @ git+{ADDRESS}"' in notebook.cells[1].source
    again = installing(installing(plain, "https://github.com/a/b"), ADDRESS)
    assert again == notebook
    path = tmp_path / "chapter.ipynb"
    run_notebooks.write(notebook, path)
    assert run_notebooks.differences(notebook, run_notebooks.run(path)) == []


def test_every_chapter_takes_the_cell():
    for path in run_notebooks.chapters():
        notebook = installing(run_notebooks.read(path), ADDRESS)
        assert run_notebooks.complaints(notebook) == [], path.name


def test_pages_get_their_buttons_with_the_address_only():
    config = SimpleNamespace(public_repository="", html_theme_options={"a": 1})
    book_repository.add_buttons(None, config)
    assert config.html_theme_options == {"a": 1}
    config.public_repository = ADDRESS
    book_repository.add_buttons(None, config)
    assert config.html_theme_options["repository_url"] == ADDRESS
    launch = config.html_theme_options["launch_buttons"]
    assert set(launch) == {"notebook_interface", "binderhub_url", "colab_url"}
