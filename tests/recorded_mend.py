"""The original's MEND, rebuilt from its recorded state."""

from typing import Any

import torch
from recorded import Record

from edutools.editors import Editors


def editors_of(record: Record) -> Editors:
    """Our editors with the recorded networks, statistics and rates.

    The original adds rate x change to a weight, we subtract it: the rates turn round.
    """
    data, names = record.data, names_of(record)
    told: dict[str, Any] = data["mend_config"]
    weights = {name: record.model.get_submodule(name).weight for name in names}
    editors = Editors(
        {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()},
        rank=told["rank"],
        blocks=told["n_hidden"] + 1,
        combine=told["combine"],
        shared=told["shared"],
        normalize=told["norm"],
    )
    state = editors.state_dict() | {"alpha": -record.tensors["state.edit_lrs"]}
    for i, group in enumerate(editors.groups):
        d_out, d_in = editors.shapes[group[0]]
        own = f"{group[0].replace('.', '#')}#weight"
        place = f"state.mend.{(d_in, d_out) if told['shared'] else own}"
        state |= statistics(record, place, f"editors.{i}.norms")
        nets = ["mlp"] if told["combine"] else ["mlp1", "mlp2"]
        for j, net in enumerate(nets):
            state |= network(record, f"{place}.{net}.layers", f"editors.{i}.stacks.{j}")
    editors.load_state_dict(state)
    return editors


def names_of(record: Record) -> list[str]:
    """The edited maps."""
    return [name.removesuffix(".weight") for name in record.data["inner_params"]]


def layers_of(record: Record) -> tuple[int, ...]:
    """The layers in which they lie."""
    return tuple(sorted({int(name.split(".")[2]) for name in names_of(record)}))


def statistics(record: Record, place: str, ours: str) -> dict[str, torch.Tensor]:
    """Running means and sums of squares of u and d."""
    found = {}
    for j, letter in enumerate("uv"):
        found[f"{ours}.{j}.count"] = record.tensors[f"{place}.k"][0]
        found[f"{ours}.{j}.mean"] = record.tensors[f"{place}.{letter}_mean"]
        found[f"{ours}.{j}.squares"] = record.tensors[f"{place}.{letter}_s"]
    return found


def network(record: Record, place: str, ours: str) -> dict[str, torch.Tensor]:
    """The weights of one network, block by block."""
    names = {
        "u": "U",
        "v": "V",
        "bias": "bias",
        "mode_scale.weight": "scale",
        "mode_shift.weight": "shift",
    }
    return {
        f"{ours}.{names[part]}.{block}": tensor
        for name, tensor in record.tensors.items()
        if name.startswith(f"{place}.")
        for block, _, part in [name.removeprefix(f"{place}.").partition(".")]
    }
