"""What can be done about D = KᵀC⁻¹K when keys are alike, and how well it is solved."""

# ruff: noqa: N803 (the papers' symbols)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import edutools as edu
from edutools.arch import architecture_of, oriented, submodule
from edutools.factored import LowRank
from edutools.keyvalue import keys
from edutools.linear import Cholesky
from edutools.solve import emmet_update
from experiments.study import Bank, Setup, Unit

CURES = {  # name -> ridge
    "nothing": 0.0, "ridge 0.1": 0.1, "ridge 10": 10.0, "ridge 1000": 1000.0,
    "pinv": 0.0, "merged, ridge 10": 10.0,
}  # fmt: skip
ZERO = 1e-11  # of the largest eigenvalue


def system(K: Tensor, C: Cholesky) -> Tensor:
    """D = KᵀC⁻¹K."""
    D = K.T @ C.solve(K)  # (n, n)
    return (D + D.T) / 2


def condition(D: Tensor, ridge: float = 0.0, *, pinv: bool = False) -> float | None:
    """The largest over the smallest eigenvalue, as a power of ten; None if infinite."""
    values = torch.linalg.eigvalsh(D)  # (n,), ascending
    kept = values[values > ZERO * values[-1]]
    low = kept[0] if pinv or len(kept) == len(D) else torch.zeros_like(kept[0])
    if not low + ridge:
        return None
    return float(((kept[-1] + ridge) / (low + ridge)).log10())


def pinv_update(W: Tensor, K: Tensor, V: Tensor, C: Cholesky) -> LowRank:
    """R D⁺ KᵀC⁻¹: where D is singular, what comes nearest to V."""
    values, vectors = torch.linalg.eigh(system(K, C))
    kept = values > ZERO * values[-1]
    half = vectors[:, kept] * values[kept].rsqrt()  # D⁺ = half halfᵀ  (n, rank)
    return LowRank((V - W @ K) @ half, half.T @ C.solve(K).T)


@dataclass(frozen=True, eq=False)
class Place:
    """Where batches are written: keys and values there, each found once."""

    setup: Setup
    method: edu.EMMET
    bank: Bank
    columns: dict[tuple[str, str], Tensor]

    def keys(self, facts: Sequence[edu.Fact]) -> Tensor:
        """Their keys; a prompt that comes twice has the same one twice."""
        new = {(f.subject, f.prompt): f for f in facts}
        new = {told: fact for told, fact in new.items() if told not in self.columns}
        if new:
            K = keys(
                self.setup.model,
                self.setup.tokenizer,
                [*new.values()],
                self.method.layers[0],
                contexts=self.method.search.contexts,
            )  # (d_in, new)
            self.columns.update(zip(new, K.T, strict=True))
        return torch.stack([self.columns[f.subject, f.prompt] for f in facts], 1)

    def cured(
        self, facts: Sequence[edu.Fact], cure: str, moment: edu.SecondMoment
    ) -> tuple[edu.Edit, Unit]:
        """The edit, with the condition of what was solved, and the residual.

        Raises:
            ValueError: if the facts cannot be written so.
        """
        model, ridge, C = self.setup.model, CURES[cure], moment.factor
        search, layer = self.method.search, self.method.layers[0]
        of, groups = (model, self.setup.tokenizer, facts), [*range(len(facts))]
        if cure.startswith("merged"):
            merging = edu.MEMITMerge(layers=(layer,), lam=ridge, search=search)
            merging.check(*of, {layer: moment})  # refuses two targets
            groups = merging.groups(facts)
        first = [groups.index(group) for group in dict.fromkeys(groups)]
        K = self.keys([facts[i] for i in first])  # (d_in, n)
        name = architecture_of(model).write(layer)
        W = oriented(submodule(model, name)).double()  # (d_out, d_in)
        if cure == "nothing":
            emmet_update(W, K, W @ K, C)  # refuses before values are searched
        found = self.bank(*of, layer, search=search, groups=groups)
        R = (found.values - found.initial)[:, first]  # (d_out, n)
        if cure == "pinv":
            delta = pinv_update(W, K, W @ K + R, C)
        else:
            delta = emmet_update(W, K, W @ K + R, C, ridge)
        solved = condition(system(K, C), ridge, pinv=cure == "pinv")
        left = (delta.dense() @ K - R).norm(dim=0) / R.norm(dim=0)  # (n,)
        told = {"log10_solved": solved, "residual": float(left.max())}
        return edu.Edit({name: delta}), told
