"""What a command line is given, read as values; and values as text."""

import json
from dataclasses import replace

import pytest

import edutools as edu
from edutools import options, tables
from edutools.secondmoment import SecondMoment


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("5", [5]),
        ("3,4,5", [3, 4, 5]),
        ("3-5", [3, 4, 5]),
        (" 0, 2-3 ,9", [0, 2, 3, 9]),
    ],
)
def test_layers_are_read(text, layers):
    assert options.layer_list(text) == layers


@pytest.mark.parametrize(
    "text", ["", "a", "3,", "-3", "3-", "5-3", "3,3", "2-4,3", "1.5"]
)
def test_layers_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="Layers"):
        options.layer_list(text)


DATA = {"layers": [3], "lam": 1.5, "key": "mean", "search": {"a": {"seed": 0}, "n": 2}}


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("lam=1e4", {"lam": 10_000.0}),
        ("lam=3", {"lam": 3.0}),
        ("layers=3,4", {"layers": [3, 4]}),
        ("layers=[3, 4]", {"layers": [3, 4]}),
        ("layers=4", {"layers": [4]}),
        ("key = prompt", {"key": "prompt"}),
        ("key=a=b", {"key": "a=b"}),
        ("key=null", {"key": None}),
        ("key=true", {"key": True}),
        ('key="7"', {"key": "7"}),
        ("new=7", {"new": 7}),
        ("search.n=5", {"search": {"a": {"seed": 0}, "n": 5}}),
        ("search.a.seed=5", {"search": {"a": {"seed": 5}, "n": 2}}),
    ],
)
def test_a_setting_replaces_one_value(text, changed):
    before = json.dumps(DATA)
    told = options.with_setting(DATA, text)
    assert told == DATA | changed
    assert {k: type(v) for k, v in told.items()} == {
        k: type(v) for k, v in (DATA | changed).items()
    }
    assert json.dumps(DATA) == before


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lam", "written name=value"),
        ("=3", "written name=value"),
        ("search.=3", "written name=value"),
        ("lam.x=3", "'lam', which holds no settings. Those that do: search."),
        ("new.x=3", "'new', which holds no settings"),
        ("search.n.x=3", "'n', which holds no settings. Those that do: a."),
    ],
)
def test_settings_that_lead_nowhere_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        options.with_setting(DATA, text)


@pytest.mark.parametrize("name", ["ROME", "rome", "RoMe", "ro-me", "ro_me"])
def test_methods_are_found_by_name(name):
    assert edu.ROME.named(name) is edu.ROME


def test_every_method_can_be_named():
    for kind in (edu.MEMIT, edu.EMMET):
        assert options.method_of(
            kind.__name__.lower(), model="gpt-j-6b"
        ) == kind.preset("gpt-j-6b")


def test_settings_start_from_the_preset_of_the_model():
    told = options.method_of("rome", model="pocket-llama", settings=["search.steps=3"])
    wanted = edu.ROME.preset("pocket-llama").to_dict()
    wanted["search"]["steps"] = 3
    assert told.to_dict() == wanted


def test_settings_start_from_the_defaults_where_there_is_no_preset():
    with pytest.raises(ValueError, match="MEMIT has no preset for 'mine'"):
        options.method_of("memit", model="mine")
    told = options.method_of("memit", model="mine", settings=["lam=7"])
    assert told == edu.MEMIT(lam=7.0)
    with pytest.raises(ValueError, match="MEMIT has no preset for 'gpt-2'"):
        options.method_of("memit", model="mine", preset="gpt-2", settings=["lam=7"])


@pytest.mark.parametrize("kind", ["FT", "FT-L", "FT-M"])
def test_the_kinds_of_fine_tuning_are_methods_of_their_own(kind):
    for name in (kind.lower(), kind.replace("-", "_")):
        told = options.method_of(name, model="pocket-llama", settings=["steps=3"])
        wanted = edu.FineTune.preset("pocket-llama", kind=kind)
        assert told == replace(wanted, steps=3)
        assert told.kind == kind
    with pytest.raises(ValueError, match=f"{kind} has no preset for 'mine'"):
        options.method_of(kind, model="mine")


def test_settings_cannot_make_another_kind_of_fine_tuning():
    for name, more in (("ft", "loss=target"), ("ft-l", "epsilon=null")):
        with pytest.raises(ValueError, match=r"it is FT-M\. FT-L has an epsilon"):
            options.method_of(name, model="pocket-llama", settings=[more])
    with pytest.raises(ValueError, match=r"The method is FT-L, but .* it is FT-M"):
        options.method_of("ft-l", model="mine", settings=["layers=3"])
    told = options.method_of("ft-l", model="mine", settings=["epsilon=1e-3"])
    assert told == edu.FineTune(epsilon=1e-3)
    free = options.method_of("finetune", model="mine", settings=["epsilon=1e-3"])
    assert free == told


def test_a_trained_method_comes_from_its_folder_alone(tmp_path, monkeypatch):
    read = []

    def from_pretrained(folder):
        read.append(folder)
        return edu.ROME(layer=2)

    monkeypatch.setattr(edu.EMMET, "from_pretrained", from_pretrained, raising=False)
    found = options.method_of("emmet", model="mine", folder=tmp_path)
    assert (found, read) == (edu.ROME(layer=2), [tmp_path])
    for more in ({"preset": "gpt-j-6b"}, {"settings": ["lam=3"]}):
        with pytest.raises(ValueError, match="has the settings of its folder"):
            options.method_of("emmet", model="mine", folder=tmp_path, **more)
    with pytest.raises(ValueError, match="ROME is not trained"):
        options.method_of("rome", model="mine", folder=tmp_path)


def test_moments_are_found_beside_the_model(tmp_path):
    assert list(options.moments_of("pocket-llama", None)) == [4]
    assert options.moments_of("owner/model", None) == {}
    assert options.moments_of(str(tmp_path), None) == {}
    SecondMoment.empty(2).save(tmp_path / "moment-7.safetensors")
    assert list(options.moments_of(str(tmp_path), None)) == [7]
    assert list(options.moments_of("pocket-llama", tmp_path)) == [7]
    with pytest.raises(FileNotFoundError, match="No second moments"):
        options.moments_of("pocket-llama", tmp_path / "none")


def test_fresh_places(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("new", "new/deeper", "empty"):
        assert options.fresh(tmp_path / name, force=False) == tmp_path / name
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="exists already"):
            options.fresh(taken, force=False)
        assert options.fresh(taken, force=True) == taken
    for force in (False, True):
        with pytest.raises(ValueError, match="is a file; nothing can be put below"):
            options.fresh(tmp_path / "file" / "a" / "b", force=force)


def test_columns_of_numbers_stand_to_the_right():
    rows = [["a", "-1.5", "3.0 %", "x"], ["bcd", "1,024", "12.5 %", "1 [2]"]]
    assert tables.table(["", "n", "share", "text"], rows).splitlines() == [
        "         n   share  text",
        "a     -1.5   3.0 %  x",
        "bcd  1,024  12.5 %  1 [2]",
    ]
    assert tables.table(["one", "two"], []) == "one  two"


def test_plain_values_are_json():
    value = {3: (1.0, float("inf")), "a": [float("nan"), None, True, "x"]}
    told = tables.plain(value)
    assert told == {"3": [1.0, None], "a": [None, None, True, "x"]}
    json.dumps(told, allow_nan=False)


def test_long_lists_of_facts_are_cut(tmp_path):
    facts = [{"subject": str(i), "prompt": "{} is", "target": "x"} for i in range(1200)]
    text = tables.describe_edit(edu.Edit({}, {"facts": facts}))
    assert "facts: 1,200" in text
    assert "- 4 is -> x" in text
    assert "- 5 is -> x" not in text
    assert "- and 1,195 more" in text
